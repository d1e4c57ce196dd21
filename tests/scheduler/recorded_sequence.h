// A listener that remembers what it heard.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "scheduler/sequence.h"

namespace photon {

struct RecordedSequence {
  std::vector<TokenId> tokens;
  std::optional<SequenceEnd> end;
  SequenceStats stats;
  int finish_calls = 0;
  size_t stop_after = SIZE_MAX;  // the listener ends the output after so many tokens
};

class RecordingListener : public SequenceListener {
 public:
  explicit RecordingListener(std::shared_ptr<RecordedSequence> record)
      : record_(std::move(record)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      record_->tokens.push_back(tokens[i].token);
      if (record_->tokens.size() >= record_->stop_after) return i + 1;
    }
    return std::nullopt;
  }

  void OnFinish(SequenceEnd end, const SequenceStats& stats) override {
    record_->end = end;
    record_->stats = stats;
    ++record_->finish_calls;
  }

 private:
  std::shared_ptr<RecordedSequence> record_;
};

}  // namespace photon
