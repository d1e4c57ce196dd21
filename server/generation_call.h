// A call in flight: its sequences in the scheduler, its output on the way to one reader.
//
//   the loop thread                       the reader's threads, CallNotifier's among them
//   Listener --> CallOutput (bounded) --> Next() ... Written()
//                     |
//         a sequence past its mark: Scheduler::Pause, once written: Resume
//
// So a reader that stops holds up its own call alone: one by one its sequences pause, keep their
// pages for a while, and end. Everything that this file says to the scheduler is a call that any
// thread may make.
//
// Knows no wire: CallStream puts a call on gRPC's, CompletionCall (http/) on HTTP's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/scheduler.h"
#include "server/auth/authenticator.h"
#include "server/call_notifier.h"
#include "server/call_output.h"
#include "server/generation_request.h"
#include "server/latency_window.h"
#include "server/metrics/serving_metrics.h"
#include "server/request_log.h"
#include "server/served_model.h"

namespace photon {

// What calls need; outlives them.
struct CallEnvironment {
  const ModelHost* models = nullptr;
  LatencyWindow* latencies = nullptr;  // of all calls
  ServingMetrics* metrics = nullptr;   // null: nothing is measured
  CallNotifier* notifier = nullptr;    // of readers, about what comes from the scheduler
  int64_t max_unread_bytes = 0;
};

// Lives until its reader and the scheduler are done with it. Any thread.
class GenerationCall : public Notified, public std::enable_shared_from_this<GenerationCall> {
 public:
  struct Settings {
    TimePoint deadline = TimePoint::max();
    std::shared_ptr<const Caller> caller;
    // Next() may have something. Called on any thread, while none of this class's locks are held.
    std::function<void()> on_change;
    // Runs work that may take milliseconds soon, on another thread. For queries with integration.
    std::function<void(std::function<void()>)> run_soon;
  };

  // What the reader is to write next: a message, the end, both (the message is the last), or
  // neither: nothing yet.
  struct Reading {
    std::optional<CallOutput::Message> message;
    std::optional<absl::Status> end;
  };

  // Of `model`, of which the caller has a lease until Submit has returned.
  static std::shared_ptr<GenerationCall> Create(const CallEnvironment& environment,
                                                std::shared_ptr<ServedModel> model,
                                                std::vector<absl::StatusOr<Query>> queries,
                                                Settings settings);

  // Submits all sequences together, once. An error of the scheduler's is the end of the call.
  // Queries with an error fail alone.
  void Submit();

  // One reader at a time.
  Reading Next();

  // The message of `sequence` that Next() gave has been written.
  void Written(SequenceIndex sequence);

  // Ends the call with `why`, unless Next() has given its end.
  void Leave(const absl::Status& why);

  // Nobody reads any more: nothing more is asked of the scheduler.
  void Close();

  // For the log; nothing before the first sequence has ended.
  std::optional<RequestSummary> Summary() const;

  // Of the notifier's alone.
  void OnNotified() override;

 private:
  class Listener;

  GenerationCall(const CallEnvironment& environment, std::shared_ptr<ServedModel> model,
                 std::vector<absl::StatusOr<Query>> queries, Settings settings);

  std::optional<size_t> OnTokens(SequenceIndex index, std::span<const SampledToken> tokens,
                                 SequenceMeter& meter);
  void OnFinish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats,
                SequenceMeter& meter);
  // Has the reader told soon, unless it is to be told already.
  void TellReader();
  // Searches answers in what the query of sequence `index` has said.
  void StartIntegration(SequenceIndex index);
  void RunIntegration(SequenceIndex index);
  void CancelAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<ServedModel> model_;
  Scheduler* const scheduler_;  // the model's
  LatencyWindow* const latencies_;
  ServingMetrics* const metrics_;
  CallNotifier* const notifier_;
  const int notifier_thread_;
  const Settings settings_;
  std::atomic<bool> is_told_ = false;  // the notifier has the call on its list
  std::unique_ptr<CallRegistry::Entry> entry_;

  mutable std::mutex mutex_;
  CallOutput output_ ABSL_GUARDED_BY(mutex_);
  std::vector<SequenceId> ids_ ABSL_GUARDED_BY(mutex_);      // empty until all are submitted
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // once the outcome is known
  bool end_given_ ABSL_GUARDED_BY(mutex_) = false;           // by Next()
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// Gives queries that the scheduler could never run their errors, so that they fail alone.
void CheckThatEachFits(const Scheduler& scheduler, std::vector<absl::StatusOr<Query>>& queries);

}  // namespace photon
