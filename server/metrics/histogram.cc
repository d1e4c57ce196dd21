#include "server/metrics/histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace photon {

Histogram::Histogram(std::vector<double> upper_bounds)
    : upper_bounds_(std::move(upper_bounds)),
      counts_(std::make_unique<std::atomic<uint64_t>[]>(upper_bounds_.size() + 1)) {}

void Histogram::Observe(double value, uint64_t times) {
  const auto bound = std::lower_bound(upper_bounds_.begin(), upper_bounds_.end(), value);
  counts_[bound - upper_bounds_.begin()].fetch_add(times, std::memory_order_relaxed);
  sum_.fetch_add(value * static_cast<double>(times), std::memory_order_relaxed);
}

prometheus::ClientMetric::Histogram Histogram::Read() const {
  prometheus::ClientMetric::Histogram result;
  result.sample_sum = sum_.load(std::memory_order_relaxed);
  for (size_t i = 0; i <= upper_bounds_.size(); ++i) {
    // The total is the buckets' own, whatever is observed meanwhile.
    result.sample_count += counts_[i].load(std::memory_order_relaxed);
    const double bound =
        i < upper_bounds_.size() ? upper_bounds_[i] : std::numeric_limits<double>::infinity();
    result.bucket.push_back({.cumulative_count = result.sample_count, .upper_bound = bound});
  }
  return result;
}

std::vector<double> OneTwoFive(double least, double most) {
  std::vector<double> bounds;
  for (int exponent = -9; exponent <= 9; ++exponent) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      // By division below 1, which rounds to what the decimal number reads as.
      const double power = std::pow(10.0, std::abs(exponent));
      const double bound = exponent < 0 ? digit / power : digit * power;
      if (bound >= least && bound <= most) bounds.push_back(bound);
    }
  }
  return bounds;
}

std::vector<double> PowersOfTwo(int most) {
  std::vector<double> bounds = {1};
  while (bounds.back() < most) bounds.push_back(2 * bounds.back());
  return bounds;
}

}  // namespace photon
