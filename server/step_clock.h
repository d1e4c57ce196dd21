// Since when a piece of work has been under way: written by the thread that does it, read by the
// one that watches over it.
#pragma once

#include <atomic>
#include <optional>

#include "scheduler/clock.h"

namespace photon {

class StepClock {
 public:
  void Begin(TimePoint now) { began_.store(now.time_since_epoch().count()); }
  void End() { began_.store(kIdle); }

  // Absent: nothing is under way. Any thread.
  std::optional<TimePoint> began() const {
    const Duration::rep began = began_.load();
    if (began == kIdle) return std::nullopt;
    return TimePoint(Duration(began));
  }

 private:
  static constexpr Duration::rep kIdle = Duration::min().count();
  std::atomic<Duration::rep> began_ = kIdle;
};

}  // namespace photon
