#include "scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/recorded_sequence.h"
#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(Scheduler, GeneratesWhatTheEngineWouldAlone) {
  for (int prompt_size = 0; prompt_size <= 40; ++prompt_size) {
    Harness h;
    const auto record = h.Start(Request(Prompt(prompt_size), 11));
    while (!record->end.has_value()) h.Step();
    EXPECT_EQ(record->tokens, Continue(h.engine, Prompt(prompt_size), 11)) << prompt_size;
    EXPECT_EQ(record->end, SequenceEnd::kLength);
    EXPECT_EQ(record->stats.prompt_tokens, prompt_size);
    EXPECT_EQ(record->stats.generated_tokens, 11);
    EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
  }
}

TEST(Scheduler, StepsManyRowsTogetherWithTheirOwnSampling) {
  Harness h;
  std::vector<Record> records;
  for (int i = 0; i < 4; ++i) {
    SequenceRequest request = Request(Prompt(3 + i), 8);
    request.sampling.seed = 100 + i;
    request.mode = i % 2 == 0 ? GenerationMode::kExact : GenerationMode::kHierGen;
    records.push_back(h.Start(std::move(request)));
  }
  h.Step();
  ASSERT_THAT(h.engine.last_rows, SizeIs(4));
  EXPECT_EQ(h.engine.last_rows[1].mode, GenerationMode::kHierGen);
  EXPECT_EQ(h.engine.last_rows[3].sampling.seed, 103u);
  h.Step(2);
  for (int i = 0; i < 4; ++i) {
    Sampling sampling;
    sampling.seed = 100 + i;
    EXPECT_EQ(records[i]->tokens, Continue(h.engine, Prompt(3 + i), 8, sampling));
  }
  EXPECT_EQ(h.scheduler->stats().steps, 3);
}

TEST(Scheduler, AdmitsOnlyWhatItsPagesCanHoldToTheEnd) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.num_pages = 4;  // 32 tokens
  Harness h(shape);
  const auto first = h.Start(Request(Prompt(8), 9));       // 17 tokens: 3 pages
  const auto second = h.Start(Request(Prompt(8, 50), 1));  // 9 tokens: 2 pages; 1 is not promised
  const auto third = h.Start(Request(Prompt(2, 90), 1));   // 1 would do, but second comes first
  h.Step();
  EXPECT_EQ(h.scheduler->stats().num_running, 1);
  EXPECT_EQ(h.scheduler->stats().num_waiting, 2);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 2);  // the third is promised and not yet needed
  while (!first->end.has_value()) h.Step();
  EXPECT_THAT(second->tokens, IsEmpty());
  h.Step();
  EXPECT_EQ(second->end, SequenceEnd::kLength);
  EXPECT_EQ(third->end, SequenceEnd::kLength);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_context = 67;  // 16 whole meta-contexts
  shape.num_pages = 6;     // 48 tokens
  shape.modes = {GenerationMode::kExact, GenerationMode::kHierGen};
  Harness h(shape);
  EXPECT_THAT(h.Error(Request(Prompt(64), 1)).message(), HasSubstr("prompt: has 64 tokens"));
  EXPECT_THAT(h.Error(Request(Prompt(60), 5)).message(), HasSubstr("max_tokens: a prompt of 60"));
  EXPECT_THAT(h.Error(Request(Prompt(3), 0)).message(), HasSubstr("max_tokens: expected at least"));
  EXPECT_THAT(h.Error(Request(Prompt(3), INT32_MAX)).message(), HasSubstr("leaves 61"));
  EXPECT_THAT(h.Error(Request(Prompt(40), 9)).message(), HasSubstr("need 7 cache pages"));
  EXPECT_THAT(h.Error(Request({5, 1000}, 1)).message(), HasSubstr("token 1000 at index 1"));
  EXPECT_THAT(h.Error(Request({-1}, 1)).message(), HasSubstr("token -1 at index 0"));
  SequenceRequest recgen = Request(Prompt(3), 1);
  recgen.mode = GenerationMode::kRecGen;
  EXPECT_THAT(h.Error(recgen).message(), HasSubstr("mode:"));
  EXPECT_EQ(h.Error(recgen).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(h.Error(Request(Prompt(40), 8)).ok());
}

