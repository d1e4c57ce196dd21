// Whose turn it is: tenants, priorities and deadlines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <span>
#include <vector>

#include "scheduler/tenant_shares.h"
#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr TenantId kFirst{1}, kSecond{2};

// Keeps hundreds of long requests of one tenant waiting, and the engine full of them.
void Flood(Harness& h, TenantId tenant, int count = 300) {
  for (int i = 0; i < count; ++i) {
    SequenceRequest request = Request(Prompt(20, 10 + 2 * i), 100);
    request.tenant = tenant;
    h.Start(request);
  }
}

// Steps until a new request of `tenant` has its first token.
int StepsToFirstToken(Harness& h, TenantId tenant, int prompt_size, TokenId first) {
  SequenceRequest request = Request(Prompt(prompt_size, first), 8);
  request.tenant = tenant;
  const Record record = h.Start(request);
  for (int step = 1; step <= 100; ++step) {
    h.Step();
    if (record->tokens.empty()) continue;
    h.Finish({record});
    EXPECT_EQ(record->tokens, Continue(h.engine, Prompt(prompt_size, first), 8));
    return step;
  }
  ADD_FAILURE() << "no token in 100 steps";
  return 100;
}

TEST(Fairness, AFloodAtMostDoublesALightTenantsTimeToFirstToken) {
  for (const auto& [heavy, light] : {std::pair(kFirst, kSecond), std::pair(kSecond, kFirst)}) {
    for (const int prompt_size : {0, 5, 16, 40, 70}) {  // up to five pieces
      Harness idle;
      const int idle_steps = StepsToFirstToken(idle, light, prompt_size, 5);
      for (const int num_rows : {4, 16}) {
        // With few rows these run out first; with many, the pages.
        EngineShape shape = FakeEngine::DefaultShape();
        shape.max_rows = num_rows;
        shape.num_pages = 30;
        Harness h(shape);
        Flood(h, heavy);
        h.Step(7);
        for (int i = 0; i < 20; ++i) {
          EXPECT_LE(StepsToFirstToken(h, light, prompt_size, 100 + i), 2 * idle_steps)
              << prompt_size << " tokens, " << num_rows << " rows, request " << i;
          h.Step(i % 4);
        }
        const SchedulerStats stats = h.scheduler->stats();
        EXPECT_GT(stats.num_waiting, 200);
        if (num_rows == 16) {
          EXPECT_GT(stats.preemptions, 0);
        }
      }
    }
  }
}

TEST(Fairness, ALightTenantIsServedAsSoonWhenItComesDuringAStep) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 16;
  shape.num_pages = 30;
  Harness h(shape);
  Flood(h, kFirst);
  h.Step(7);
  Record record;
  h.engine.on_step = [&](std::span<const Row>) {
    if (record == nullptr) {
      SequenceRequest request = Request(Prompt(5), 4);
      request.tenant = kSecond;
      record = h.Start(request);
    }
    return absl::OkStatus();
  };
  h.Step();
  EXPECT_THAT(record->tokens, IsEmpty());
  h.Step();
  EXPECT_THAT(record->tokens, SizeIs(3));
}

// What steps cost, by TenantId; rows name theirs in sampling.query.
struct Meter {
  explicit Meter(Harness& h) {
    h.engine.on_step = [this](std::span<const Row> rows) {
      for (const Row& row : rows) {
        service[row.sampling.query] +=
            static_cast<int64_t>(row.input.size()) / 4 * 4 + (row.decode ? 28 : 0);
      }
      return absl::OkStatus();
    };
    const EngineShape& shape = h.engine.shape();
    full_step = shape.max_prefill_tokens + 28 * shape.max_rows;
  }
  int64_t Difference() const { return std::abs(service[1] - service[2]); }
  std::array<int64_t, 3> service = {};
  int64_t full_step = 0;
};

SequenceRequest RequestOf(TenantId tenant, int prompt_size, int max_tokens, TokenId first) {
  SequenceRequest request = Request(Prompt(prompt_size, first), max_tokens);
  request.tenant = tenant;
  request.sampling.query = static_cast<uint32_t>(tenant);
  return request;
}

TEST(Fairness, TwoTenantsUnderFullLoadGetEqualService) {
  for (const int num_rows : {1, 2, 3, 5}) {
    EngineShape shape = FakeEngine::DefaultShape();
    shape.max_rows = num_rows;
    shape.num_pages = 200;
    Harness h(shape);
    Meter meter(h);
    for (int i = 0; i < 150; ++i) h.Start(RequestOf(kFirst, 3, 100, 2 * i));
    for (int i = 0; i < 800; ++i) h.Start(RequestOf(kSecond, 9, 8, i));
    for (int step = 0; step < 300; ++step) {
      h.Step();
      ASSERT_LE(meter.Difference(), meter.full_step) << "step " << step << ", rows " << num_rows;
    }
    EXPECT_GT(h.scheduler->stats().num_waiting, 10);
    EXPECT_GT(meter.service[1], 10 * meter.full_step);
  }
}

