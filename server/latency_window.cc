#include "server/latency_window.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace photon {
namespace {

// By nearest rank.
LatencyWindow::Percentiles PercentilesOf(std::vector<Duration>& values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return std::chrono::duration<double, std::milli>(values[std::max<size_t>(rank, 1) - 1]).count();
  };
  return {.p50_ms = at(0.50), .p90_ms = at(0.90), .p99_ms = at(0.99)};
}

}  // namespace

void LatencyWindow::Add(const SequenceStats& stats) {
  if (!stats.first_token.has_value()) return;
  Entry entry = {.finished = stats.finished,
                 .first_token = *stats.first_token - stats.submitted,
                 .total = stats.finished - stats.submitted};
  if (stats.generated_tokens > 1) {
    entry.per_token = (stats.finished - *stats.first_token) / (stats.generated_tokens - 1);
  }
  std::lock_guard lock(mutex_);
  entries_[num_added_++ % kCapacity] = entry;
}

LatencyWindow::Summary LatencyWindow::Summarise(TimePoint now) const {
  std::vector<Duration> first_token, per_token, total;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < std::min(num_added_, kCapacity); ++i) {
      const Entry& entry = entries_[i];
      if (now - entry.finished > kSpan) continue;
      first_token.push_back(entry.first_token);
      if (entry.per_token > Duration::zero()) per_token.push_back(entry.per_token);
      total.push_back(entry.total);
    }
  }
  return {.num_sequences = static_cast<int>(total.size()),
          .time_to_first_token = PercentilesOf(first_token),
          .time_per_output_token = PercentilesOf(per_token),
          .duration = PercentilesOf(total)};
}

}  // namespace photon