TEST(Scheduler, LongPromptsDoNotStallRunningStreams) {
  Harness h;
  const auto stream = h.Start(Request(Prompt(1), 60));
  h.Step();
  const auto document = h.Start(Request(Prompt(98), 4));
  size_t before = stream->tokens.size();
  for (int step = 0; step < 5; ++step) {
    h.Step();
    EXPECT_EQ(stream->tokens.size(), before + 4);
    before = stream->tokens.size();
    EXPECT_THAT(document->tokens, IsEmpty());
    EXPECT_EQ(h.engine.last_rows[1].input.size(), 16u);
    EXPECT_FALSE(h.engine.last_rows[1].decode);
  }
  h.Step();  // a tail of 2
  EXPECT_THAT(document->tokens, SizeIs(2));
  EXPECT_EQ(stream->tokens.size(), before + 4);
}

TEST(Scheduler, PromptsShareThePrefillBudgetOldestFirst) {
  Harness h;
  const auto a = h.Start(Request(Prompt(9), 8));        // 8 whole
  const auto b = h.Start(Request(Prompt(30, 100), 8));  // 28 whole
  const auto c = h.Start(Request(Prompt(8, 200), 8));
  const auto d = h.Start(Request(Prompt(3, 300), 8));  // none
  h.Step();  // 8 + 8 of b; c waits for budget, d needs none
  ASSERT_THAT(h.engine.last_rows, SizeIs(3));
  EXPECT_TRUE(h.engine.last_rows[0].decode);
  EXPECT_EQ(h.engine.last_rows[1].input.size(), 8u);
  EXPECT_FALSE(h.engine.last_rows[1].decode);
  EXPECT_THAT(d->tokens, SizeIs(1));
  EXPECT_THAT(c->tokens, IsEmpty());
  h.Step();  // 16 of b
  EXPECT_THAT(b->tokens, IsEmpty());
  EXPECT_THAT(c->tokens, IsEmpty());
  h.Step();  // the last 4 of b, and c
  EXPECT_THAT(b->tokens, SizeIs(2));
  EXPECT_THAT(c->tokens, SizeIs(4));
}

TEST(Scheduler, CancelledSequencesLeaveBeforeTheNextStep) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  SequenceId running_id, waiting_id;
  const auto running = h.Start(Request(Prompt(5), 50), &running_id);
  const auto waiting = h.Start(Request(Prompt(5), 50), &waiting_id);
  const auto last = h.Start(Request(Prompt(5), 2));
  h.Step(2);
  const size_t heard = running->tokens.size();
  h.scheduler->Cancel(running_id);
  h.scheduler->Cancel(waiting_id);
  h.Step();
  EXPECT_EQ(running->end, SequenceEnd::kCancelled);
  EXPECT_EQ(running->tokens.size(), heard);
  EXPECT_EQ(waiting->end, SequenceEnd::kCancelled);
  EXPECT_FALSE(waiting->stats.first_step.has_value());
  EXPECT_EQ(last->end, SequenceEnd::kLength);
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
  h.scheduler->Cancel(running_id);  // again: ignored
  h.Step();
  EXPECT_EQ(running->finish_calls, 1);
}

TEST(Scheduler, DeadlinesEndWaitingAndRunningSequences) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  SequenceRequest request = Request(Prompt(4), 100);
  request.deadline = h.clock.Now() + milliseconds(50);
  const auto running = h.Start(request);
  const auto waiting = h.Start(request);
  h.Step();
  h.clock.Advance(milliseconds(49));
  h.Step();
  EXPECT_FALSE(running->end.has_value());
  h.clock.Advance(milliseconds(1));
  h.Step();
  EXPECT_EQ(running->end, SequenceEnd::kDeadline);
  EXPECT_THAT(running->tokens, SizeIs(8));
  EXPECT_EQ(waiting->end, SequenceEnd::kDeadline);
  EXPECT_THAT(waiting->tokens, IsEmpty());
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
}

