#include "bench/serving_load.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"

namespace photon {
namespace {

constexpr auto kSampleInterval = std::chrono::milliseconds(5);

// Calls in flight, and the ends that are not yet looked at.
class CallsInFlight {
 public:
  struct Done {
    int tag = 0;
    CallRecord record;
  };

  explicit CallsInFlight(ServingTarget* target) : target_(target) {}
  // Nothing of a load that failed stays in flight either.
  ~CallsInFlight() {
    CancelAll();
    while (Next(TimePoint::max()).has_value()) {
    }
  }

  // `tag` comes back with the call's record.
  void Start(ServingCall call, int tag) {
    {
      std::lock_guard lock(mutex_);
      ++num_in_flight_;
    }
    ids_[tag] = target_->Start(std::move(call), [this, tag](CallRecord record) {
      std::lock_guard lock(mutex_);
      done_.push_back({tag, std::move(record)});
      changed_.notify_one();
    });
  }

  // The next call that is done; nothing at `until`, or if none is in flight. Samples the pool while
  // it waits.
  std::optional<Done> Next(TimePoint until) {
    std::unique_lock lock(mutex_);
    while (done_.empty()) {
      const TimePoint now = SteadyClock().Now();
      if (num_in_flight_ == 0 || now >= until) return std::nullopt;
      changed_.wait_until(lock, std::min(until, now + kSampleInterval));
      if (const std::optional<SchedulerStats> stats = target_->stats()) {
        peak_pages_in_use_ = std::max(peak_pages_in_use_, stats->pages_in_use);
      }
    }
    Done done = std::move(done_.front());
    done_.pop_front();
    --num_in_flight_;
    ids_.erase(done.tag);
    return done;
  }

  void CancelAll() {
    for (const auto& [tag, id] : ids_) target_->Cancel(id);
  }

  int peak_pages_in_use() const { return peak_pages_in_use_; }

 private:
  ServingTarget* const target_;
  std::map<int, ServingTarget::CallId> ids_;
  int peak_pages_in_use_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Done> done_ ABSL_GUARDED_BY(mutex_);
  int num_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<LoadRecord> RunClosedLoop(ServingTarget& target, int clients, Duration warm_up,
                                         Duration window,
                                         const std::function<ServingCall(int)>& next_call) {
  LoadRecord record;
  CallsInFlight calls(&target);
  record.begin = SteadyClock().Now() + warm_up;
  record.end = record.begin + window;
  int num_calls = 0;
  for (; num_calls < clients; ++num_calls) calls.Start(next_call(num_calls), num_calls);

  // Until the end of the warm-up, then of the window.
  const auto run_until = [&](TimePoint until) -> absl::Status {
    while (std::optional<CallsInFlight::Done> done = calls.Next(until)) {
      if (!done->record.status.ok()) return done->record.status;
      calls.Start(next_call(num_calls), num_calls);
      ++num_calls;
      record.calls.push_back(std::move(done->record));
    }
    return absl::OkStatus();
  };
  if (absl::Status status = run_until(record.begin); !status.ok()) return status;
  record.stats_at_begin = target.stats();
  if (absl::Status status = run_until(record.end); !status.ok()) return status;
  record.stats_at_end = target.stats();

  calls.CancelAll();
  while (std::optional<CallsInFlight::Done> done = calls.Next(TimePoint::max())) {
    if (!done->record.status.ok() && !absl::IsCancelled(done->record.status)) {
      return done->record.status;
    }
    record.calls.push_back(std::move(done->record));
  }
  record.peak_pages_in_use = calls.peak_pages_in_use();
  return record;
}

absl::StatusOr<LoadRecord> RunTogether(
    ServingTarget& target,
    const std::function<absl::StatusOr<std::vector<ServingCall>>()>& prepare) {
  LoadRecord record;
  record.stats_at_begin = target.stats();
  record.begin = SteadyClock().Now();
  absl::StatusOr<std::vector<ServingCall>> to_send = prepare();
  if (!to_send.ok()) return to_send.status();
  CallsInFlight calls(&target);
  int tag = 0;
  for (ServingCall& call : *to_send) calls.Start(std::move(call), tag++);
  while (std::optional<CallsInFlight::Done> done = calls.Next(TimePoint::max())) {
    if (!done->record.status.ok()) return done->record.status;
    record.calls.push_back(std::move(done->record));
  }
  record.end = SteadyClock().Now();
  record.stats_at_end = target.stats();
  record.peak_pages_in_use = calls.peak_pages_in_use();
  return record;
}

absl::StatusOr<LoadRecord> RunArrival(ServingTarget& target, std::vector<ServingCall> streams,
                                      ServingCall call, Duration lead) {
  LoadRecord record;
  CallsInFlight calls(&target);
  const int arriving = static_cast<int>(streams.size());
  record.stats_at_begin = target.stats();
  record.begin = SteadyClock().Now();
  for (int i = 0; i < arriving; ++i) calls.Start(std::move(streams[i]), i);
  const absl::Status too_short =
      absl::FailedPreconditionError("a stream ended before the long prompt was done");

  if (auto done = calls.Next(record.begin + lead)) {
    return done->record.status.ok() ? too_short : done->record.status;
  }
  calls.Start(std::move(call), arriving);
  std::optional<CallsInFlight::Done> arrived = calls.Next(TimePoint::max());
  if (!arrived->record.status.ok()) return arrived->record.status;
  if (arrived->tag != arriving) return too_short;
  if (auto done = calls.Next(SteadyClock().Now() + lead)) {
    return done->record.status.ok() ? too_short : done->record.status;
  }
  record.end = SteadyClock().Now();
  record.stats_at_end = target.stats();
  calls.CancelAll();
  while (auto done = calls.Next(TimePoint::max())) record.calls.push_back(std::move(done->record));
  record.calls.push_back(std::move(arrived->record));
  record.peak_pages_in_use = calls.peak_pages_in_use();
  return record;
}

}  // namespace photon
