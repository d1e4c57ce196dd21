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
constexpr auto kProgressInterval = std::chrono::milliseconds(200);

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

  // `tag` comes back with the call's record. Without `due` the call is due now.
  void Start(ServingCall call, int tag, std::optional<TimePoint> due = std::nullopt) {
    due_[tag] = due.value_or(SteadyClock().Now());
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

  // The next call that is done; nothing at `until`, or if none is in flight and `until` is never.
  // Samples the pool while it waits.
  std::optional<Done> Next(TimePoint until) {
    std::unique_lock lock(mutex_);
    while (done_.empty()) {
      const TimePoint now = SteadyClock().Now();
      if (num_in_flight_ == 0 && until == TimePoint::max()) return std::nullopt;
      if (now >= until) return std::nullopt;
      changed_.wait_until(lock, std::min(until, now + kSampleInterval));
      Sample();
    }
    Done done = std::move(done_.front());
    done_.pop_front();
    --num_in_flight_;
    ids_.erase(done.tag);
    done.record.due = due_.at(done.tag);
    due_.erase(done.tag);
    return done;
  }

  void CancelAll() {
    for (const auto& [tag, id] : ids_) target_->Cancel(id);
  }

  int peak_pages_in_use() const { return peak_pages_in_use_; }

  // Says from then on, while Next() waits, which share of the time until `end` is over.
  void ShowProgress(const OnProgress& on_progress, TimePoint begin, TimePoint end) {
    on_progress_ = on_progress;
    progress_begin_ = begin;
    progress_end_ = end;
  }

 private:
  void Sample() {
    const TimePoint now = SteadyClock().Now();
    if (now < next_sample_) return;
    next_sample_ = now + kSampleInterval;
    if (const std::optional<SchedulerStats> stats = target_->stats()) {
      peak_pages_in_use_ = std::max(peak_pages_in_use_, stats->pages_in_use);
    }
    if (on_progress_ && now >= next_progress_) {
      next_progress_ = now + kProgressInterval;
      on_progress_(std::chrono::duration<double>(now - progress_begin_) /
                   std::chrono::duration<double>(progress_end_ - progress_begin_));
    }
  }

  ServingTarget* const target_;
  OnProgress on_progress_;
  TimePoint progress_begin_, progress_end_, next_progress_, next_sample_;
  std::map<int, TimePoint> due_;
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
                                         const std::function<ServingCall(int)>& next_call,
                                         const OnProgress& on_progress) {
  LoadRecord record;
  CallsInFlight calls(&target);
  const TimePoint start = SteadyClock().Now();
  record.begin = start + warm_up;
  record.end = record.begin + window;
  calls.ShowProgress(on_progress, start, record.end);
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

absl::StatusOr<LoadRecord> RunOpenLoop(ServingTarget& target, const std::vector<double>& arrivals,
                                       Duration warm_up,
                                       const std::function<ServingCall(int)>& next_call,
                                       const OnProgress& on_progress) {
  const auto seconds = [](double count) {
    return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(count));
  };
  LoadRecord record;
  record.is_open = true;
  CallsInFlight calls(&target);
  const TimePoint start = SteadyClock().Now();
  record.begin = start + warm_up;
  record.end = std::max(record.begin, start + seconds(arrivals.empty() ? 0 : arrivals.back()));
  calls.ShowProgress(on_progress, start, record.end);

  const auto take = [&](CallsInFlight::Done done) -> absl::Status {
    const absl::Status& status = done.record.status;
    const bool is_refused = absl::IsResourceExhausted(status) || absl::IsDeadlineExceeded(status);
    if (!status.ok() && !is_refused) return status;
    record.calls.push_back(std::move(done.record));
    return absl::OkStatus();
  };
  const auto run_until = [&](TimePoint until) -> absl::Status {
    while (std::optional<CallsInFlight::Done> done = calls.Next(until)) {
      if (absl::Status status = take(*std::move(done)); !status.ok()) return status;
    }
    return absl::OkStatus();
  };
  for (int i = 0; i < static_cast<int>(arrivals.size()); ++i) {
    const TimePoint due = start + seconds(arrivals[i]);
    if (!record.stats_at_begin.has_value() && due >= record.begin) {
      if (absl::Status status = run_until(record.begin); !status.ok()) return status;
      record.stats_at_begin = target.stats();
    }
    ServingCall call = next_call(i);
    if (absl::Status status = run_until(due); !status.ok()) return status;
    calls.Start(std::move(call), i, due);
  }
  if (absl::Status status = run_until(record.end); !status.ok()) return status;
  record.stats_at_end = target.stats();
  if (absl::Status status = run_until(TimePoint::max()); !status.ok()) return status;
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
