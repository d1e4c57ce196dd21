#include "server/metrics/serving_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/metrics/measured_engine.h"
#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

// Takes whatever comes.
class NoListener final : public SequenceListener {
 public:
  std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return std::nullopt; }
  void OnFinish(SequenceEnd, const SequenceStats&) override {}
};

constexpr ServingMetrics::Model kModel = {
    .page_tokens = 8, .num_pages = 32, .generation = 2, .reloads_done = 1, .reloads_failed = 3};

class ServingMetricsTest : public ::testing::Test {
 protected:
  std::string Text(const SchedulerStats& stats = {}) const {
    return metrics_.Text(stats, kModel, {});
  }

  // `sample` is a line without the model's label.
  void ExpectSample(const std::string& name, const std::string& labels, const std::string& value,
                    const SchedulerStats& stats = {}) const {
    const std::string separator = labels.empty() ? "" : ",";
    const std::string line =
        absl::StrCat("photon_", name, "{model_name=\"tiny\"", separator, labels, "} ", value);
    const std::vector<std::string> lines = absl::StrSplit(Text(stats), '\n');
    EXPECT_THAT(lines, Contains(line));
  }

  FakeClock clock_;
  ServingMetrics metrics_{"tiny", "1.2.3", FakeEngine::DefaultShape()};
};

TEST_F(ServingMetricsTest, SchedulerStatsAreReadWhenTheyAreScraped) {
  SchedulerStats stats;
  stats.num_running = 3;
  stats.num_waiting = 2;
  stats.num_pages = 32;
  stats.pages_free = 8;
  stats.pages_in_use = 12;
  stats.pages_cached = 8;
  stats.pages_pinned = 4;
  stats.generated_tokens = 12'345'678;
  stats.rejected_queue_full = 9;
  stats.host_time = milliseconds(250);
  ExpectSample("num_requests_running", "", "3", stats);
  ExpectSample("num_requests_waiting", "", "2", stats);
  ExpectSample("kv_cache_usage_ratio", "", "0.5", stats);
  ExpectSample("latent_pages", R"(state="cached")", "8", stats);
  ExpectSample("generation_tokens_total", "", "12345678", stats);
  ExpectSample("admission_rejections_total", R"(reason="queue_full")", "9", stats);
  ExpectSample("host_seconds_total", "", "0.25", stats);
  ExpectSample("model_generation", "", "2", stats);
  ExpectSample("model_reloads_total", R"(outcome="done")", "1", stats);
  ExpectSample("model_reloads_total", R"(outcome="failed")", "3", stats);
  ExpectSample("cache_config_info", R"(page_tokens="8",num_pages="32")", "1", stats);
}

TEST_F(ServingMetricsTest, DevicesAreNumbered) {
  SchedulerStats stats;
  stats.devices = {{.num_running = 1, .pages_free = 7}, {.num_running = 2, .pages_pinned = 3}};
  ExpectSample("device_num_requests_running", R"(device="0")", "1", stats);
  ExpectSample("device_num_requests_running", R"(device="1")", "2", stats);
  ExpectSample("device_latent_pages", R"(device="0",state="free")", "7", stats);
  ExpectSample("device_latent_pages", R"(device="1",state="pinned")", "3", stats);
}

TEST_F(ServingMetricsTest, RefusalsOfOthersAreReasonsToo) {
  const std::vector<ServingMetrics::Refusals> refusals = {{"token_rate", 4}};
  EXPECT_THAT(metrics_.Text({}, kModel, refusals),
              HasSubstr(R"(photon_admission_rejections_total{model_name="tiny",)"
                        R"(reason="token_rate"} 4)"));
}

TEST_F(ServingMetricsTest, ModelNamesAreEscaped) {
  const ServingMetrics metrics("a\"b\\c", "1", FakeEngine::DefaultShape());
  EXPECT_THAT(metrics.Text({}, {}, {}), HasSubstr(R"({model_name="a\"b\\c"} 0)"));
}

