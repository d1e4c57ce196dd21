// What goes on while the engine computes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "tests/scheduler/gate.h"
#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using ::testing::SizeIs;

// Reports a meta-context's tokens as its step's last act, so that they are left over for the next
// step, in which it first waits at the gate.
class AllAtTheEnd : public FakeEngine {
 public:
  absl::Status Step(std::span<const PageCopy>, std::span<const Row> rows,
                    TokenSink& sink) override {
    if (steps++ > 0) gate.Pass();
    for (size_t i = 0; i < rows.size(); ++i) {
      sink.OnTokens(static_cast<int>(i), std::vector<SampledToken>(4));
    }
    return absl::OkStatus();
  }
  Gate gate;
};

// Tells what it heard, as it hears it.
class CallingListener : public SequenceListener {
 public:
  using OnTokensCall = std::function<void(std::span<const SampledToken>)>;
  using OnFinishCall = std::function<void(SequenceEnd)>;

  CallingListener(OnTokensCall on_tokens, OnFinishCall on_finish)
      : on_tokens_(std::move(on_tokens)), on_finish_(std::move(on_finish)) {}

  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
    if (on_tokens_) on_tokens_(tokens);
    return std::nullopt;
  }
  void OnFinish(SequenceEnd end, const SequenceStats&) override {
    if (on_finish_) on_finish_(end);
  }

 private:
  const OnTokensCall on_tokens_;
  const OnFinishCall on_finish_;
};

// The engine goes on when the last step's tokens were heard: the test hangs if they come later.
TEST(Overlap, AStepsLastTokensAreHeardWhileTheNextIsComputed) {
  AllAtTheEnd engine;
  FakeClock clock;
  int heard = 0;
  const auto scheduler = *Scheduler::Create(&engine, &clock, {});
  const auto hear = [&](std::span<const SampledToken> tokens) {
    heard += static_cast<int>(tokens.size());
    engine.gate.Open();
  };
  ASSERT_TRUE(
      scheduler->Submit(Request({}, 40), std::make_unique<CallingListener>(hear, nullptr)).ok());
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(scheduler->RunStep().ok());
  scheduler->Flush();
  EXPECT_EQ(heard, 40);
}

// The engine goes on when a sequence that was submitted during its step has been admitted: to
// cache an empty text takes no step of its own.
TEST(Overlap, SubmissionsAreAdmittedWhileTheEngineComputes) {
  AllAtTheEnd engine;
  FakeClock clock;
  int admitted = 0;
  const auto scheduler = *Scheduler::Create(&engine, &clock, {});
  const auto submit = [&](std::span<const SampledToken>) {
    SequenceRequest empty = Request({}, 0);
    empty.pin_until = TimePoint::max();
    const auto admit = [&](SequenceEnd end) {
      if (end == SequenceEnd::kLength) ++admitted;
      engine.gate.Open();
    };
    ASSERT_TRUE(scheduler->Submit(empty, std::make_unique<CallingListener>(nullptr, admit)).ok());
  };
  ASSERT_TRUE(
      scheduler->Submit(Request({}, 40), std::make_unique<CallingListener>(submit, nullptr)).ok());
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(scheduler->RunStep().ok());
  EXPECT_GE(admitted, 9);
}

// Likewise with a cancellation of what waits.
TEST(Overlap, CancellationsAreHeardWhileTheEngineComputes) {
  AllAtTheEnd engine;
  FakeClock clock;
  int cancelled = 0;
  std::vector<SequenceId> waiting;
  const auto scheduler = *Scheduler::Create(&engine, &clock, {});
  const auto cancel = [&](std::span<const SampledToken>) {
    if (waiting.empty()) return;
    scheduler->Cancel(waiting.back());
    waiting.pop_back();
  };
  ASSERT_TRUE(
      scheduler->Submit(Request({}, 40), std::make_unique<CallingListener>(cancel, nullptr)).ok());
  for (int i = 0; i < 12; ++i) {
    const auto id = scheduler->Submit(Request({}, 100),
                                      std::make_unique<CallingListener>(nullptr, [&](SequenceEnd) {
                                        ++cancelled;
                                        engine.gate.Open();
                                      }));
    ASSERT_TRUE(id.ok());
    scheduler->Pause(*id);  // so that it has no row
    waiting.push_back(*id);
  }
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(scheduler->RunStep().ok());
  EXPECT_GE(cancelled, 9);
}

