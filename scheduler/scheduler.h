// Continuous batching over an Engine.
//
// A step decodes every running sequence to its next meta-context boundary. Sequences join and leave
// between steps:
//
//   Submit --> inbox --> waiting --admission--> running --> finished
//               |  first come, first served       |
//           bounded, any thread           one row in each step
//
// Admission reserves the pages that a sequence can need at most, a closed form of its length
// (PagesNeeded), or leaves it waiting: a running sequence is never ended for memory. The head of
// the queue is never overtaken, so a large sequence is not starved by small ones.
//
// Prompts are prefilled in pieces under the engine's budget of prefill tokens per step, the oldest
// sequence first, in the same steps that decode the others: a long prompt does not stall a stream.
//
// Policy is integer arithmetic on EngineShape. This folder knows no tensors, no text and no
// network.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "scheduler/clock.h"
#include "scheduler/page_allocator.h"
#include "scheduler/sequence.h"

namespace photon {

struct SchedulerOptions {
  int max_queue = 1024;  // sequences submitted and not yet running; more are refused
};

// What the scheduler holds and has done; gauges first, then counters since its creation.
struct SchedulerStats {
  int num_running = 0;
  int num_waiting = 0;
  int pages_in_use = 0;
  int num_pages = 0;

  int64_t steps = 0;
  int64_t step_rows = 0;      // summed over steps
  int64_t prompt_tokens = 0;  // of sequences that began to run
  int64_t prompt_tokens_cached = 0;
  int64_t generated_tokens = 0;
  int64_t wasted_slots = 0;  // decoded after a row's output had ended inside a meta-context
  int64_t rejected_queue_full = 0;
  std::array<int64_t, kNumSequenceEnds> finished = {};  // by SequenceEnd
  Duration step_time{};                                 // spent in Engine::Step
  Duration host_time{};  // spent between steps, waiting for work not included
};

// Most tokens, prompt and output together, that a sequence may have: whole meta-contexts of the
// engine's context.
int MaxSequenceTokens(const EngineShape& shape);

// Pages that a sequence of `tokens` tokens, prompt and output, needs at most.
int PagesNeeded(const EngineShape& shape, int tokens);

class Scheduler {
 public:
  // `engine` and `clock` outlive the scheduler, which alone steps the engine. kInvalidArgument: the
  // engine's shape or the options make no sense; the message has every problem.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(Engine* engine, const Clock* clock,
                                                           const SchedulerOptions& options);

  // Ends what is left with kCancelled.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // --- Any thread ---

  // Queues a sequence. On an error the listener is destroyed and hears nothing.
  // kInvalidArgument: the sequence could never run; the message names the field and the limit.
  // kResourceExhausted: the queue is full. kUnavailable: draining, or the engine failed.
  absl::StatusOr<SequenceId> Submit(SequenceRequest request,
                                    std::unique_ptr<SequenceListener> listener);

  // Ends a sequence before the next step. Sequences that have ended are ignored.
  void Cancel(SequenceId id);

  // Refuses new sequences from now on. What is queued or running goes on until `deadline` and then
  // ends with kDrained. A second call moves the deadline.
  void Drain(TimePoint deadline);

  // As of the last step.
  SchedulerStats stats() const;

  // --- The thread that runs steps ---

  // Blocks until RunStep has something to do. False: it never will again, because the scheduler has
  // drained or its engine failed.
  bool WaitForWork();

  // One step: takes in what was submitted and cancelled, ends what is overdue, admits, steps the
  // engine. Does nothing if there is nothing to do. On an error of the engine every sequence ends
  // with kEngineFailed, and the scheduler refuses work from then on.
  absl::Status RunStep();

 private:
  struct Sequence;
  class StepSink;

  Scheduler(Engine* engine, const Clock* clock, const SchedulerOptions& options);

  absl::Status CheckFits(const SequenceRequest& request) const;
  void TakeInbox();
  void EndOverdue(TimePoint now);
  void Admit();
  void PlanRows(TimePoint now);
  absl::Status CommitRows();
  void EndEverything(SequenceEnd end);
  void Finish(Sequence& sequence, SequenceEnd end);
  void RemoveFinished();
  void PublishStats();

  Engine* const engine_;
  const Clock* const clock_;
  const SchedulerOptions options_;
  const EngineShape shape_;

  // The thread that runs steps.
  PageAllocator pages_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<Row> rows_;                           // of the step being planned or run
  std::vector<Sequence*> row_sequences_;            // whose rows they are
  SchedulerStats counters_;

  mutable std::mutex mutex_;
  std::condition_variable work_arrived_;
  std::vector<std::unique_ptr<Sequence>> arrivals_ ABSL_GUARDED_BY(mutex_);
  std::vector<SequenceId> cancellations_ ABSL_GUARDED_BY(mutex_);
  TimePoint drain_deadline_ ABSL_GUARDED_BY(mutex_) = TimePoint::max();
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t rejected_queue_full_ ABSL_GUARDED_BY(mutex_) = 0;
  SchedulerStats published_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
