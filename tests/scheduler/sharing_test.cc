// What sequences of one text share.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "tests/scheduler/scheduler_harness.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Pages of four meta-contexts.
EngineShape WidePages() {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.page_tokens = 16;
  return shape;
}

// Remembers the page tables of each step, by the row's sampling.query.
struct TableRecorder {
  explicit TableRecorder(FakeEngine& engine) {
    engine.on_step = [this](std::span<const Row> rows) {
      for (const Row& row : rows) {
        tables[row.sampling.query].assign(row.pages.begin(), row.pages.end());
        const int whole = static_cast<int>(row.input.size()) / 4 * 4;
        prefilled_tokens += whole;
      }
      return absl::OkStatus();
    };
  }
  std::map<uint32_t, std::vector<PageId>> tables;
  int prefilled_tokens = 0;
};

TEST(Sharing, ASecondSequenceTakesFullPagesAndACopyOfThePartialOne) {
  Harness h(WidePages());
  TableRecorder recorder(h.engine);
  SequenceRequest request = Request(Prompt(29), 1);  // one page, three meta-contexts, a tail of one
  request.sampling.query = 1;
  const Record first = h.Start(request);
  h.Finish({first});
  EXPECT_EQ(first->stats.cached_tokens, 0);
  EXPECT_EQ(recorder.prefilled_tokens, 28);

  request.sampling.query = 2;
  const Record second = h.Start(request);
  h.Step();
  EXPECT_THAT(h.engine.last_copies, SizeIs(1));
  EXPECT_EQ(h.engine.last_copies[0].from, recorder.tables[1][1]);
  EXPECT_EQ(h.engine.last_copies[0].to, recorder.tables[2][1]);
  EXPECT_EQ(recorder.tables[2][0], recorder.tables[1][0]);
  // The last meta-context of the copied page is computed again, for its top state.
  EXPECT_EQ(h.engine.last_rows[0].cached_tokens, 24);
  EXPECT_EQ(h.engine.last_rows[0].input.size(), 5u);
  EXPECT_EQ(second->stats.cached_tokens, 24);
  EXPECT_EQ(second->tokens, first->tokens);
  EXPECT_EQ(h.scheduler->stats().page_copies, 1);
  EXPECT_EQ(h.scheduler->stats().prompt_tokens, 58);
  EXPECT_EQ(h.scheduler->stats().prompt_tokens_cached, 24);
}

TEST(Sharing, AConversationGoesOnFromWhatWasGenerated) {
  for (const GenerationMode mode : {GenerationMode::kExact, GenerationMode::kHierGen}) {
    Harness h;
    SequenceRequest request = Request(Prompt(10), 30);
    request.mode = mode;
    const Record first = h.Start(request);
    h.Finish({first});
    std::vector<TokenId> prompt = request.prompt;
    prompt.insert(prompt.end(), first->tokens.begin(), first->tokens.end());
    const Record second = h.Start(Request(prompt, 10));
    h.Finish({second});
    EXPECT_EQ(second->stats.cached_tokens, 32);  // whole pages of its 40
    EXPECT_EQ(second->tokens, Continue(h.engine, prompt, 10));
  }
}

TEST(Sharing, WhatIsDecodedIsSharedWhenItsSequenceEnds) {
  Harness h(WidePages());
  const auto cached_of = [&](const Record& record, int tokens) {
    std::vector<TokenId> text = Prompt(4);
    text.insert(text.end(), record->tokens.begin(), record->tokens.end());
    text.resize(tokens);
    const Record asked = h.Start(Request(text, 1));
    h.Finish({asked});
    return asked->stats.cached_tokens;
  };
  SequenceId id{};
  const Record running = h.Start(Request(Prompt(4), 60), &id);
  h.Step(2);  // twelve tokens are in its page, eight of them since the step that prefilled
  ASSERT_THAT(running->tokens, SizeIs(8));
  EXPECT_EQ(cached_of(running, 12), 4);  // the last meta-context of eight is computed again
  while (running->tokens.size() < 24) h.Step();
  h.scheduler->Cancel(id);
  h.Finish({running});
  EXPECT_EQ(cached_of(running, 28), 24);
}

TEST(Sharing, PredictionsOfRecGenStayWithTheirSequence) {
  Harness h(WidePages());
  SequenceRequest request = Request(Prompt(16), 32);
  request.mode = GenerationMode::kRecGen;
  const Record first = h.Start(request);
  h.Finish({first});
  EXPECT_EQ(first->tokens, Continue(h.engine, Prompt(16), 32));
  std::vector<TokenId> prompt = request.prompt;
  prompt.insert(prompt.end(), first->tokens.begin(), first->tokens.end());
  const Record second = h.Start(Request(prompt, 10));
  h.Finish({second});
  EXPECT_EQ(second->stats.cached_tokens, 16);
  EXPECT_EQ(second->tokens, Continue(h.engine, prompt, 10));
}

