#include "server/metrics/histogram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>
#include <vector>

namespace photon {
namespace {

using ::testing::ElementsAre;

std::vector<uint64_t> CumulativeCounts(const Histogram& histogram) {
  std::vector<uint64_t> counts;
  for (const auto& bucket : histogram.Read().bucket) counts.push_back(bucket.cumulative_count);
  return counts;
}

TEST(Histogram, ValuesAreCountedInTheFirstBucketThatHoldsThem) {
  Histogram histogram({1, 2, 5});
  for (const double value : {0.0, 1.0, 1.5, 2.0, 2.1, 5.1, 1e9}) histogram.Observe(value);
  EXPECT_THAT(CumulativeCounts(histogram), ElementsAre(2, 4, 5, 7));
  EXPECT_EQ(histogram.Read().sample_count, 7u);
  EXPECT_DOUBLE_EQ(histogram.Read().sample_sum, 1e9 + 11.7);
}

TEST(Histogram, TheLastBucketHasNoBound) {
  const Histogram histogram({1});
  EXPECT_TRUE(std::isinf(histogram.Read().bucket.back().upper_bound));
}

TEST(Histogram, ValuesCanBeObservedManyTimesAtOnce) {
  Histogram histogram({1});
  histogram.Observe(0.5, 16);
  EXPECT_THAT(CumulativeCounts(histogram), ElementsAre(16, 16));
  EXPECT_DOUBLE_EQ(histogram.Read().sample_sum, 8);
}

TEST(Histogram, NothingIsLostBetweenThreads) {
  Histogram histogram({10, 20});
  constexpr int kThreads = 4;
  constexpr int kTimes = 20'000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&histogram, i] {
      for (int n = 0; n < kTimes; ++n) histogram.Observe(8.0 * (i + 1));
    });
  }
  for (int n = 0; n < 100; ++n) {
    const auto read = histogram.Read();
    EXPECT_EQ(read.sample_count, read.bucket.back().cumulative_count);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(CumulativeCounts(histogram), ElementsAre(kTimes, 2 * kTimes, 4 * kTimes));
  EXPECT_DOUBLE_EQ(histogram.Read().sample_sum, 80.0 * kTimes);
}

TEST(Histogram, BoundsAreWhatTheirDecimalsSay) {
  EXPECT_THAT(OneTwoFive(0.0005, 0.05), ElementsAre(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05));
  EXPECT_THAT(OneTwoFive(0.5, 20), ElementsAre(0.5, 1, 2, 5, 10, 20));
  EXPECT_THAT(PowersOfTwo(6), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(PowersOfTwo(1), ElementsAre(1));
}

}  // namespace
}  // namespace photon