TEST(Scheduler, RefusesWhatItsQueueCannotHold) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape, {.max_queue = 2});
  h.Start(Request(Prompt(4), 50));
  h.Step();
  h.Start(Request(Prompt(4), 1));
  h.Start(Request(Prompt(4), 1));
  const absl::Status full = h.Error(Request(Prompt(4), 1));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  h.Step();  // from the inbox to the queue: they wait all the same
  EXPECT_EQ(h.Error(Request(Prompt(4), 1)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.scheduler->stats().rejected_queue_full, 2);
  EXPECT_EQ(h.scheduler->stats().num_waiting, 2);
}

TEST(Scheduler, ListenersEndTheirSequenceInsideAMetaContext) {
  Harness h;
  auto record = std::make_shared<RecordedSequence>();
  record->stop_after = 6;
  ASSERT_TRUE(h.Submit(Request(Prompt(4), 50), record).ok());
  const auto other = h.Start(Request(Prompt(4), 12));
  h.Step(2);
  EXPECT_EQ(record->end, SequenceEnd::kListener);
  EXPECT_EQ(record->tokens, Continue(h.engine, Prompt(4), 6));
  EXPECT_EQ(record->stats.generated_tokens, 6);
  EXPECT_EQ(h.scheduler->stats().wasted_slots, 2);
  h.Step();
  EXPECT_EQ(other->tokens, Continue(h.engine, Prompt(4), 12));
}

TEST(Scheduler, CountsTokensThatTheListenerLeftOut) {
  // An engine may report several tokens at once; the listener may want a part of them.
  class TwoOfFour : public SequenceListener {
   public:
    explicit TwoOfFour(SequenceStats* stats) : stats_(stats) {}
    std::optional<size_t> OnTokens(std::span<const SampledToken> tokens) override {
      EXPECT_THAT(tokens, SizeIs(4));
      return 2;
    }
    void OnFinish(SequenceEnd, const SequenceStats& stats) override { *stats_ = stats; }
    SequenceStats* stats_;
  };
  class FourAtOnce : public FakeEngine {
   public:
    absl::Status Step(std::span<const PageCopy>, std::span<const Row>, TokenSink& sink) override {
      EXPECT_TRUE(sink.OnTokens(0, std::vector<SampledToken>(4)));
      return absl::OkStatus();
    }
  };
  FourAtOnce engine;
  FakeClock clock;
  auto scheduler = *Scheduler::Create(&engine, &clock, {});
  SequenceStats stats;
  ASSERT_TRUE(scheduler->Submit(Request({}, 9), std::make_unique<TwoOfFour>(&stats)).ok());
  ASSERT_TRUE(scheduler->RunStep().ok());
  scheduler->Flush();
  EXPECT_EQ(stats.generated_tokens, 2);
  EXPECT_EQ(scheduler->stats().generated_tokens, 2);
  EXPECT_EQ(scheduler->stats().wasted_slots, 2);
}

TEST(Scheduler, ReportsWhereTheTimeWent) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  h.engine.on_step = [&](std::span<const Row>) {
    h.clock.Advance(milliseconds(10));
    return absl::OkStatus();
  };
  h.Start(Request(Prompt(4), 8));                       // two steps
  const auto record = h.Start(Request(Prompt(33), 8));  // three of prefill, of which one decodes
  const TimePoint submitted = h.clock.Now();
  while (!record->end.has_value()) h.Step();
  EXPECT_EQ(record->stats.submitted, submitted);
  EXPECT_EQ(*record->stats.first_step - submitted, milliseconds(20));
  EXPECT_EQ(*record->stats.first_token - *record->stats.first_step, milliseconds(20));
  EXPECT_EQ(record->stats.finished - *record->stats.first_token, milliseconds(20));
  EXPECT_EQ(record->stats.steps, 4);
  EXPECT_EQ(h.scheduler->stats().step_time, milliseconds(60));
  EXPECT_EQ(h.scheduler->stats().prompt_tokens, 37);
}

