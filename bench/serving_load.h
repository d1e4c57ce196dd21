// Loads: which calls are sent, and when.
//
// A load runs in the thread that calls it and returns what happened in a window of time. Nothing
// of it is left running when it returns.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/progress_bar.h"
#include "bench/serving_target.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"

namespace photon {

// What a call must keep to count as good: the time to its first token, and from there to its last
// the mean of a token.
struct ServiceLevel {
  double ttft_ms = 1000;
  double token_ms = 100;
};

struct LoadRecord {
  // What is measured.
  TimePoint begin;
  TimePoint end;
  // In the order in which they were done; those in flight at the end as far as they got.
  std::vector<CallRecord> calls;
  // Calls do not wait for each other: latencies are those of the calls that were due in the window,
  // all of which are done. Otherwise, of the calls whose first token, or end, came in it.
  bool is_open = false;
  // The scheduler's at the window's ends, where it is in this process.
  std::optional<SchedulerStats> stats_at_begin;
  std::optional<SchedulerStats> stats_at_end;
  int peak_pages_in_use = 0;  // seen in samples every few milliseconds
};

// `clients` send one call after another, each as soon as the one before is done. The window begins
// `warm_up` after the first call; calls in flight at its end are cancelled. `next_call` gives the
// n-th call of the load, from 0.
absl::StatusOr<LoadRecord> RunClosedLoop(ServingTarget& target, int clients, Duration warm_up,
                                         Duration window,
                                         const std::function<ServingCall(int)>& next_call,
                                         const OnProgress& on_progress = {});

// Sends a call at each of `arrivals`, in seconds from the start and rising, whatever became of
// those before. The window begins with `warm_up` and ends with the last arrival; returns when all
// calls are done. A call that the server refuses for want of room (kResourceExhausted, or
// kDeadlineExceeded) is part of the record.
absl::StatusOr<LoadRecord> RunOpenLoop(ServingTarget& target, const std::vector<double>& arrivals,
                                       Duration warm_up,
                                       const std::function<ServingCall(int)>& next_call,
                                       const OnProgress& on_progress = {});

// Sends the calls that `prepare` gives at once and waits for them. The window is from the beginning
// of `prepare` to the last end.
absl::StatusOr<LoadRecord> RunTogether(
    ServingTarget& target,
    const std::function<absl::StatusOr<std::vector<ServingCall>>()>& prepare);

// Runs `streams` throughout; sends `call` after `lead`, and ends `lead` after `call` is done. The
// record's last call is `call`, its window the whole time.
absl::StatusOr<LoadRecord> RunArrival(ServingTarget& target, std::vector<ServingCall> streams,
                                      ServingCall call, Duration lead);

}  // namespace photon
