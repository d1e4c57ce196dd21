#include "bench/engine_alone.h"

#include <gtest/gtest.h>

#include "bench/idle_engine.h"
#include "tests/scheduler/fake_engine.h"

namespace photon {
namespace {

// The fake engine refuses steps that break the contract of engine/engine.h.
TEST(EngineAlone, KeepsToTheEnginesContract) {
  FakeEngine engine;
  const auto speed = EngineTokensPerSecond(engine, 3, 8, 20, 1);
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_GT(*speed, 0);
  EXPECT_EQ(engine.steps, 2 * (2 + 5));  // two prompts of 8 fit 16 prefill tokens
  EXPECT_TRUE(EngineTokensPerSecond(engine, 1, 0, 4, 1).ok());
}

TEST(EngineAlone, SaysWhatTheShapeCannotHold) {
  FakeEngine engine;
  EXPECT_EQ(EngineTokensPerSecond(engine, 5, 8, 8, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(EngineTokensPerSecond(engine, 1, 8, 1000, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

class CountTokens final : public TokenSink {
 public:
  bool OnTokens(int row, std::span<const SampledToken> tokens) override {
    count += static_cast<int>(tokens.size());
    return row != 1;  // the second row has enough after its first
  }
  int count = 0;
};

TEST(IdleEngine, ReportsASlotOfEachRowThatWantsMore) {
  IdleEngine engine(IdleEngine::Shape(100, 256, 4, 4));
  CountTokens sink;
  const std::vector<TokenId> tail(5, 1);
  const std::vector<Row> rows = {
      {.cached_tokens = 16}, {.cached_tokens = 16}, {.input = tail}, {.decode = false}};
  ASSERT_TRUE(engine.Step({}, rows, sink).ok());
  EXPECT_EQ(sink.count, 16 + 1 + 11);
}

}  // namespace
}  // namespace photon