TEST_F(ServingMetricsTest, RequestsAreMeasuredFromTheirArrival) {
  const TimePoint arrival = clock_.Now();
  SequenceMeter meter(&metrics_, arrival);
  meter.OnTokens(1, arrival + milliseconds(30));
  meter.OnTokens(4, arrival + milliseconds(38));
  SequenceStats stats;
  stats.submitted = arrival;
  stats.first_step = arrival + milliseconds(10);
  stats.first_token = arrival + milliseconds(30);
  stats.finished = arrival + milliseconds(38);
  stats.generated_tokens = 5;
  meter.OnEnd(RequestEnd::kLength, stats);

  ExpectSample("time_to_first_token_seconds_sum", "", "0.03");
  ExpectSample("time_to_first_token_seconds_count", "", "1");
  // Four tokens, 2 ms each.
  ExpectSample("inter_token_latency_seconds_bucket", R"(le="0.001")", "0");
  ExpectSample("inter_token_latency_seconds_bucket", R"(le="0.002")", "4");
  ExpectSample("inter_token_latency_seconds_sum", "", "0.008");
  ExpectSample("time_per_output_token_seconds_sum", "", "0.002");
  ExpectSample("request_queue_time_seconds_sum", "", "0.01");
  ExpectSample("request_prefill_time_seconds_sum", "", "0.02");
  ExpectSample("e2e_request_latency_seconds_sum", "", "0.038");
  ExpectSample("requests_total", R"(finish_reason="length")", "1");
  ExpectSample("requests_total", R"(finish_reason="cancelled")", "0");
}

TEST_F(ServingMetricsTest, ARequestThatNeverRanHasAQueueTimeAlone) {
  SequenceMeter meter(&metrics_, clock_.Now());
  SequenceStats stats;
  stats.submitted = clock_.Now();
  stats.finished = clock_.Now() + milliseconds(500);
  meter.OnEnd(RequestEnd::kDeadline, stats);
  ExpectSample("request_queue_time_seconds_sum", "", "0.5");
  ExpectSample("request_prefill_time_seconds_count", "", "0");
  ExpectSample("time_to_first_token_seconds_count", "", "0");
  ExpectSample("time_per_output_token_seconds_count", "", "0");
}

TEST_F(ServingMetricsTest, TheTimeThatAReaderTakesIsNotTheStreams) {
  SequenceMeter meter(&metrics_, clock_.Now());
  meter.OnTokens(1, clock_.Now() + milliseconds(1));
  meter.OnPause();
  meter.OnTokens(1, clock_.Now() + milliseconds(9000));
  meter.OnTokens(1, clock_.Now() + milliseconds(9001));
  ExpectSample("inter_token_latency_seconds_count", "", "1");
  ExpectSample("inter_token_latency_seconds_sum", "", "0.001");
}

TEST_F(ServingMetricsTest, StepsOfTheEngineAreCountedWithTheirRows) {
  FakeEngine engine;
  engine.on_step = [this](std::span<const Row>) {
    clock_.Advance(milliseconds(20));
    return absl::OkStatus();
  };
  MeasuredEngine measured(&engine, &clock_, &metrics_);
  auto scheduler = Scheduler::Create(&measured, &clock_, {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  for (int i = 0; i < 3; ++i) {
    SequenceRequest request;
    request.prompt = {1, 2, 3};
    request.max_tokens = 1;
    ASSERT_TRUE(
        (*scheduler)->Submit(std::move(request), std::make_unique<NoListener>()).status().ok());
  }
  ASSERT_TRUE((*scheduler)->RunStep().ok());
  const SchedulerStats stats = (*scheduler)->stats();
  ExpectSample("step_rows_count", "", absl::StrCat(stats.steps), stats);
  ExpectSample("step_rows_sum", "", absl::StrCat(stats.step_rows), stats);
  ExpectSample("step_duration_seconds_sum", "", "0.02", stats);
}

TEST_F(ServingMetricsTest, TheProcessIsMeasuredUnderTheUsualNames) {
  const std::string text = Text();
  for (const char* name : {"process_resident_memory_bytes", "process_cpu_seconds_total",
                           "process_start_time_seconds", "process_open_fds"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("\n", name, " ")));
  }
  // Processor time counts in hundredths of a second, and may be none yet.
  EXPECT_THAT(text, Not(HasSubstr("\nprocess_resident_memory_bytes 0\n")));
  EXPECT_THAT(text, Not(HasSubstr("\nprocess_start_time_seconds 0\n")));
  EXPECT_THAT(text, Not(HasSubstr("\nprocess_open_fds 0\n")));
}

}  // namespace
}  // namespace photon
