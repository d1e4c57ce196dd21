// What happens to sequences when memory is short: over-commit, pauses and pins.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

EngineShape SmallPool(int num_pages) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.num_pages = num_pages;
  return shape;
}

constexpr SchedulerOptions kOverCommit = {.reserved_output_percent = 0};

TEST(OverCommit, PreemptedSequencesGoOnTokenForToken) {
  Harness h(SmallPool(12), kOverCommit);
  std::vector<Record> records;
  for (int i = 0; i < 6; ++i) {
    SequenceRequest request = Request(Prompt(6 + i, 50 * i), 70);  // 10 pages in the end
    request.mode = h.engine.shape().modes[i % 3];
    request.sampling.query = i;
    records.push_back(h.Start(request));
  }
  h.Finish(records);
  int preemptions = 0;
  int reencoded = 0;
  for (int i = 0; i < 6; ++i) {
    const SequenceStats& stats = records[i]->stats;
    EXPECT_EQ(records[i]->tokens, Continue(h.engine, Prompt(6 + i, 50 * i), 70));
    preemptions += stats.preemptions;
    reencoded += stats.reencoded_tokens;
    // Only what kRecGen predicted cannot be had again from its tokens.
    if (i % 3 != 2 || stats.preemptions == 0) {
      EXPECT_EQ(stats.reencoded_tokens, 0);
    }
    EXPECT_LT(stats.reencoded_tokens, 70);
  }
  EXPECT_GT(preemptions, 3);
  EXPECT_GT(reencoded, 0);
  EXPECT_EQ(h.scheduler->stats().preemptions, preemptions);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
}

TEST(OverCommit, EveryStepGetsSomebodyFurther) {
  Harness h(SmallPool(13), kOverCommit);
  std::vector<Record> records;
  for (int i = 0; i < 20; ++i) {
    SequenceRequest request = Request(Prompt(3, 40 * i), 97);  // 13 pages: the whole pool
    request.tenant = TenantId{static_cast<uint64_t>(i % 4)};
    records.push_back(h.Start(request));
  }
  // 25 steps each if they ran one after another, and what preempted ones prefill again.
  const int steps = h.Finish(records);
  EXPECT_LE(steps, 20 * (25 + 7));
  EXPECT_EQ(h.scheduler->stats().generated_tokens, 20 * 97);
  EXPECT_GT(h.scheduler->stats().preemptions, 0);
}

TEST(OverCommit, WithoutItNobodyWaitsForMemoryOnceRunning) {
  Harness h(SmallPool(12));
  std::vector<Record> records;
  for (int i = 0; i < 20; ++i) records.push_back(h.Start(Request(Prompt(6 + i, 50 * i), 40)));
  h.Finish(records);
  EXPECT_EQ(h.scheduler->stats().preemptions, 0);
  for (const Record& record : records) EXPECT_THAT(record->tokens, SizeIs(40));
}

TEST(OverCommit, WhatPinsLeaveNoRoomForWaitsWithoutDisturbingOthers) {
  Harness h(SmallPool(12), kOverCommit);
  SequenceRequest document = Request(Prompt(48, 500), 0);  // 6 pages
  document.pin_until = TimePoint::max();
  const Record pin = h.Start(document);
  h.Finish({pin});
  ASSERT_TRUE(pin->stats.pin.has_value());

  const Record large = h.Start(Request(Prompt(4), 60));  // 8 pages
  const Record small = h.Start(Request(Prompt(4, 100), 40));
  h.Finish({small});
  EXPECT_EQ(small->tokens, Continue(h.engine, Prompt(4, 100), 40));
  for (int i = 0; i < 3; ++i) {
    const Record next = h.Start(Request(Prompt(4, 200 + 10 * i), 36));
    EXPECT_LE(h.Finish({next}), 25);
  }
  EXPECT_FALSE(large->end.has_value());
  EXPECT_LE(h.scheduler->stats().preemptions, 8);
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 6);
  h.scheduler->Unpin(*pin->stats.pin);
  h.Finish({large});
  EXPECT_EQ(large->tokens, Continue(h.engine, Prompt(4), 60));
}

TEST(Pause, KeepsPagesAndSkipsStepsWhileOthersGoOn) {
  Harness h;
  SequenceId id;
  const Record paused = h.Start(Request(Prompt(9), 40), &id);
  const Record other = h.Start(Request(Prompt(9, 100), 40));
  h.Step(2);
  EXPECT_THAT(paused->tokens, SizeIs(7));
  h.scheduler->Pause(id);
  h.Step(3);
  EXPECT_THAT(paused->tokens, SizeIs(7));
  EXPECT_THAT(other->tokens, SizeIs(19));
  EXPECT_EQ(h.scheduler->stats().num_paused, 1);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 2 + 4);
  h.scheduler->Resume(id);
  h.Finish({paused, other});
  EXPECT_EQ(paused->tokens, Continue(h.engine, Prompt(9), 40));
  EXPECT_EQ(paused->stats.preemptions, 0);
  EXPECT_EQ(h.scheduler->stats().num_paused, 0);
}

