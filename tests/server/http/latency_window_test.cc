#include "server/latency_window.h"

#include <gtest/gtest.h>

#include <chrono>

namespace photon {
namespace {

using std::chrono::milliseconds;

// Of a sequence whose first token took `first_ms`, and the four after it `each_ms`.
SequenceStats Stats(TimePoint finished, int first_ms, int each_ms) {
  SequenceStats stats;
  stats.generated_tokens = 5;
  stats.finished = finished;
  stats.first_token = finished - milliseconds(4 * each_ms);
  stats.submitted = *stats.first_token - milliseconds(first_ms);
  return stats;
}

TEST(LatencyWindow, GivesPercentilesByNearestRank) {
  LatencyWindow window;
  const TimePoint now{std::chrono::hours(1)};
  for (int i = 1; i <= 100; ++i) window.Add(Stats(now, i, 2 * i));
  const LatencyWindow::Summary summary = window.Summarise(now);
  EXPECT_EQ(summary.num_sequences, 100);
  EXPECT_DOUBLE_EQ(summary.time_to_first_token.p50_ms, 50);
  EXPECT_DOUBLE_EQ(summary.time_to_first_token.p90_ms, 90);
  EXPECT_DOUBLE_EQ(summary.time_to_first_token.p99_ms, 99);
  EXPECT_DOUBLE_EQ(summary.time_per_output_token.p50_ms, 100);
  EXPECT_DOUBLE_EQ(summary.duration.p99_ms, 99 + 4 * 2 * 99);
}

TEST(LatencyWindow, ForgetsWhatIsOldAndKeepsTheNewest) {
  LatencyWindow window;
  const TimePoint now{std::chrono::hours(1)};
  window.Add(Stats(now - LatencyWindow::kSpan - milliseconds(1), 1000, 1));
  EXPECT_EQ(window.Summarise(now).num_sequences, 0);
  EXPECT_EQ(window.Summarise(now).duration.p50_ms, 0);
  for (size_t i = 0; i < 3 * LatencyWindow::kCapacity; ++i) window.Add(Stats(now, 7, 1));
  EXPECT_EQ(window.Summarise(now).num_sequences, static_cast<int>(LatencyWindow::kCapacity));
  EXPECT_DOUBLE_EQ(window.Summarise(now).time_to_first_token.p99_ms, 7);
}

TEST(LatencyWindow, LeavesOutSequencesWithoutTokensAndPacesOfOne) {
  LatencyWindow window;
  const TimePoint now{std::chrono::hours(1)};
  SequenceStats nothing;
  nothing.submitted = nothing.finished = now;
  window.Add(nothing);
  EXPECT_EQ(window.Summarise(now).num_sequences, 0);
  SequenceStats one = Stats(now, 3, 0);
  one.generated_tokens = 1;
  window.Add(one);
  EXPECT_EQ(window.Summarise(now).num_sequences, 1);
  EXPECT_EQ(window.Summarise(now).time_per_output_token.p50_ms, 0);
}

}  // namespace
}  // namespace photon
