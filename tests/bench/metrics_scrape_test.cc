#include "bench/metrics_scrape.h"

#include <gtest/gtest.h>

namespace photon {
namespace {

TEST(ParseMetrics, SumsSeriesOfANameAndLeavesOutBuckets) {
  const ScrapedMetrics metrics = ParseMetrics(
      "# HELP photon_requests_total Requests\n"
      "# TYPE photon_requests_total counter\n"
      "photon_requests_total{finish_reason=\"length\",model_name=\"a b\"} 3\n"
      "photon_requests_total{finish_reason=\"cancelled\"} 4\n"
      "photon_step_duration_seconds_bucket{le=\"0.1\"} 9\n"
      "photon_step_duration_seconds_sum 1.5e-1\n"
      "up 1\n");
  EXPECT_EQ(metrics, (ScrapedMetrics{{"photon_requests_total", 7},
                                     {"photon_step_duration_seconds_sum", 0.15},
                                     {"up", 1}}));
}

TEST(MetricsBetween, SubtractsWhatOnlyGrows) {
  EXPECT_EQ(MetricsBetween({{"a_total", 5}, {"b_sum", 1}, {"gauge", 7}},
                           {{"a_total", 8}, {"b_sum", 1.5}, {"gauge", 2}, {"new_total", 4}}),
            (ScrapedMetrics{{"a_total", 3}, {"b_sum", 0.5}, {"gauge", 2}, {"new_total", 4}}));
}

TEST(ScrapeMetrics, SaysThatNobodyAnswers) {
  // Port 1 is nobody's.
  EXPECT_EQ(ScrapeMetrics("127.0.0.1:1").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace photon
