#include "server/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/scheduler/fake_clock.h"
#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(SupervisorOptions, NamesEveryProblem) {
  EXPECT_THAT(SupervisorOptions().Validate(), IsEmpty());
  SupervisorOptions options;
  options.max_step_age = seconds(-1);
  options.step_timeout = seconds(-1);
  options.probe_interval = seconds(-1);
  EXPECT_EQ(options.Validate().size(), 3u);
  options = {.max_step_age = seconds(5), .step_timeout = seconds(4)};
  EXPECT_THAT(options.Validate(), ElementsAre(HasSubstr("at least max_step_age")));
}

template <typename Condition>
bool Eventually(const Condition& condition) {
  const auto give_up = std::chrono::steady_clock::now() + seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::yield();
  }
  return true;
}

// A model whose engine waits for a gate, and a supervisor that looks when it is told to.
class SupervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    engine_.on_step = [this](std::span<const Row>) {
      const absl::Status passed = gate_.Pass();
      return result_.ok() ? passed : result_;
    };
    auto model =
        ServedModel::Create({.facts = TestModel(), .engines = {Borrowed<Engine>(&engine_)}},
                            {.clock = &clock_, .metrics = &metrics_});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    model_->Start([](const absl::Status&) {});
    supervisor_ = std::make_unique<Supervisor>(
        options_, &clock_,
        Supervisor::Hooks{.models = [this] { return std::vector{model_}; },
                          .set_healthy = [this](bool healthy) { health_.push_back(healthy); },
                          .on_stuck = [this](const absl::Status& why) { stuck_.push_back(why); }});
  }

  void TearDown() override {
    gate_.Open();
    model_->Retire(TimePoint::min());
  }

  // Looks until the steps that the gate has let through have ended.
  void CheckUntilIdle() {
    ASSERT_TRUE(Eventually([this] { return !model_->busy_since().has_value(); }));
    supervisor_->Check();
  }

  // The first probe passes.
  void Prove() {
    supervisor_->Check();
    gate_.AwaitStep(1);
    gate_.Allow(1);
    ASSERT_TRUE(Eventually([this] {
      supervisor_->Check();
      return !health_.empty();
    }));
    ASSERT_THAT(health_, ElementsAre(true));
    CheckUntilIdle();
  }

  class Listener : public SequenceListener {
   public:
    std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return std::nullopt; }
    void OnFinish(SequenceEnd, const SequenceStats&) override {}
  };

  void Submit() {
    SequenceRequest request;
    request.max_tokens = 1;
    ASSERT_TRUE(model_->scheduler().Submit(request, std::make_unique<Listener>()).ok());
  }

  const SupervisorOptions options_ = {
      .max_step_age = seconds(10), .step_timeout = seconds(60), .probe_interval = seconds(30)};
  FakeClock clock_;
  StepGate gate_;
  absl::Status result_;
  FakeEngine engine_{TestShape()};
  ServingMetrics metrics_{"test", "1", TestShape()};
  std::shared_ptr<ServedModel> model_;
  std::unique_ptr<Supervisor> supervisor_;
  std::vector<bool> health_;  // what it changed to
  std::vector<absl::Status> stuck_;
};

TEST_F(SupervisorTest, AModelIsHealthyOnceItHasAnsweredAProbe) {
  supervisor_->Check();
  gate_.AwaitStep(1);
  supervisor_->Check();
  EXPECT_THAT(health_, IsEmpty());
  gate_.Allow(1);
  EXPECT_TRUE(Eventually([this] {
    supervisor_->Check();
    return !health_.empty();
  }));
  EXPECT_THAT(health_, ElementsAre(true));
}

TEST_F(SupervisorTest, AProbeIsInNoStatistics) {
  Prove();
  const SchedulerStats stats = model_->scheduler().stats();
  EXPECT_EQ(stats.steps, 0);
  EXPECT_EQ(stats.step_rows, 0);
  EXPECT_EQ(stats.prompt_tokens, 0);
  EXPECT_EQ(stats.generated_tokens, 0);
  EXPECT_EQ(stats.wasted_slots, 0);
  for (const int64_t count : stats.finished) EXPECT_EQ(count, 0);
  const std::string text = metrics_.Text(stats, {}, {});
  EXPECT_THAT(text, HasSubstr("photon_step_duration_seconds_count{model_name=\"test\"} 0"));
}

TEST_F(SupervisorTest, AStepThatTakesLongIsUnhealthyUntilItEnds) {
  Prove();
  Submit();
  gate_.AwaitStep(2);
  clock_.Advance(seconds(9));
  supervisor_->Check();
  EXPECT_THAT(health_, ElementsAre(true));
  clock_.Advance(seconds(1));
  supervisor_->Check();
  EXPECT_THAT(health_, ElementsAre(true, false));
  gate_.Allow(1);
  CheckUntilIdle();
  EXPECT_THAT(health_, ElementsAre(true, false, true));
  EXPECT_THAT(stuck_, IsEmpty());
}

