// A limit on a rate: a bucket that fills up evenly, and from which is taken.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "scheduler/clock.h"

namespace photon {

// One thread at a time.
class TokenBucket {
 public:
  // Holds a minute's worth, and is full at first.
  TokenBucket(int64_t per_minute, TimePoint now)
      : per_minute_(static_cast<double>(per_minute)), level_(per_minute_), filled_(now) {}

  // The new rate holds from now on.
  void SetRate(int64_t per_minute, TimePoint now) {
    Fill(now);
    per_minute_ = static_cast<double>(per_minute);
    level_ = std::min(level_, per_minute_);
  }

  // Until one can be taken; zero: now.
  Duration Wait(TimePoint now) {
    Fill(now);
    if (level_ >= 1) return Duration::zero();
    return std::chrono::ceil<Duration>((1 - level_) / per_minute_ *
                                       std::chrono::duration<double, std::ratio<60>>(1));
  }

  // May overdraw.
  void Take(int64_t amount, TimePoint now) {
    Fill(now);
    level_ -= static_cast<double>(amount);
  }

 private:
  void Fill(TimePoint now) {
    const std::chrono::duration<double, std::ratio<60>> minutes = now - filled_;
    // Calls from several threads may bring an older time after a newer one.
    if (minutes.count() <= 0) return;
    level_ = std::min(per_minute_, level_ + minutes.count() * per_minute_);
    filled_ = now;
  }

  double per_minute_;
  double level_;
  TimePoint filled_;
};

}  // namespace photon
