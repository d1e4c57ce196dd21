// A scheduler over a fake engine and a fake clock, and what tests say to it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/scheduler.h"
#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/recorded_sequence.h"

namespace photon {

using Record = std::shared_ptr<RecordedSequence>;

inline std::vector<TokenId> Prompt(int size, TokenId first = 1) {
  std::vector<TokenId> prompt(size);
  std::iota(prompt.begin(), prompt.end(), first);
  return prompt;
}

inline SequenceRequest Request(std::vector<TokenId> prompt, int max_tokens) {
  SequenceRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// A scheduler over a fake engine: meta-contexts of 4 tokens, pages of 8, 32 pages, 4 rows, 16
// prefill tokens a step, a context of 128.
struct Harness {
  explicit Harness(EngineShape shape = FakeEngine::DefaultShape(), SchedulerOptions options = {})
      : engine(std::move(shape)) {
    auto created = Scheduler::Create(&engine, &clock, options);
    EXPECT_TRUE(created.ok()) << created.status();
    scheduler = *std::move(created);
  }

  absl::StatusOr<SequenceId> Submit(SequenceRequest request, const Record& record) {
    return scheduler->Submit(std::move(request), std::make_unique<RecordingListener>(record));
  }

  // Submits what must be accepted.
  Record Start(SequenceRequest request, SequenceId* id = nullptr) {
    auto record = std::make_shared<RecordedSequence>();
    auto submitted = Submit(std::move(request), record);
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (id != nullptr) *id = *submitted;
    return record;
  }

  absl::Status Error(SequenceRequest request) {
    return Submit(std::move(request), std::make_shared<RecordedSequence>()).status();
  }

  void Step(int count = 1) {
    for (int i = 0; i < count; ++i) {
      const absl::Status status = scheduler->RunStep();
      ASSERT_TRUE(status.ok()) << status;
      scheduler->Flush();
      scheduler->CheckInvariants();
    }
  }

  // Steps until all of `records` have ended; returns how many steps it took.
  int Finish(const std::vector<Record>& records) {
    for (int step = 0;; ++step) {
      if (std::all_of(records.begin(), records.end(),
                      [](const Record& record) { return record->end.has_value(); })) {
        return step;
      }
      EXPECT_LT(step, 10'000) << "a sequence does not end";
      if (step >= 10'000) return step;
      Step();
    }
  }

  FakeEngine engine;
  FakeClock clock;
  std::unique_ptr<Scheduler> scheduler;
};

}  // namespace photon
