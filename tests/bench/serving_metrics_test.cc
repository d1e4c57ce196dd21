#include "bench/serving_metrics.h"

#include <gtest/gtest.h>

namespace photon {
namespace {

TimePoint At(int ms) {
  return TimePoint(std::chrono::milliseconds(ms));
}

TEST(Percentile, IsTheSmallestValueThatSoManyDoNotExceed) {
  EXPECT_EQ(Percentile({}, 50), 0);
  EXPECT_EQ(Percentile({3, 1, 2}, 50), 2);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 50), 2);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 99), 4);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0), 1);
}

TEST(ServingMetrics, CountWhatCameInTheWindow) {
  SequenceRecord sequence{.arrivals = {{At(90), 5}, {At(120), 2}, {At(160), 3}, {At(1100), 7}},
                          .prompt_tokens = 40,
                          .cached_tokens = 10,
                          .finished = true};
  SequenceRecord later{.arrivals = {{At(400), 1}}, .prompt_tokens = 40, .finished = true};
  LoadRecord record;
  record.begin = At(100);
  record.end = At(1100);
  record.calls.push_back({.sent = At(50), .due = At(50), .sequences = {sequence}});
  record.calls.push_back({.sent = At(300), .due = At(300), .sequences = {later}});

  const nlohmann::json metrics = ServingMetrics(record, {});
  EXPECT_DOUBLE_EQ(metrics.at("seconds"), 1);
  EXPECT_DOUBLE_EQ(metrics.at("tokens_per_second"), 6);  // 2, 3 and 1
  EXPECT_DOUBLE_EQ(metrics.at("calls_per_second"), 1);   // the first ended after the window
  EXPECT_DOUBLE_EQ(metrics.at("ttft_ms_max"), 100);      // the first's came before it
  EXPECT_DOUBLE_EQ(metrics.at("gap_ms_p50"), 30);
  EXPECT_DOUBLE_EQ(metrics.at("gap_ms_max"), 40);
  EXPECT_DOUBLE_EQ(metrics.at("cached_percent"), 12.5);
  EXPECT_FALSE(metrics.contains("host_percent"));
}

TEST(ServingMetrics, OfAnOpenLoopCountFromWhenCallsWereDue) {
  LoadRecord record;
  record.is_open = true;
  record.begin = At(100);
  record.end = At(200);
  // Due before the window; due in it, sent late and done after it; refused.
  record.calls.push_back(
      {.sent = At(90), .due = At(90), .sequences = {{.arrivals = {{At(150), 1}}}}});
  record.calls.push_back(
      {.sent = At(190),
       .due = At(110),
       .sequences = {{.arrivals = {{At(210), 1}, {At(250), 4}}, .queue_ms = 3}}});
  record.calls.push_back({.sent = At(120),
                          .due = At(120),
                          .sequences = {{}},
                          .status = absl::ResourceExhaustedError("full")});
  const auto metrics = [&](double ttft_ms, double token_ms) {
    return ServingMetrics(record, {}, {.ttft_ms = ttft_ms, .token_ms = token_ms});
  };
  EXPECT_DOUBLE_EQ(metrics(1, 1).at("ttft_ms_max"), 100);
  EXPECT_DOUBLE_EQ(metrics(1, 1).at("e2e_ms_max"), 140);
  EXPECT_DOUBLE_EQ(metrics(1, 1).at("queue_ms_max"), 3);
  EXPECT_DOUBLE_EQ(metrics(1, 1).at("calls_per_second"), 10);
  EXPECT_DOUBLE_EQ(metrics(1, 1).at("refused_percent"), 50);
  // 100 ms to the first token, 10 ms for each of the others.
  EXPECT_DOUBLE_EQ(metrics(100, 10).at("good_calls_per_second"), 10);
  EXPECT_DOUBLE_EQ(metrics(100, 10).at("good_percent"), 50);
  EXPECT_DOUBLE_EQ(metrics(99, 10).at("good_percent"), 0);
  EXPECT_DOUBLE_EQ(metrics(100, 9).at("good_percent"), 0);
}

TEST(ServingMetrics, HostTimeIsAShareOfStepTime) {
  LoadRecord record;
  record.begin = At(0);
  record.end = At(1000);
  record.stats_at_begin = SchedulerStats{.steps = 10, .step_rows = 100};
  record.stats_at_end = SchedulerStats{.steps = 14, .step_rows = 356};
  record.stats_at_end->step_time = std::chrono::milliseconds(400);
  record.stats_at_end->host_time = std::chrono::milliseconds(8);
  record.peak_pages_in_use = 3;

  const nlohmann::json metrics = ServingMetrics(record, {.page_bytes = 100});
  EXPECT_DOUBLE_EQ(metrics.at("rows_per_step"), 64);
  EXPECT_DOUBLE_EQ(metrics.at("step_ms"), 100);
  EXPECT_DOUBLE_EQ(metrics.at("host_us_per_step"), 2000);
  EXPECT_DOUBLE_EQ(metrics.at("host_percent"), 2);
  EXPECT_EQ(metrics.at("peak_bytes_in_use"), 300);
}

TEST(ArrivalMetrics, SplitTheStreamsGapsAtTheArrival) {
  SequenceRecord stream{.arrivals = {{At(10), 1}, {At(20), 1}, {At(70), 1}, {At(90), 1}}};
  SequenceRecord arriving{.arrivals = {{At(80), 1}}};
  LoadRecord record;
  record.begin = At(0);
  record.end = At(100);
  record.calls.push_back({.sent = At(0), .sequences = {stream}});
  record.calls.push_back({.sent = At(30), .sequences = {arriving}});

  const nlohmann::json metrics = ArrivalMetrics(record);
  EXPECT_DOUBLE_EQ(metrics.at("arrival_ttft_ms"), 50);
  EXPECT_DOUBLE_EQ(metrics.at("before_gap_ms_max"), 10);
  EXPECT_DOUBLE_EQ(metrics.at("during_gap_ms_max"), 50);
  EXPECT_DOUBLE_EQ(metrics.at("after_gap_ms_max"), 20);
  EXPECT_DOUBLE_EQ(metrics.at("during_tokens_per_second"), 20);
}

TEST(MedianOf, IsTakenOfEachNumber) {
  const nlohmann::json medians =
      MedianOf({{{"a", 1}, {"b", 30}}, {{"a", 3}, {"b", 10}}, {{"a", 2}, {"b", 20}}});
  EXPECT_EQ(medians, (nlohmann::json{{"a", 2.0}, {"b", 20.0}}));
}

}  // namespace
}  // namespace photon
