// How long the sequences that ended last had to wait: percentiles for people to look at.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "scheduler/clock.h"
#include "scheduler/sequence.h"

namespace photon {

// Of the last kCapacity sequences, as far as they ended within the last minute. Any thread.
class LatencyWindow {
 public:
  static constexpr size_t kCapacity = 1024;
  static constexpr std::chrono::seconds kSpan{60};

  struct Percentiles {
    double p50_ms = 0, p90_ms = 0, p99_ms = 0;
  };
  // Of a value that no sequence has: zeros.
  struct Summary {
    int num_sequences = 0;
    Percentiles time_to_first_token;
    Percentiles time_per_output_token;  // after the first
    Percentiles duration;               // from submission to the end
  };

  // Sequences that generated nothing are left out. Cheap: called on the thread that runs steps.
  void Add(const SequenceStats& stats);

  Summary Summarise(TimePoint now) const;

 private:
  struct Entry {
    TimePoint finished;
    Duration first_token{};
    Duration per_token{};  // 0: there was one alone
    Duration total{};
  };

  mutable std::mutex mutex_;
  std::array<Entry, kCapacity> entries_ ABSL_GUARDED_BY(mutex_);  // a ring
  size_t num_added_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace photon
