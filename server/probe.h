// Tiny requests of the server's own, one to each device, through scheduler and engine: what answers
// them all can serve.
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
  // One token of each device, before all that users have asked for, and in no statistics. `on_end`
  // is called once, when the last of them has come, on the thread that runs steps. kUnavailable,
  // kResourceExhausted: the scheduler takes nothing.
  static absl::StatusOr<std::shared_ptr<Probe>> Submit(Scheduler& scheduler, const Clock& clock,
                                                       std::function<void()> on_end);

  TimePoint submitted() const { return submitted_; }

  // Absent: a device has not answered yet. kUnavailable: the scheduler drained. kInternal: an
  // engine failed.
  std::optional<absl::Status> result() const;

  // Blocks for the result, for `patience` at most; then kDeadlineExceeded.
  absl::Status Wait(Duration patience);

 private:
  class Listener;

  Probe(TimePoint submitted, int num_devices, std::function<void()> on_end)
      : submitted_(submitted), on_end_(std::move(on_end)), num_running_(num_devices) {}

  void OnAnswer(const absl::Status& status);

  const TimePoint submitted_;
  const std::function<void()> on_end_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  int num_running_ ABSL_GUARDED_BY(mutex_);      // devices that have not answered
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // the first error
};

}  // namespace photon