TEST(Scheduler, DrainsWhatItAcceptedAndRefusesTheRest) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  const auto running = h.Start(Request(Prompt(4), 8));
  h.Step();
  const auto waiting = h.Start(Request(Prompt(4), 100));
  h.scheduler->Drain(h.clock.Now() + milliseconds(30));
  EXPECT_EQ(h.Error(Request(Prompt(4), 1)).code(), absl::StatusCode::kUnavailable);
  h.Step(3);
  EXPECT_EQ(running->end, SequenceEnd::kLength);
  EXPECT_TRUE(h.scheduler->WaitForWork());
  h.clock.Advance(milliseconds(30));
  h.Step();
  EXPECT_EQ(waiting->end, SequenceEnd::kDrained);
  EXPECT_THAT(waiting->tokens, SizeIs(8));
  EXPECT_FALSE(h.scheduler->WaitForWork());
}

TEST(Scheduler, EndsEverythingWhenTheEngineFails) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape);
  const auto running = h.Start(Request(Prompt(4), 80));
  const auto waiting = h.Start(Request(Prompt(4), 80));
  h.Step();
  h.engine.on_step = [](std::span<const Row>) { return absl::InternalError("device lost"); };
  EXPECT_EQ(h.scheduler->RunStep(), absl::InternalError("device lost"));
  EXPECT_EQ(running->end, SequenceEnd::kEngineFailed);
  EXPECT_EQ(waiting->end, SequenceEnd::kEngineFailed);
  EXPECT_EQ(h.Error(Request(Prompt(4), 1)).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(h.scheduler->WaitForWork());
}

TEST(Scheduler, TreatsAnEngineThatDecodesTooLittleAsFailed) {
  class Silent : public FakeEngine {
   public:
    absl::Status Step(std::span<const PageCopy>, std::span<const Row>, TokenSink&) override {
      return absl::OkStatus();
    }
  };
  Silent engine;
  FakeClock clock;
  auto scheduler = *Scheduler::Create(&engine, &clock, {});
  const auto record = std::make_shared<RecordedSequence>();
  ASSERT_TRUE(
      scheduler->Submit(Request(Prompt(8), 4), std::make_unique<RecordingListener>(record)).ok());
  EXPECT_THAT(scheduler->RunStep().message(), HasSubstr("decoded row 0 to token 8, expected 12"));
  EXPECT_EQ(record->end, SequenceEnd::kEngineFailed);
}

TEST(Scheduler, NamesEveryProblemOfAnEngineAndItsOptions) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.page_tokens = 6;
  shape.max_prefill_tokens = 3;
  shape.max_rows = 0;
  FakeEngine engine(shape);
  FakeClock clock;
  const absl::Status status = Scheduler::Create(&engine, &clock, {.max_queue = 0}).status();
  for (const char* name : {"max_queue", "page_tokens", "max_prefill_tokens", "max_rows"}) {
    EXPECT_THAT(status.message(), HasSubstr(name));
  }
}

