// Thousands of random events; the invariants hold after each of them.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "scheduler/scheduler.h"
#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/recorded_sequence.h"

namespace photon {
namespace {

struct Live {
  SequenceId id{};
  SequenceRequest request;
  std::shared_ptr<RecordedSequence> record;
};

TEST(SchedulerRandom, NoPageIsLostAndNoTokenIsWrong) {
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    std::mt19937 random(seed);
    const auto uniform = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    EngineShape shape = FakeEngine::DefaultShape();
    shape.meta_tokens = seed % 2 == 0 ? 4 : 6;
    shape.page_tokens = shape.meta_tokens * uniform(1, 3);
    shape.num_pages = uniform(20, 40);
    shape.max_rows = uniform(2, 6);
    FakeEngine engine(shape);
    FakeClock clock;
    auto scheduler = *Scheduler::Create(&engine, &clock, {.max_queue = 8});

    std::vector<Live> live;
    int64_t ended = 0, accepted = 0;
    for (int event = 0; event < 4000; ++event) {
      const int kind = uniform(0, 9);
      if (kind < 4) {
        Live sequence;
        for (int i = uniform(0, 60); i > 0; --i) {
          sequence.request.prompt.push_back(uniform(0, shape.vocab_size - 1));
        }
        sequence.request.max_tokens = uniform(1, 40);
        sequence.request.sampling.seed = uniform(0, 1000);
        if (uniform(0, 3) == 0) {
          sequence.request.deadline = clock.Now() + std::chrono::milliseconds(uniform(0, 20));
        }
        sequence.record = std::make_shared<RecordedSequence>();
        if (uniform(0, 3) == 0) sequence.record->stop_after = uniform(1, 30);
        const auto id = scheduler->Submit(sequence.request,
                                          std::make_unique<RecordingListener>(sequence.record));
        if (id.ok()) {
          sequence.id = *id;
          live.push_back(std::move(sequence));
          ++accepted;
        } else {
          ASSERT_NE(id.status().code(), absl::StatusCode::kUnavailable);
        }
      } else if (kind == 4 && !live.empty()) {
        scheduler->Cancel(live[uniform(0, static_cast<int>(live.size()) - 1)].id);
      } else if (kind == 5) {
        clock.Advance(std::chrono::milliseconds(uniform(0, 5)));
      } else {
        ASSERT_TRUE(scheduler->RunStep().ok());
        scheduler->Flush();
      }

      // A sequence is waiting, running or ended.
      const SchedulerStats stats = scheduler->stats();
      std::erase_if(live, [&](const Live& sequence) {
        EXPECT_LE(sequence.record->finish_calls, 1);
        if (!sequence.record->end.has_value()) return false;
        ++ended;
        const auto expected =
            Continue(engine, sequence.request.prompt,
                     static_cast<int>(sequence.record->tokens.size()), sequence.request.sampling);
        EXPECT_EQ(sequence.record->tokens, expected);
        EXPECT_EQ(sequence.record->stats.generated_tokens,
                  static_cast<int>(sequence.record->tokens.size()));
        if (sequence.record->end == SequenceEnd::kLength) {
          EXPECT_EQ(static_cast<int>(expected.size()), sequence.request.max_tokens);
        }
        return true;
      });
      ASSERT_EQ(static_cast<int>(live.size()), stats.num_running + stats.num_waiting);
      ASSERT_LE(stats.pages_in_use, stats.num_pages);
      ASSERT_LE(stats.num_running, shape.max_rows);
      ASSERT_LE(stats.num_waiting, 8);
    }
    EXPECT_GT(ended, 200);
    scheduler->Drain(TimePoint::min());
    ASSERT_TRUE(scheduler->RunStep().ok());
    const SchedulerStats stats = scheduler->stats();
    EXPECT_EQ(stats.pages_in_use, 0);
    int64_t finished = 0;
    for (int64_t count : stats.finished) finished += count;
    EXPECT_EQ(finished, accepted);
  }
}

}  // namespace
}  // namespace photon