TEST(Fairness, IdlenessEarnsNoCredit) {
  Harness h;
  Meter meter(h);
  for (int i = 0; i < 100; ++i) h.Start(RequestOf(kFirst, 3, 100, 2 * i));
  const Record early = h.Start(RequestOf(kSecond, 3, 4, 500));
  h.Step(60);
  EXPECT_TRUE(early->end.has_value());
  for (int i = 0; i < 100; ++i) h.Start(RequestOf(kSecond, 3, 100, 2 * i));
  meter.service = {};
  for (int step = 0; step < 50; ++step) {
    h.Step();
    ASSERT_LE(meter.Difference(), meter.full_step) << step;
  }
}

TEST(TenantShares, ATenantThatComesBackOwesWhatItOwed) {
  TenantShares shares;
  shares.Enter(kFirst);
  shares.Enter(kSecond);
  shares.Charge(kFirst, 10);
  shares.Charge(kSecond, 50);
  shares.Leave(kSecond);
  shares.Enter(kSecond);
  EXPECT_EQ(shares.counter(kSecond), 50);
  shares.Leave(kSecond);
  shares.Charge(kFirst, 100);
  shares.Enter(kSecond);
  EXPECT_EQ(shares.counter(kSecond), 110);  // and idleness earned nothing
  shares.Enter(kSecond);
  shares.Leave(kSecond);
  EXPECT_EQ(shares.counter(kSecond), 110);  // one of two sequences is not all
  EXPECT_EQ(shares.num_active(), 2);
}

TEST(Fairness, TheEarliestDeadlineOfATenantGoesFirst) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  std::vector<Record> records;
  for (const int deadline_ms : {0, 300, 100, 200}) {
    SequenceRequest request = Request(Prompt(4, 1 + deadline_ms), 4);
    if (deadline_ms > 0) request.deadline = h.clock.Now() + milliseconds(deadline_ms);
    records.push_back(h.Start(request));
  }
  for (const int next : {2, 3, 1, 0}) {
    h.Step();
    EXPECT_TRUE(records[next]->end.has_value()) << next;
    records[next]->tokens.clear();
    for (const Record& record : records) EXPECT_THAT(record->tokens, IsEmpty());
  }
}

TEST(Fairness, HigherPrioritiesGoFirstAndTakeRowsAndPages) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 2;
  shape.num_pages = 16;
  Harness h(shape);
  std::vector<Record> low;
  for (int i = 0; i < 3; ++i) {
    SequenceRequest request = Request(Prompt(10, 10 * i), 50);  // 8 pages
    request.priority = Priority::kLow;
    low.push_back(h.Start(request));
  }
  h.Step(3);
  EXPECT_THAT(low[1]->tokens, SizeIs(10));
  SequenceRequest request = Request(Prompt(10, 500), 50);
  request.priority = Priority::kHigh;
  const Record high = h.Start(request);
  h.Step();
  EXPECT_THAT(high->tokens, SizeIs(2));
  EXPECT_EQ(h.scheduler->stats().preemptions, 1);
  EXPECT_THAT(low[0]->tokens, SizeIs(14));
  EXPECT_THAT(low[1]->tokens, SizeIs(10));  // the newest gave way
  h.Finish({high, low[0], low[1], low[2]});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(low[i]->tokens, Continue(h.engine, Prompt(10, 10 * i), 50));
    EXPECT_EQ(low[i]->stats.preemptions, i == 1 ? 1 : 0);
  }
}

TEST(Fairness, WhatCannotAnswerByItsDeadlineIsRefusedBeforeItsPrefill) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 2;
  Harness h(shape);
  h.engine.on_step = [&](std::span<const Row>) {
    h.clock.Advance(milliseconds(10));
    return absl::OkStatus();
  };
  // How long a step takes is not known yet.
  SequenceRequest request = Request(Prompt(64), 4);
  request.deadline = h.clock.Now() + milliseconds(35);
  const Record unknown = h.Start(request);
  h.Finish({unknown});
  EXPECT_TRUE(unknown->stats.first_step.has_value());
  EXPECT_EQ(h.scheduler->stats().rejected_deadline, 0);

  const Record other = h.Start(Request(Prompt(4, 500), 60));
  h.Step(8);
  request.prompt = Prompt(64, 600);  // four steps
  request.deadline = h.clock.Now() + milliseconds(35);
  const Record late = h.Start(request);
  h.Step();
  EXPECT_EQ(late->end, SequenceEnd::kDeadline);
  EXPECT_FALSE(late->stats.first_step.has_value());
  EXPECT_EQ(h.scheduler->stats().rejected_deadline, 1);

  request.deadline = h.clock.Now() + milliseconds(41);
  const Record in_time = h.Start(request);
  h.Finish({in_time});
  EXPECT_THAT(in_time->tokens, SizeIs(4));

  // What is cached takes no time.
  request.deadline = h.clock.Now() + milliseconds(11);
  const Record cached = h.Start(request);
  h.Finish({cached});
  EXPECT_THAT(cached->tokens, SizeIs(4));
  EXPECT_EQ(h.scheduler->stats().rejected_deadline, 1);
}

}  // namespace
}  // namespace photon