TEST(Pause, EndsAfterItsLongest) {
  Harness h(FakeEngine::DefaultShape(), {.max_pause = milliseconds(50)});
  SequenceId id;
  const Record record = h.Start(Request(Prompt(9), 40), &id);
  h.Step();
  h.scheduler->Pause(id);
  h.Step();
  h.clock.Advance(milliseconds(49));
  h.scheduler->Pause(id);  // again: it counts from the first
  h.Step();
  EXPECT_FALSE(record->end.has_value());
  h.clock.Advance(milliseconds(1));
  h.Step();
  EXPECT_EQ(record->end, SequenceEnd::kStalled);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
}

TEST(Pause, HoldsBackSequencesThatWait) {
  Harness h;
  SequenceId id;
  const Record paused = h.Start(Request(Prompt(9), 8), &id);
  h.scheduler->Pause(id);
  const Record other = h.Start(Request(Prompt(9, 100), 8));
  h.Finish({other});
  EXPECT_THAT(paused->tokens, IsEmpty());
  h.scheduler->Resume(id);
  h.Finish({paused});
  EXPECT_THAT(paused->tokens, SizeIs(8));
}

// Runs as a server's loop does, on real time, until it has drained; returns the rounds it took.
int RunUntilDrained(Scheduler& scheduler) {
  int rounds = 0;
  while (scheduler.WaitForWork()) {
    EXPECT_TRUE(scheduler.RunStep().ok());
    ++rounds;
  }
  return rounds;
}

TEST(WaitForWork, WakesForWhatEndsByItselfAndSleepsUntilThen) {
  for (const SequenceEnd end :
       {SequenceEnd::kStalled, SequenceEnd::kDeadline, SequenceEnd::kDrained}) {
    FakeEngine engine;
    SteadyClock clock;
    const auto scheduler = *Scheduler::Create(
        &engine, &clock,
        {.max_pause = end == SequenceEnd::kStalled ? milliseconds(40) : milliseconds(1'000'000)});
    SequenceRequest request = Request(Prompt(9), 100);
    if (end == SequenceEnd::kDeadline) request.deadline = clock.Now() + milliseconds(40);
    const auto record = std::make_shared<RecordedSequence>();
    const auto id = scheduler->Submit(request, std::make_unique<RecordingListener>(record));
    ASSERT_TRUE(id.ok());
    scheduler->Pause(*id);
    scheduler->Drain(end == SequenceEnd::kDrained ? clock.Now() + milliseconds(40)
                                                  : TimePoint::max());
    EXPECT_LE(RunUntilDrained(*scheduler), 10) << SequenceEndName(end);
    EXPECT_EQ(record->end, end) << SequenceEndName(end);
  }
}

TEST(WaitForWork, WakesForAPinThatExpires) {
  FakeEngine engine(SmallPool(8));
  SteadyClock clock;
  const auto scheduler = *Scheduler::Create(&engine, &clock, {});
  SequenceRequest document = Request(Prompt(32), 0);
  document.pin_until = clock.Now() + milliseconds(40);
  const auto pin = std::make_shared<RecordedSequence>();
  ASSERT_TRUE(scheduler->Submit(document, std::make_unique<RecordingListener>(pin)).ok());
  while (!pin->end.has_value()) ASSERT_TRUE(scheduler->RunStep().ok());
  const auto record = std::make_shared<RecordedSequence>();
  ASSERT_TRUE(
      scheduler->Submit(Request(Prompt(9, 100), 40), std::make_unique<RecordingListener>(record))
          .ok());
  scheduler->Drain(TimePoint::max());
  RunUntilDrained(*scheduler);
  EXPECT_EQ(record->end, SequenceEnd::kLength);
}

TEST(Pins, KeepTheirPagesWhileOthersNeedMemory) {
  Harness h(SmallPool(16));
  SequenceRequest document = Request(Prompt(50), 0);  // 48 tokens in whole meta-contexts
  document.pin_until = TimePoint::max();
  const Record pin = h.Start(document);
  h.Finish({pin});
  EXPECT_EQ(pin->end, SequenceEnd::kLength);
  EXPECT_THAT(pin->tokens, IsEmpty());
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 6);
  EXPECT_EQ(h.scheduler->stats().num_pins, 1);
  std::vector<Record> others;
  for (int i = 0; i < 10; ++i) others.push_back(h.Start(Request(Prompt(20, 100 + 30 * i), 30)));
  h.Finish(others);
  EXPECT_GT(h.scheduler->stats().evictions, 0);
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 6);

  const Record question = h.Start(Request(Prompt(53), 8));
  h.Finish({question});
  EXPECT_EQ(question->stats.cached_tokens, 48);
  EXPECT_EQ(question->tokens, Continue(h.engine, Prompt(53), 8));
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 6);
}

