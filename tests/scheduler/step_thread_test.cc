#include "scheduler/step_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/gate.h"

namespace photon {
namespace {

using ::testing::ElementsAre;

// Reports two tokens of row 1, and one of row 0 when the gate was opened.
class TwoReports : public FakeEngine {
 public:
  absl::Status Step(std::span<const PageCopy>, std::span<const Row>, TokenSink& sink) override {
    const std::vector<TokenLogprob> first = {{.token = 10, .logprob = -1}};
    const std::vector<TokenLogprob> second = {{.token = 20, .logprob = -2}, {21, -3}};
    sink.OnTokens(1, std::array<SampledToken, 2>{{{.token = 1, .top = first}, {.token = 2}}});
    sink.OnSlotEnd();
    gate.Pass();
    sink.OnTokens(0, std::array<SampledToken, 1>{{{.token = 3, .top = second}}});
    return absl::OkStatus();
  }
  Gate gate;
};

struct PublishingSink : TokenSink {
  bool OnTokens(int row, std::span<const SampledToken> tokens) override {
    thread->Report(row, tokens, /*last=*/row == 0);
    return true;
  }
  void OnSlotEnd() override { thread->Publish(); }
  StepThread* thread = nullptr;
};

TEST(StepThread, WhatIsPublishedIsAppendedToWhatWasTaken) {
  TwoReports engine;
  FakeClock clock;
  StepSignal signal;
  PublishingSink sink;
  StepThread thread(&engine, &clock, &signal);
  sink.thread = &thread;
  thread.Start({}, {}, &sink);

  TokenBatch batch;
  signal.Wait();
  EXPECT_FALSE(thread.Take(batch).has_value());
  EXPECT_FALSE(signal.has_ended());
  ASSERT_EQ(batch.events.size(), 1u);
  engine.gate.Open();
  while (!signal.has_ended()) std::this_thread::yield();
  const std::optional<StepResult> result = thread.Take(batch);
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(result->status.ok());
  EXPECT_FALSE(signal.has_ended());

  ASSERT_EQ(batch.events.size(), 2u);
  EXPECT_EQ(batch.events[0].row, 1);
  EXPECT_EQ(batch.events[0].count, 2);
  EXPECT_FALSE(batch.events[0].last);
  EXPECT_EQ(batch.events[1].row, 0);
  EXPECT_EQ(batch.events[1].first, 2);
  EXPECT_TRUE(batch.events[1].last);
  std::vector<TokenId> tokens, top;
  for (const TokenBatch::Token& token : batch.tokens) tokens.push_back(token.id);
  EXPECT_THAT(tokens, ElementsAre(1, 2, 3));
  const TokenBatch::Token& last = batch.tokens.back();
  for (int i = 0; i < last.num_top; ++i) top.push_back(batch.top[last.first_top + i].token);
  EXPECT_THAT(top, ElementsAre(20, 21));
}

}  // namespace
}  // namespace photon
