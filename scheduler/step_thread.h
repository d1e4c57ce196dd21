// The thread that computes steps, so that the next one is planned and the last one's tokens are
// written while it does.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/engine.h"
#include "scheduler/clock.h"

namespace photon {

// Tokens as they left the engine, and those that became known with them.
struct TokenBatch {
  struct Event {
    int row = 0;
    int first = 0;  // into `tokens`
    int count = 0;
    bool last = false;  // the row's output ends with these
    TimePoint time;
  };
  struct Token {
    TokenId id = 0;
    float logprob = 0;
    int first_top = 0;  // into `top`
    int num_top = 0;
  };
  std::vector<Event> events;
  std::vector<Token> tokens;
  std::vector<TokenLogprob> top;

  void Clear();
  void Add(int row, std::span<const SampledToken> sampled, bool last, TimePoint time);
  // Appends what `later` has, and empties it.
  void TakeOver(TokenBatch& later);
};

// How a step ended.
struct StepResult {
  absl::Status status;
  TimePoint begin;
  TimePoint end;
};

// Wakes one thread that follows several steps.
class StepSignal {
 public:
  // Blocks until there is something to take from a StepThread, or somebody has called Raise() since
  // the last Wait().
  void Wait();
  void Raise();

  // Whether a step has ended whose result was not taken yet.
  bool has_ended() const { return num_ended_.load(std::memory_order_relaxed) > 0; }

 private:
  friend class StepThread;

  std::mutex mutex_;  // of what the threads have to give, too
  std::condition_variable changed_;
  int num_ready_ ABSL_GUARDED_BY(mutex_) = 0;  // threads that have something
  bool raised_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<int> num_ended_ = 0;
};

// Runs one step at a time. Start() and Take() are called by one thread, Report() and Publish() by
// the engine inside a step.
class StepThread {
 public:
  // All outlive the object. `signal` tells when there is something to take.
  StepThread(Engine* engine, const Clock* clock, StepSignal* signal);
  // Waits for the step that runs.
  ~StepThread();

  // Begins a step; what it is given is borrowed until Take() has returned its result.
  void Start(std::span<const PageCopy> copies, std::span<const Row> rows, TokenSink* sink);

  // Keeps tokens for Publish(), which hands them over to Take(); a step's end does, too.
  void Report(int row, std::span<const SampledToken> tokens, bool last);
  void Publish();

  // Appends to `batch` what the step has published since the last call; returns the result if it
  // has ended.
  std::optional<StepResult> Take(TokenBatch& batch);

 private:
  void Run();
  // Whether there is something to take.
  bool IsReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_->mutex_) {
    return result_.has_value() || !published_.events.empty();
  }

  Engine* const engine_;
  const Clock* const clock_;
  StepSignal* const signal_;

  std::mutex mutex_;
  std::condition_variable step_started_;
  std::span<const PageCopy> copies_ ABSL_GUARDED_BY(mutex_);
  std::span<const Row> rows_ ABSL_GUARDED_BY(mutex_);
  TokenSink* sink_ ABSL_GUARDED_BY(mutex_) = nullptr;  // of the step to run
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  TokenBatch reported_;    // the engine's
  TimePoint report_time_;  // of the first of them
  TokenBatch published_ ABSL_GUARDED_BY(signal_->mutex_);
  std::optional<StepResult> result_ ABSL_GUARDED_BY(signal_->mutex_);
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace photon
