// A tiny request of the server's own, through scheduler and engine: what ends it well can serve.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/clock.h"
#include "scheduler/scheduler.h"

namespace photon {

// Of all probes, and of no request but by a chance of 1 in 2^64.
inline constexpr uint64_t kProbeSeed = 0x9d3f2c81b7a54e06;

// Any thread.
class Probe {
 public:
  // One token, before all that users have asked for, and in no statistics. `on_end` is called once,
  // on the thread that runs steps. kUnavailable, kResourceExhausted: the scheduler takes nothing.
  static absl::StatusOr<std::shared_ptr<Probe>> Submit(Scheduler& scheduler, const Clock& clock,
                                                       std::function<void()> on_end);

  TimePoint submitted() const { return submitted_; }

  // Absent: it runs. kUnavailable: the scheduler drained. kInternal: the engine failed.
  std::optional<absl::Status> result() const;

  // Blocks for the result, for `patience` at most; then kDeadlineExceeded.
  absl::Status Wait(Duration patience);

 private:
  class Listener;

  Probe(TimePoint submitted, std::function<void()> on_end)
      : submitted_(submitted), on_end_(std::move(on_end)) {}

  const TimePoint submitted_;
  const std::function<void()> on_end_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace photon
