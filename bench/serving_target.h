// What a load is sent to, and what is written down about each call.
//
// A load generator knows calls, not how they travel: the scheduler in this process
// (InProcessTarget) and a server at the other end of a socket (GrpcTarget) are driven alike.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/types.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"

namespace photon {

// One call: prompts x samples sequences, submitted together. Sequences end with max_tokens, and
// with nothing else.
struct ServingCall {
  std::optional<std::string> document;        // what all prompts continue: CreateDocument's answer
  std::vector<std::vector<TokenId>> prompts;  // at least one
  int samples = 1;
  int max_tokens = 1;
  GenerationMode mode = GenerationMode::kExact;
  float temperature = 1;  // 0: greedy
  uint64_t seed = 0;
};

// Tokens that came together.
struct Arrival {
  TimePoint time;
  int tokens = 0;
};

struct SequenceRecord {
  std::vector<Arrival> arrivals;
  int prompt_tokens = 0;  // the document's included
  int cached_tokens = 0;  // of them, found in the cache
  double queue_ms = 0;    // from its arrival to its first step
  bool finished = false;  // with all its tokens
};

struct CallRecord {
  TimePoint sent;
  // When the load meant to send it. Latencies count from here: a load that falls behind because
  // the server does must not leave out the waiting (coordinated omission).
  TimePoint due;
  // By prompt, and within a prompt by sample.
  std::vector<SequenceRecord> sequences;
  // kCancelled after Cancel().
  absl::Status status;
};

// Of the model and its pool.
struct ServingFacts {
  std::string device;
  int vocab_size = 0;
  int meta_tokens = 0;
  int max_tokens = 0;  // of one sequence, prompt and output
  int page_tokens = 0;
  int64_t page_bytes = 0;
  int num_pages = 0;
  std::vector<GenerationMode> modes;
  // Layers times key and value width, over all encoders and decoders.
  int64_t kv_width_of_all_layers = 0;
  // Likewise, but of the levels that grow, by the tokens that one unit stands for.
  double kv_width_that_grows_per_token = 0;
};

class ServingTarget {
 public:
  enum class CallId : int64_t {};
  using OnDone = std::function<void(CallRecord)>;

  virtual ~ServingTarget() = default;

  virtual const ServingFacts& facts() const = 0;

  // `on_done` is called once, on any thread and maybe before this returns; it must not block.
  virtual CallId Start(ServingCall call, OnDone on_done) = 0;

  // Ends a call early; one that is done is ignored.
  virtual void Cancel(CallId call) = 0;

  // Fills the cache with a text that calls then continue. Blocks until that is done.
  virtual absl::StatusOr<std::string> CreateDocument(const std::vector<TokenId>& tokens) = 0;
  virtual absl::Status DeleteDocument(const std::string& document) = 0;

  // The scheduler's, where it is in this process.
  virtual std::optional<SchedulerStats> stats() const = 0;
};

}  // namespace photon