TEST(Pins, OfWhatIsCachedTakeNoStep) {
  Harness h;
  const Record first = h.Start(Request(Prompt(48), 4));
  h.Finish({first});
  const int steps = h.engine.steps;
  SequenceRequest document = Request(Prompt(48), 0);
  document.pin_until = TimePoint::max();
  const Record pin = h.Start(document);
  h.Finish({pin});
  EXPECT_TRUE(pin->stats.pin.has_value());
  EXPECT_EQ(h.engine.steps, steps);
}

TEST(Pins, AreRefusedBeyondTheirShare) {
  Harness h(SmallPool(20), {.max_pinned_percent = 40});  // 8 pages
  const auto request = [](int size, TokenId first) {
    SequenceRequest document = Request(Prompt(size, first), 0);
    document.pin_until = TimePoint::max();
    return document;
  };
  const Record pin = h.Start(request(40, 1));
  // What is queued counts, too.
  const absl::Status full = h.Error(request(32, 100));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(full.message(),
              HasSubstr("pins may hold 8 cache pages and hold 5; this one needs 4"));
  h.Finish({pin});
  EXPECT_EQ(h.Error(request(32, 100)).code(), absl::StatusCode::kResourceExhausted);
  h.scheduler->Unpin(*pin->stats.pin);
  h.Step();
  SequenceId id;
  const Record cancelled = h.Start(request(64, 200), &id);
  h.scheduler->Cancel(id);
  h.Step();
  EXPECT_EQ(cancelled->end, SequenceEnd::kCancelled);
  const Record next = h.Start(request(64, 300));
  h.Finish({next});
  EXPECT_EQ(h.scheduler->stats().num_pins, 1);
}

TEST(Pins, HoldUntilTheirTimeWhichMoves) {
  Harness h;
  SequenceRequest document = Request(Prompt(24), 0);
  document.pin_until = h.clock.Now() + milliseconds(100);
  const Record pin = h.Start(document);
  h.Finish({pin});
  h.clock.Advance(milliseconds(99));
  h.scheduler->ExtendPin(*pin->stats.pin, h.clock.Now() + milliseconds(100));
  h.Step();
  h.clock.Advance(milliseconds(99));
  h.Step();
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 3);
  h.clock.Advance(milliseconds(1));
  h.Step();
  EXPECT_EQ(h.scheduler->stats().pages_pinned, 0);
  EXPECT_EQ(h.scheduler->stats().num_pins, 0);
  EXPECT_EQ(h.scheduler->stats().pages_cached, 3);
  h.scheduler->ExtendPin(*pin->stats.pin, TimePoint::max());  // too late: ignored
  h.Step();
  EXPECT_EQ(h.scheduler->stats().num_pins, 0);
}

TEST(Pins, LetPassWhatTheyLeaveRoomFor) {
  Harness h(SmallPool(12));
  SequenceRequest document = Request(Prompt(48), 0);
  document.pin_until = TimePoint::max();
  const Record pin = h.Start(document);
  h.Finish({pin});
  const Record too_large = h.Start(Request(Prompt(4, 100), 50));  // 7 pages; 6 are left
  const Record question = h.Start(Request(Prompt(50), 30));       // 10, of which 6 are pinned
  const Record small = h.Start(Request(Prompt(4, 200), 10));
  h.Finish({question, small});
  EXPECT_THAT(too_large->tokens, IsEmpty());
  h.scheduler->Unpin(*pin->stats.pin);
  h.Finish({too_large});
  EXPECT_THAT(too_large->tokens, SizeIs(50));
}

// A text of which much is cached, and nothing pinned, needs its own memory all the same.
TEST(Pins, LetPassWhatTheyLeaveRoomForThoughMoreIsCached) {
  Harness h(SmallPool(12));
  const Record first = h.Start(Request(Prompt(40, 100), 1));
  h.Finish({first});
  SequenceRequest document = Request(Prompt(48), 0);
  document.pin_until = TimePoint::max();
  const Record pin = h.Start(document);
  h.Finish({pin});
  const Record too_large = h.Start(Request(Prompt(40, 100), 16));  // 7 pages, 5 of them cached
  const Record small = h.Start(Request(Prompt(4, 200), 30));
  h.Finish({small});
  EXPECT_THAT(too_large->tokens, IsEmpty());
  h.scheduler->Unpin(*pin->stats.pin);
  h.Finish({too_large});
  EXPECT_THAT(too_large->tokens, SizeIs(16));
}

}  // namespace
}  // namespace photon