TEST_F(SupervisorTest, AStepThatDoesNotEndIsStuckOnceAndForAll) {
  Prove();
  Submit();
  gate_.AwaitStep(2);
  clock_.Advance(seconds(59));
  supervisor_->Check();
  EXPECT_THAT(stuck_, IsEmpty());
  clock_.Advance(seconds(1));
  supervisor_->Check();
  supervisor_->Check();
  ASSERT_EQ(stuck_.size(), 1u);
  EXPECT_EQ(stuck_[0].code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(stuck_[0].message()), HasSubstr("has taken 60 s"));
}

TEST_F(SupervisorTest, AFirstProbeThatDoesNotEndIsStuckToo) {
  supervisor_->Check();
  gate_.AwaitStep(1);
  clock_.Advance(seconds(60));
  supervisor_->Check();
  EXPECT_EQ(stuck_.size(), 1u);
  EXPECT_THAT(health_, IsEmpty());
}

TEST_F(SupervisorTest, AnIdleModelIsProbedNowAndThen) {
  Prove();
  clock_.Advance(seconds(29));
  supervisor_->Check();
  EXPECT_FALSE(model_->busy_since().has_value());
  clock_.Advance(seconds(1));
  supervisor_->Check();
  gate_.AwaitStep(2);
  clock_.Advance(seconds(10));
  supervisor_->Check();
  EXPECT_THAT(health_, ElementsAre(true, false));
  gate_.Allow(1);
  CheckUntilIdle();
  EXPECT_TRUE(Eventually([this] {
    supervisor_->Check();
    return health_.size() == 3;
  }));
  EXPECT_THAT(health_, ElementsAre(true, false, true));
}

TEST_F(SupervisorTest, AModelThatWorksIsNotProbed) {
  Prove();
  Submit();
  gate_.AwaitStep(2);
  supervisor_->Check();
  clock_.Advance(seconds(9));
  gate_.Allow(1);
  CheckUntilIdle();
  // 30 s after the last sign of life, not after the last probe.
  clock_.Advance(seconds(29));
  supervisor_->Check();
  EXPECT_EQ(engine_.steps, 2);
}

// Two devices, the second of which answers only when it is let.
class SupervisorOfDevicesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    second_.on_step = [this](std::span<const Row>) { return gate_.Pass(); };
    auto model = ServedModel::Create(
        {.facts = TestModel(), .engines = {Borrowed<Engine>(&first_), Borrowed<Engine>(&second_)}},
        // A probe of both needs no place in the queue.
        {.clock = &clock_, .metrics = &metrics_, .scheduler = {.max_queue = 1}});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    model_->Start([](const absl::Status&) {});
    supervisor_ = std::make_unique<Supervisor>(
        SupervisorOptions{.max_step_age = seconds(10), .step_timeout = seconds(60)}, &clock_,
        Supervisor::Hooks{.models = [this] { return std::vector{model_}; },
                          .set_healthy = [this](bool healthy) { health_.push_back(healthy); },
                          .on_stuck = [this](const absl::Status& why) { stuck_.push_back(why); }});
  }

  void TearDown() override {
    gate_.Open();
    model_->Retire(TimePoint::min());
  }

  FakeClock clock_;
  StepGate gate_;
  FakeEngine first_{TestShape()}, second_{TestShape()};
  ServingMetrics metrics_{"test", "1", TestShape()};
  std::shared_ptr<ServedModel> model_;
  std::unique_ptr<Supervisor> supervisor_;
  std::vector<bool> health_;
  std::vector<absl::Status> stuck_;
};

TEST_F(SupervisorOfDevicesTest, AModelIsHealthyOnceEveryDeviceHasAnswered) {
  supervisor_->Check();
  gate_.AwaitStep(1);
  supervisor_->Check();
  EXPECT_THAT(health_, IsEmpty());
  gate_.Allow(1);
  EXPECT_TRUE(Eventually([this] {
    supervisor_->Check();
    return !health_.empty();
  }));
  EXPECT_THAT(health_, ElementsAre(true));
  EXPECT_EQ(first_.steps, 1);
  EXPECT_EQ(second_.steps, 1);
}

TEST_F(SupervisorOfDevicesTest, OneDeviceThatDoesNotAnswerIsStuck) {
  supervisor_->Check();
  gate_.AwaitStep(1);
  clock_.Advance(seconds(60));
  supervisor_->Check();
  EXPECT_EQ(stuck_.size(), 1u);
  EXPECT_THAT(health_, IsEmpty());
}

}  // namespace
}  // namespace photon