TEST(Sharing, EqualPromptsThatComeTogetherArePrefilledOnce) {
  Harness h;
  TableRecorder recorder(h.engine);
  std::vector<Record> records;
  for (int i = 0; i < 4; ++i) {
    SequenceRequest request = Request(Prompt(33), 8);
    request.sampling.seed = i;
    request.sampling.query = i;
    records.push_back(h.Start(request));
  }
  h.Step();
  EXPECT_THAT(h.engine.last_rows, SizeIs(1));
  h.Finish(records);
  EXPECT_EQ(recorder.prefilled_tokens, 32);
  for (int i = 0; i < 4; ++i) {
    Sampling sampling;
    sampling.seed = i;
    EXPECT_EQ(records[i]->tokens, Continue(h.engine, Prompt(33), 8, sampling));
    EXPECT_EQ(records[i]->stats.cached_tokens, i == 0 ? 0 : 32);
  }
}

TEST(Sharing, APromptWaitsForNoMoreThanWhatItShares) {
  Harness h;
  const Record document = h.Start(Request(Prompt(100), 4));
  h.Step();
  std::vector<TokenId> prompt = Prompt(32);  // of which the document's second step computes the end
  prompt.push_back(999);
  const Record question = h.Start(Request(prompt, 1));
  h.Step();
  EXPECT_THAT(question->tokens, IsEmpty());
  h.Step();
  EXPECT_THAT(question->tokens, SizeIs(1));
  EXPECT_EQ(question->stats.cached_tokens, 32);
  EXPECT_THAT(document->tokens, IsEmpty());
}

TEST(Sharing, WaitingForAPrefixEndsWithTheSequenceThatPrefilledIt) {
  Harness h;
  SequenceId id;
  const Record first = h.Start(Request(Prompt(60), 4), &id);
  const Record second = h.Start(Request(Prompt(60), 4));
  h.Step();
  h.scheduler->Cancel(id);
  h.Finish({first, second});
  EXPECT_EQ(second->stats.cached_tokens, 16);
  EXPECT_EQ(second->tokens, Continue(h.engine, Prompt(60), 4));
}

TEST(Sharing, OtherTenantsShareNothing) {
  Harness h;
  TableRecorder recorder(h.engine);
  std::vector<Record> records;
  for (uint64_t tenant = 0; tenant < 2; ++tenant) {
    SequenceRequest request = Request(Prompt(9), 1);
    request.tenant = TenantId{tenant};
    request.sampling.query = static_cast<uint32_t>(tenant);
    records.push_back(h.Start(request));
  }
  h.Step();  // neither waits for the other
  EXPECT_THAT(h.engine.last_rows, SizeIs(2));
  EXPECT_NE(recorder.tables[0][0], recorder.tables[1][0]);
  SequenceRequest late = Request(Prompt(9), 1);
  late.tenant = TenantId{2};
  records.push_back(h.Start(late));
  h.Finish(records);
  for (const Record& record : records) EXPECT_EQ(record->stats.cached_tokens, 0);
}

TEST(Sharing, SamplesOfOnePromptHoldItsPagesOnce) {
  constexpr int kSamples = 256, kPrompt = 36, kOutput = 20;
  EngineShape shape = FakeEngine::DefaultShape();
  shape.max_rows = kSamples;
  shape.num_pages = 1024;
  shape.max_prefill_tokens = 4 * kSamples;
  Harness h(shape);
  // So that all begin in the same step.
  h.Finish({h.Start(Request(Prompt(kPrompt), 1))});
  std::vector<Record> records;
  std::vector<Scheduler::Submission> submissions;
  for (int i = 0; i < kSamples; ++i) {
    SequenceRequest request = Request(Prompt(kPrompt), kOutput);
    request.sampling.seed = i;
    records.push_back(std::make_shared<RecordedSequence>());
    submissions.push_back(
        {std::move(request), std::make_unique<RecordingListener>(records.back())});
  }
  ASSERT_TRUE(h.scheduler->SubmitAll(std::move(submissions)).ok());
  int most_in_use = 0;
  while (h.scheduler->stats().num_running + h.scheduler->stats().num_waiting > 0) {
    h.Step();
    most_in_use = std::max(most_in_use, h.scheduler->stats().pages_in_use);
  }
  const int shared = kPrompt / shape.page_tokens;
  EXPECT_EQ(most_in_use, shared + kSamples * (PagesNeeded(shape, kPrompt + kOutput) - shared));
  EXPECT_EQ(h.scheduler->stats().pages_in_use, 0);
  for (int i = 0; i < kSamples; ++i) {
    Sampling sampling;
    sampling.seed = i;
    ASSERT_EQ(records[i]->tokens, Continue(h.engine, Prompt(kPrompt), kOutput, sampling));
  }
}

TEST(Sharing, MemoryThatOthersNeedIsTakenFromTheCache) {
  EngineShape shape = FakeEngine::DefaultShape();
  shape.num_pages = 10;
  Harness h(shape);
  const Record first = h.Start(Request(Prompt(40), 8));
  h.Finish({first});
  EXPECT_EQ(h.scheduler->stats().pages_cached, 6);
  const Record second = h.Start(Request(Prompt(60, 100), 8));
  h.Finish({second});
  EXPECT_EQ(h.scheduler->stats().evictions, 5);
  // The end of a text goes before its beginning.
  const Record again = h.Start(Request(Prompt(40), 8));
  h.Finish({again});
  EXPECT_EQ(again->stats.cached_tokens, 8);
  EXPECT_EQ(again->tokens, first->tokens);
}

}  // namespace
}  // namespace photon
