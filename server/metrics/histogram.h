// A distribution, counted in buckets.
#pragma once

#include <prometheus/client_metric.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace photon {

// Any number of threads observe and read; none waits for another.
class Histogram {
 public:
  // `upper_bounds` rise; what is above the last one is counted, too.
  explicit Histogram(std::vector<double> upper_bounds);
  Histogram(const Histogram&) = delete;
  Histogram& operator=(const Histogram&) = delete;

  // Values that equal a bound are below it.
  void Observe(double value, uint64_t times = 1);

  prometheus::ClientMetric::Histogram Read() const;

 private:
  const std::vector<double> upper_bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // one more than bounds
  std::atomic<double> sum_ = 0;
};

// 1, 2, 5, 10, ... times powers of ten, of everything from `least` to `most`, in seconds.
std::vector<double> OneTwoFive(double least, double most);

// 1, 2, 4, ... from 1 to at least `most`.
std::vector<double> PowersOfTwo(int most);

}  // namespace photon
