// A clock that tests move.
#pragma once

#include <atomic>

#include "scheduler/clock.h"

namespace photon {

class FakeClock : public Clock {
 public:
  TimePoint Now() const override { return TimePoint(Duration(now_.load())); }
  void Advance(Duration duration) { now_ += duration.count(); }

 private:
  std::atomic<Duration::rep> now_ = Duration(std::chrono::hours(1)).count();
};

}  // namespace photon
