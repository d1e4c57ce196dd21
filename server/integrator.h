// Makes one answer of a query's samples.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "photon/v1/integration.pb.h"
#include "server/answer.h"
#include "server/vote.h"

namespace photon {

struct IntegrationOptions {
  // Of a majority vote. Absent: the best of n by mean log-probability.
  std::optional<AnswerExtractor> extractor;
  bool run_all_samples = false;
  bool omit_samples = false;
};

// A sample that has ended.
struct EndedSample {
  int index = 0;
  bool finished = false;  // came to its own end, and so counts
  std::string text;
  int generated_tokens = 0;
  int max_tokens = 0;
  double mean_logprob = 0;  // of its tokens
};

// For one thread at a time. Add() may take milliseconds: it searches the text.
class Integrator {
 public:
  Integrator(std::shared_ptr<const IntegrationOptions> options, int n);

  // Each sample once, in any order.
  void Add(EndedSample sample);

  // What the samples that still run would say makes no difference.
  bool decided() const;

  // All samples have been added.
  bool complete() const { return num_added_ == n_; }

  v1::IntegrationResult Result() const;

 private:
  const std::shared_ptr<const IntegrationOptions> options_;
  const int n_;
  int num_added_ = 0;
  v1::IntegrationResult counts_;    // all but the winner and the histogram
  std::vector<std::string> texts_;  // of samples that may win, by index
  Vote vote_;
  std::optional<int> best_;  // by mean log-probability
  double best_mean_logprob_ = 0;
};

}  // namespace photon
