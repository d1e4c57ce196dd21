#include "bench/serving_load.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "bench/in_process_target.h"
#include "tests/scheduler/fake_engine.h"

namespace photon {
namespace {

class ServingLoad : public testing::Test {
 protected:
  void SetUp() override {
    auto target = InProcessTarget::Create({}, &engine_, {});
    ASSERT_TRUE(target.ok()) << target.status();
    target_ = *std::move(target);
  }

  static ServingCall Call(std::vector<TokenId> prompt, int max_tokens) {
    return {.prompts = {std::move(prompt)}, .max_tokens = max_tokens};
  }

  FakeEngine engine_;
  std::unique_ptr<InProcessTarget> target_;
};

int CountTokens(const SequenceRecord& sequence) {
  int tokens = 0;
  for (const Arrival& arrival : sequence.arrivals) tokens += arrival.tokens;
  return tokens;
}

TEST_F(ServingLoad, ACallHasASequencePerPromptAndSample) {
  const auto record = RunTogether(*target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> {
    return std::vector<ServingCall>{
        {.prompts = {{1, 2, 3}, {4, 5, 6, 7, 8}}, .samples = 3, .max_tokens = 7}};
  });
  ASSERT_TRUE(record.ok()) << record.status();
  ASSERT_EQ(record->calls.size(), 1);
  ASSERT_EQ(record->calls[0].sequences.size(), 6);
  for (int i = 0; i < 6; ++i) {
    const SequenceRecord& sequence = record->calls[0].sequences[i];
    EXPECT_TRUE(sequence.finished);
    EXPECT_EQ(CountTokens(sequence), 7);
    EXPECT_EQ(sequence.prompt_tokens, i < 3 ? 3 : 5);
  }
  EXPECT_GT(record->stats_at_end->steps, record->stats_at_begin->steps);
}

TEST_F(ServingLoad, QuestionsFindTheirDocumentInTheCache) {
  const std::vector<TokenId> text(32, 9);
  const auto document = target_->CreateDocument(text);
  ASSERT_TRUE(document.ok()) << document.status();
  const auto record = RunTogether(*target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> {
    return std::vector<ServingCall>{
        {.document = *document, .prompts = {{1, 2}, {3, 4}}, .max_tokens = 4}};
  });
  ASSERT_TRUE(record.ok()) << record.status();
  for (const SequenceRecord& sequence : record->calls[0].sequences) {
    EXPECT_EQ(sequence.prompt_tokens, 34);
    EXPECT_EQ(sequence.cached_tokens, 32);
  }
  EXPECT_TRUE(target_->DeleteDocument(*document).ok());
  EXPECT_EQ(target_->DeleteDocument(*document).code(), absl::StatusCode::kNotFound);
}

TEST_F(ServingLoad, AClosedLoopLeavesNothingRunning) {
  const auto record =
      RunClosedLoop(*target_, 3, std::chrono::milliseconds(1), std::chrono::milliseconds(20),
                    [](int index) { return Call({index % 1000, 1, 2}, 64); });
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_GE(record->calls.size(), 3);
  // A call that is done ends before the next begins, so what is left here is idle.
  const auto last = RunTogether(*target_, []() -> absl::StatusOr<std::vector<ServingCall>> {
    return std::vector<ServingCall>{Call({7}, 1)};
  });
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_LE(target_->stats()->num_running, 1);
  EXPECT_EQ(target_->stats()->num_waiting, 0);
}

TEST_F(ServingLoad, ACallThatIsRefusedEndsTheLoad) {
  const auto record =
      RunClosedLoop(*target_, 2, std::chrono::milliseconds(1), std::chrono::seconds(60),
                    [](int index) { return Call({1, 2, 3}, index < 2 ? 4 : 1'000'000); });
  EXPECT_EQ(record.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ServingLoad, AnOpenLoopSendsACallAtEachArrivalAndWaitsForAll) {
  const std::vector<double> arrivals = {0.0, 0.001, 0.001, 0.004};
  const TimePoint before = SteadyClock().Now();
  const auto record = RunOpenLoop(*target_, arrivals, Duration::zero(),
                                  [](int index) { return Call({index, 1, 2}, 40); });
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(record->is_open);
  ASSERT_EQ(record->calls.size(), arrivals.size());
  for (const CallRecord& call : record->calls) {
    EXPECT_TRUE(call.sequences[0].finished);
    EXPECT_GE(call.due, before);
    EXPECT_GE(call.sent, call.due);
  }
}

TEST_F(ServingLoad, AnOpenLoopRecordsRefusals) {
  // The scheduler holds its first step until the queue has overflown.
  std::promise<void> overflown;
  std::shared_future<void> hold = overflown.get_future().share();
  engine_.on_step = [hold](std::span<const Row>) {
    hold.wait();
    return absl::OkStatus();
  };
  const int calls = 2 * SchedulerOptions().max_queue;
  const auto record =
      RunOpenLoop(*target_, std::vector<double>(calls, 0.0), Duration::zero(), [&](int index) {
        if (index == calls - 1) overflown.set_value();
        return Call({index % 1000, 1, 2}, 1);
      });
  ASSERT_TRUE(record.ok()) << record.status();
  ASSERT_EQ(record->calls.size(), calls);
  int refused = 0;
  for (const CallRecord& call : record->calls) {
    if (absl::IsResourceExhausted(call.status)) ++refused;
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, calls);
}

TEST_F(ServingLoad, AnArrivalAmongStreamsThatEndEarlySaysSo) {
  const auto record = RunArrival(*target_, {Call({1}, 4)}, Call({2}, 4), std::chrono::seconds(60));
  EXPECT_EQ(record.status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace photon