TEST(Scheduler, TakesAllSubmissionsOfACallOrNone) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 1;
  Harness h(shape, {.max_queue = 3});
  std::vector<Record> records;
  const auto call = [&](std::vector<SequenceRequest> requests) {
    std::vector<Scheduler::Submission> submissions;
    for (SequenceRequest& request : requests) {
      records.push_back(std::make_shared<RecordedSequence>());
      submissions.push_back(
          {std::move(request), std::make_unique<RecordingListener>(records.back())});
    }
    return h.scheduler->SubmitAll(std::move(submissions));
  };
  const SequenceRequest good = Request(Prompt(4), 4);
  EXPECT_EQ(call({good, good, Request({-1}, 4)}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(call({good, good, good, good}).status().code(), absl::StatusCode::kInvalidArgument);
  SequenceRequest overdue = good;
  overdue.deadline = h.clock.Now();
  EXPECT_EQ(call({good, overdue}).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h.scheduler->stats().num_waiting, 0);

  const auto ids = call({good, good});
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, SizeIs(2));
  EXPECT_EQ(call({good, good}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.scheduler->stats().num_waiting, 2);
  EXPECT_EQ(h.scheduler->stats().rejected_queue_full, 2);
  h.Step(3);
  int ended = 0;
  for (const Record& record : records) {
    ended += record->finish_calls;
    EXPECT_EQ(record.use_count(), 1);  // no listener is left
  }
  EXPECT_EQ(ended, 2);
}

TEST(Scheduler, EstimatesWhatASequenceTakesAndWhenItWouldBegin) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = 2;
  shape.num_pages = 12;
  Harness h(shape);
  h.engine.on_step = [&](std::span<const Row>) {
    h.clock.Advance(milliseconds(10));
    return absl::OkStatus();
  };
  const CostEstimate idle = h.scheduler->Estimate(20, 21);
  EXPECT_EQ(idle.pages, 6);
  EXPECT_TRUE(idle.fits);
  EXPECT_TRUE(idle.fits_now);
  EXPECT_EQ(idle.expected_wait, Duration(0));
  EXPECT_FALSE(h.scheduler->Estimate(100, 29).fits);  // the context
  EXPECT_FALSE(h.scheduler->Estimate(90, 7).fits);    // the pool
  EXPECT_FALSE(h.scheduler->Estimate(-1, 7).fits);

  const Record first = h.Start(Request(Prompt(4), 40));
  h.Step();
  EXPECT_TRUE(h.scheduler->Estimate(4, 40).fits_now);
  EXPECT_FALSE(h.scheduler->Estimate(4, 60).fits_now);  // 8 pages; 6 are promised
  EXPECT_GE(h.scheduler->Estimate(4, 60).expected_wait, milliseconds(80));
  Duration before = h.scheduler->Estimate(4, 4).expected_wait;
  for (int i = 0; i < 4; ++i) {
    h.Start(Request(Prompt(4, 100 * i), 90));
    h.Step();
    const CostEstimate busy = h.scheduler->Estimate(4, 4);
    EXPECT_TRUE(busy.fits);
    EXPECT_FALSE(busy.fits_now);
    EXPECT_GT(busy.expected_wait, before);
    before = busy.expected_wait;
  }
}

TEST(Scheduler, StopTokensEndARowInsideTheStep) {
  for (int position = 1; position <= 9; ++position) {
    Harness h;
    int num_sampled = 0;
    const auto model = h.engine.model;
    h.engine.model = [&](std::span<const TokenId> history, const Sampling& sampling) {
      ++num_sampled;
      return model(history, sampling);
    };
    const std::vector<TokenId> whole = Continue(h.engine, Prompt(4), 9);
    num_sampled = 0;
    SequenceRequest request = Request(Prompt(4), 50);
    request.stop_tokens = {whole[position - 1], 999};
    const Record record = h.Start(request);
    while (!record->end.has_value()) h.Step();
    EXPECT_EQ(record->end, SequenceEnd::kStopToken);
    EXPECT_THAT(record->tokens, SizeIs(position));
    EXPECT_EQ(num_sampled, position);
    EXPECT_EQ(h.engine.steps, (position + 3) / 4);
    EXPECT_EQ(h.scheduler->stats().wasted_slots, (position + 3) / 4 * 4 - position);
  }
}

TEST(Scheduler, ServesSubmissionsFromOtherThreads) {
  Harness h;
  std::vector<Record> records;
  for (int i = 0; i < 120; ++i) records.push_back(std::make_shared<RecordedSequence>());
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (int i = client; i < 120; i += 4) {
        const auto id = h.Submit(Request(Prompt(1 + i % 20), 1 + i % 7), records[i]);
        ASSERT_TRUE(id.ok()) << id.status();
        if (i % 3 == 0) h.scheduler->Cancel(*id);
        h.scheduler->stats();
      }
    });
  }
  std::thread loop([&] {
    while (h.scheduler->WaitForWork()) h.Step();
  });
  for (std::thread& client : clients) client.join();
  h.scheduler->Drain(TimePoint::max());
  loop.join();
  for (int i = 0; i < 120; ++i) {
    EXPECT_EQ(records[i]->finish_calls, 1);
    if (i % 3 == 0) continue;
    EXPECT_EQ(records[i]->tokens, Continue(h.engine, Prompt(1 + i % 20), 1 + i % 7));
  }
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
}

}  // namespace
}  // namespace photon
