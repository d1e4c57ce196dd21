#include "client/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "client/plan_text.h"
#include "engine/cpu/latent_pages.h"
#include "engine/model/checkpoint.h"
#include "engine/model/cost_model.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kGiB = int64_t{1} << 30;

ModelConfig Config(const std::string& name) {
  auto config = LoadModelConfig(std::string(PHOTON_MODELS_DIR) + "/" + name + "/config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

// Rates measured on one H100: docs/benchmarks/cuda-engine.md's card.
PlanOptions MeasuredH100(const std::string& model) {
  PlanOptions options{.config = Config(model)};
  options.machine = {.name = "h100",
                     .is_gpu = true,
                     .memory_bytes = 80 * kGiB,
                     .bytes_per_second = 2.97e12,
                     .flops = 770e12};
  options.context = 1152;
  options.max_rows = 1024;
  return options;
}

double TokensPerSecond(const Plan& plan, const std::string& phase, int rows) {
  for (const Rate& rate : plan.rates) {
    if (rate.phase == phase && rate.rows == rows) return rate.tokens_per_second;
  }
  ADD_FAILURE() << phase << " with " << rows << " rows";
  return 0;
}

TEST(Plan, GivesThePapersShapesTheirBytesPerToken) {
  const auto small = MakePlan(MeasuredH100("photon-600m"));
  const auto large = MakePlan(MeasuredH100("photon-1.2b"));
  ASSERT_TRUE(small.ok() && large.ok());
  // 2 * layers * heads * head size * 2 bytes / 16.
  EXPECT_EQ(small->kv_bytes_per_token, 2 * 4 * 1664 * 2 / 16);
  EXPECT_EQ(small->kv_bytes_per_token, 1664);
  EXPECT_EQ(large->kv_bytes_per_token, 2880);
  EXPECT_EQ(small->parameters, 646'399'104);
  EXPECT_EQ(small->weight_bytes, 2 * 646'399'104);
}

TEST(Plan, CountsWholePagesOfASequence) {
  PlanOptions options = MeasuredH100("photon-600m");
  auto plan = MakePlan(options);
  ASSERT_TRUE(plan.ok());
  // 256 tokens of keys and values, and a top state of 1,664 floats: both multiples of 256 bytes.
  EXPECT_EQ(plan->page_bytes, 256 * 1664 + 1664 * 4);
  EXPECT_EQ(plan->pages_per_sequence, 5);  // 1,152 tokens
  EXPECT_EQ(plan->bytes_per_sequence, 5 * plan->page_bytes);
  options.context = 1280;
  EXPECT_EQ(MakePlan(options)->pages_per_sequence, 5);
  options.context = 1281;
  EXPECT_EQ(MakePlan(options)->pages_per_sequence, 6);
}

TEST(Plan, HasPagesOfTheSizeThatTheEngineAllocates) {
  for (const char* model : {"demo", "photon-600m", "photon-1.2b"}) {
    const ModelConfig config = Config(model);
    for (const int page_tokens : {16, 256, 1024}) {
      for (const int element_bytes : {2, 4}) {
        EXPECT_EQ(CachePageBytes(config, page_tokens, element_bytes, 64),
                  PageLayout(config, page_tokens, element_bytes).page_bytes)
            << model << ", " << page_tokens << " tokens, " << element_bytes << " bytes";
      }
    }
  }
}

TEST(Plan, BoundsTokensPerSecondByProductsOrReads) {
  const auto plan = MakePlan(MeasuredH100("photon-600m"));
  ASSERT_TRUE(plan.ok());
  // 0.58 GFLOP a token decoded and 0.08 prefilled; one row reads 505 MB of weights a token.
  EXPECT_NEAR(TokensPerSecond(*plan, "exact", 1024), 1'300'000, 0.02 * 1'300'000);
  EXPECT_NEAR(TokensPerSecond(*plan, "recgen", 1024), 1'470'000, 0.02 * 1'470'000);
  EXPECT_NEAR(TokensPerSecond(*plan, "exact", 1), 5'900, 0.02 * 5'900);
  EXPECT_NEAR(TokensPerSecond(*plan, "recgen", 1), 17'600, 0.02 * 17'600);
  EXPECT_NEAR(TokensPerSecond(*plan, "prefill", 1), 9'600'000, 0.02 * 9'600'000);
  for (const Rate& rate : plan->rates) {
    EXPECT_EQ(rate.is_bound_by_reads, rate.rows == 1 && rate.phase != "prefill") << rate.phase;
  }
  const auto large = MakePlan(MeasuredH100("photon-1.2b"));
  EXPECT_NEAR(TokensPerSecond(*large, "exact", 1024), 680'000, 0.02 * 680'000);
  EXPECT_NEAR(TokensPerSecond(*large, "prefill", 1), 4'600'000, 0.02 * 4'600'000);
}

TEST(Plan, GivesTheCacheItsShareOfWhatWeightsAndWorkLeave) {
  PlanOptions options = MeasuredH100("photon-600m");
  options.kv_memory = MemoryBudget::ShareOfFree(0.5);
  const auto plan = MakePlan(options);
  ASSERT_TRUE(plan.ok());
  const int64_t free = 80 * kGiB - plan->weight_bytes - plan->working_bytes;
  EXPECT_EQ(plan->pool_bytes, free / 2);
  EXPECT_EQ(plan->num_pages, plan->pool_bytes / plan->page_bytes);
  EXPECT_EQ(plan->sequences, plan->num_pages / 5);
  EXPECT_EQ(plan->kv_memory, "50%");
}

TEST(Plan, RunsAsManyRowsAsTheServerDoesUnlessAsked) {
  PlanOptions options = MeasuredH100("photon-600m");
  options.max_rows = 0;
  EXPECT_EQ(MakePlan(options)->max_rows, 256);
  options.machine.is_gpu = false;
  EXPECT_EQ(MakePlan(options)->max_rows, 64);
}

TEST(Plan, SaysWhatSoManySequencesNeed) {
  PlanOptions options{.config = Config("demo"), .machine = {.name = "cpu"}};
  options.sequences = 10;
  const auto plan = MakePlan(options);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->sequences, 10);
  EXPECT_EQ(plan->pool_bytes, 10 * plan->bytes_per_sequence);
  EXPECT_GE(plan->memory_bytes, 2 * plan->weight_bytes + plan->pool_bytes);
  EXPECT_EQ(plan->host_bytes, plan->memory_bytes);
  EXPECT_TRUE(plan->rates.empty());
  EXPECT_THAT(PlanText(*plan, std::nullopt), HasSubstr("not told"));
}

TEST(Plan, RefusesWhatDoesNotFit) {
  PlanOptions options = MeasuredH100("photon-600m");
  options.machine.memory_bytes = kGiB;
  EXPECT_EQ(MakePlan(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.machine.memory_bytes = 80 * kGiB;
  options.kv_memory = MemoryBudget::Bytes(80 * kGiB);
  EXPECT_EQ(MakePlan(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.kv_memory = MemoryBudget::Bytes(1);
  EXPECT_THAT(std::string(MakePlan(options).status().message()),
              HasSubstr("holds no sequence of 1152 tokens"));
}

TEST(Plan, NamesTheOptionThatIsOutOfRange) {
  PlanOptions options = MeasuredH100("photon-600m");
  options.context = 4097;
  EXPECT_THAT(std::string(MakePlan(options).status().message()),
              HasSubstr("context: expected 1 to 4096, got 4097"));
  options.context = 1;
  options.max_rows = -1;
  EXPECT_THAT(std::string(MakePlan(options).status().message()), HasSubstr("max-rows: expected"));
  options = {.config = Config("demo"), .machine = {.name = "cpu"}};
  EXPECT_THAT(std::string(MakePlan(options).status().message()), HasSubstr("memory: needed"));
}

TEST(Measurements, StandBesideTheBoundAtTheirOwnRowsAndContext) {
  const PlanOptions options = MeasuredH100("photon-600m");
  const std::string path = std::string(PHOTON_BENCHMARKS_DIR) + "/cuda-photon-600m.json";
  const auto measured = ReadMeasurements(path, options);
  ASSERT_TRUE(measured.ok()) << measured.status();
  ASSERT_FALSE(measured->rows.empty());
  for (const Measurement& m : measured->rows) {
    EXPECT_DOUBLE_EQ(m.share_of_bound,
                     m.tokens_per_second /
                         BoundRate(options, m.phase, m.rows, measured->context).tokens_per_second);
    EXPECT_LT(m.share_of_bound, 1) << m.phase << ", " << m.rows;
  }
  EXPECT_THAT(PlanText(*MakePlan(options), *measured),
              AllOf(HasSubstr("Measured on " + measured->device), HasSubstr("of the bound")));
}

TEST(Measurements, OfAnotherModelAreRefused) {
  const std::string path = std::string(PHOTON_BENCHMARKS_DIR) + "/cuda-photon-600m.json";
  EXPECT_THAT(std::string(ReadMeasurements(path, MeasuredH100("photon-1.2b")).status().message()),
              HasSubstr("is of a model of 646399104 parameters"));
  EXPECT_EQ(ReadMeasurements("/nowhere", MeasuredH100("demo")).status().code(),
            absl::StatusCode::kNotFound);
  const std::string config = std::string(PHOTON_MODELS_DIR) + "/demo/config.json";
  EXPECT_THAT(std::string(ReadMeasurements(config, MeasuredH100("demo")).status().message()),
              HasSubstr("no report of photon-engine-bench"));
}

TEST(PlanJson, HasTheNumbersOfThePlan) {
  const auto plan = MakePlan(MeasuredH100("photon-600m"));
  const auto json = nlohmann::json::parse(PlanJson(*plan, std::nullopt));
  EXPECT_EQ(json["kv_bytes_per_token"], 1664);
  EXPECT_EQ(json["sequences"], plan->sequences);
  EXPECT_EQ(json["bounds"].size(), plan->rates.size());
  EXPECT_FALSE(json.contains("measured"));
}

TEST(PlanKubernetes, AsksForTheCardOrForThreads) {
  const auto gpu = MakePlan(MeasuredH100("photon-600m"));
  EXPECT_THAT(PlanKubernetes(*gpu, {.command = "photon plan", .cpus = 4}),
              AllOf(HasSubstr("nvidia.com/gpu: \"1\""), HasSubstr("cpu: 4000m"),
                    HasSubstr("value: \"90%\""), Not(HasSubstr("PHOTON_THREADS"))));
  PlanOptions options{.config = Config("demo"), .machine = {.name = "cpu"}};
  options.sequences = 10;
  const auto cpu = MakePlan(options);
  EXPECT_THAT(PlanKubernetes(*cpu, {.command = "photon plan", .cpus = 2}),
              AllOf(HasSubstr("PHOTON_THREADS\n              value: \"2\""),
                    HasSubstr("value: \"" + std::to_string(cpu->pool_bytes) + "\""),
                    Not(HasSubstr("nvidia"))));
}

}  // namespace
}  // namespace photon