// Ends one of its steps when the gate is opened.
class HeldUp : public FakeEngine {
 public:
  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    absl::Status status = FakeEngine::Step(copies, rows, sink);
    if (steps == held_step) gate.Pass();
    return status;
  }
  int held_step = 0;
  Gate gate;
};

// A turn of a conversation that comes when the one before was heard to end, in the step that ended
// it, while another sequence runs.
TEST(Overlap, WhatEndsInAStepIsSharedWithWhatComesInIt) {
  HeldUp engine;
  FakeClock clock;
  const auto scheduler = *Scheduler::Create(&engine, &clock, {});
  const auto other = std::make_shared<RecordedSequence>();
  ASSERT_TRUE(
      scheduler->Submit(Request(Prompt(4, 500), 100), std::make_unique<RecordingListener>(other))
          .ok());
  std::vector<TokenId> text = Prompt(10);
  const auto hear = [&](std::span<const SampledToken> tokens) {
    for (const SampledToken& token : tokens) text.push_back(token.token);
  };
  bool has_ended = false;
  const auto end = [&](SequenceEnd) {
    has_ended = true;
    engine.gate.Open();
  };
  // Two tokens in the first step, after the prompt's tail, and four in each of seven more.
  ASSERT_TRUE(
      scheduler->Submit(Request(text, 30), std::make_unique<CallingListener>(hear, end)).ok());
  engine.held_step = 8;
  for (int step = 0; step < 8; ++step) ASSERT_TRUE(scheduler->RunStep().ok());
  ASSERT_TRUE(has_ended);

  const auto next = std::make_shared<RecordedSequence>();
  ASSERT_TRUE(scheduler->Submit(Request(text, 10), std::make_unique<RecordingListener>(next)).ok());
  for (int step = 0; step < 10; ++step) ASSERT_TRUE(scheduler->RunStep().ok());
  scheduler->Flush();
  ASSERT_TRUE(next->end.has_value());
  EXPECT_FALSE(other->end.has_value());
  EXPECT_EQ(next->stats.cached_tokens, 32);  // whole pages of its 40
}

TEST(Overlap, HostTimeIsWhenTheEngineStandsStillThoughThereIsWork) {
  Harness h;
  h.engine.on_step = [&](std::span<const Row>) {
    h.clock.Advance(milliseconds(10));
    return absl::OkStatus();
  };
  const Record first = h.Start(Request(Prompt(4), 20));
  for (int step = 0; step < 5; ++step) {
    h.Step();
    h.clock.Advance(milliseconds(3));
  }
  EXPECT_THAT(first->tokens, SizeIs(20));
  EXPECT_EQ(h.scheduler->stats().step_time, milliseconds(50));
  EXPECT_EQ(h.scheduler->stats().recent_step_time, milliseconds(10));
  EXPECT_EQ(h.scheduler->stats().host_time, milliseconds(4 * 3));
  // Without work nobody stands still.
  h.Step();
  h.clock.Advance(std::chrono::hours(1));
  const Record second = h.Start(Request(Prompt(4), 8));
  h.Finish({second});
  EXPECT_EQ(h.scheduler->stats().steps, 7);
  EXPECT_EQ(h.scheduler->stats().host_time, milliseconds(4 * 3));
}

TEST(Overlap, WhatWasGeneratedIsHeardThoughTheSchedulerGoes) {
  AllAtTheEnd engine;
  FakeClock clock;
  int heard = 0;
  std::optional<SequenceEnd> end;
  {
    const auto scheduler = *Scheduler::Create(&engine, &clock, {});
    ASSERT_TRUE(scheduler
                    ->Submit(Request({}, 4),
                             std::make_unique<CallingListener>(
                                 [&](auto tokens) { heard += static_cast<int>(tokens.size()); },
                                 [&](SequenceEnd e) { end = e; }))
                    .ok());
    ASSERT_TRUE(scheduler->RunStep().ok());
  }
  EXPECT_EQ(heard, 4);
  EXPECT_EQ(end, SequenceEnd::kLength);
}

}  // namespace
}  // namespace photon
