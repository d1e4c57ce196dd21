#include "server/call_output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/server/test_model.h"

namespace photon {
namespace {

using ::testing::ElementsAre;

std::vector<SampledToken> Sampled(const std::string& text) {
  std::vector<SampledToken> tokens;
  for (const TokenId id : TestTokenizer().EncodeContinuation(text)) tokens.push_back({.token = id});
  return tokens;
}

Query AfterBos(int n, std::shared_ptr<const IntegrationOptions> integration = nullptr) {
  Query query;
  query.sequence.prompt = {1};
  query.sequence.max_tokens = 50;
  query.n = n;
  query.integration = std::move(integration);
  return query;
}

std::vector<absl::StatusOr<Query>> One(Query query) {
  std::vector<absl::StatusOr<Query>> queries;
  queries.emplace_back(std::move(query));
  return queries;
}

SequenceStats Generated(int tokens) {
  SequenceStats stats;
  stats.generated_tokens = tokens;
  return stats;
}

TEST(CallOutput, TagsEachSampleOfEachQuery) {
  std::vector<absl::StatusOr<Query>> queries;
  queries.emplace_back(AfterBos(2));
  queries.emplace_back(absl::InvalidArgumentError("bad"));
  queries.emplace_back(AfterBos(1));
  CallOutput output(std::move(queries), TestTokenizer(), 1 << 20);
  const std::vector<SequenceRequest> requests = output.TakeRequests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(requests[1].sampling.sample, 1u);
  EXPECT_THAT(requests[0].prompt, ElementsAre(1));
  EXPECT_THAT(requests[1].prompt, ElementsAre(1));

  auto message = output.Next();
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(message->query, 1u);
  EXPECT_EQ(message->error, absl::InvalidArgumentError("bad"));
  EXPECT_FALSE(output.Next().has_value());

  output.Append(2, Sampled("owl"));
  output.Append(1, Sampled("fox"));
  message = output.Next();
  EXPECT_EQ(message->query, 2u);
  EXPECT_EQ(message->output.text(), "owl");
  message = output.Next();
  EXPECT_EQ(message->query, 0u);
  EXPECT_EQ(message->output.sample_index(), 1);
  EXPECT_EQ(message->output.text(), "fox");
  EXPECT_FALSE(output.Next().has_value());
}

TEST(CallOutput, PutsTogetherWhatWaitsAndLetsSequencesTakeTurns) {
  CallOutput output(One(AfterBos(2)), TestTokenizer(), 1 << 20);
  output.Append(0, Sampled("the "));
  output.Append(1, Sampled("a "));
  output.Append(0, Sampled("fox"));
  EXPECT_EQ(output.Next()->output.text(), "the fox");
  output.Append(0, Sampled(" ran"));
  EXPECT_EQ(output.Next()->output.sample_index(), 1);
  EXPECT_EQ(output.Next()->output.text(), " ran");
}

TEST(CallOutput, PausesASequenceAtItsMarkUntilItsMessageIsWritten) {
  CallOutput output(One(AfterBos(2)), TestTokenizer(), 2048);  // 1024 each
  const std::vector<SampledToken> tokens = Sampled(std::string(400, 'x') + std::string(400, 'y'));
  EXPECT_FALSE(output.Append(0, Sampled("short")).pause);
  int appended = 0;
  while (!output.Append(0, tokens).pause) ASSERT_LT(++appended, 100);
  EXPECT_FALSE(output.Append(0, tokens).pause) << "paused already";
  EXPECT_TRUE(output.paused(0));
  EXPECT_FALSE(output.paused(1));

  ASSERT_EQ(output.Next()->sequence, SequenceIndex{0});
  // More came while the message was on its way, and is too much again.
  for (int i = 0; i <= appended; ++i) output.Append(0, tokens);
  EXPECT_FALSE(output.Written(0));
  ASSERT_EQ(output.Next()->sequence, SequenceIndex{0});
  EXPECT_TRUE(output.Written(0));
  EXPECT_FALSE(output.paused(0));
  EXPECT_FALSE(output.Written(0)) << "goes on already";
}

TEST(CallOutput, IntegratesAfterTheLastSampleAndWithdrawsTheRest) {
  auto options = std::make_shared<IntegrationOptions>();
  options->extractor = AnswerExtractor::WholeText();
  CallOutput output(One(AfterBos(4, options)), TestTokenizer(), 1 << 20);
  const auto finish = [&](SequenceIndex index) {
    output.Append(index, Sampled("fox"));
    return output.Finish(index, SequenceEnd::kLength, Generated(3));
  };
  EXPECT_TRUE(finish(3));
  CallOutput::Integration run = output.BeginIntegration(3);
  EXPECT_FALSE(finish(1)) << "a run is under way";
  for (EndedSample& sample : run.samples) run.integrator->Add(std::move(sample));
  CallOutput::Integrated integrated = output.EndIntegration(run.query);
  EXPECT_TRUE(integrated.again);
  EXPECT_TRUE(integrated.withdrawn.empty());

  EXPECT_FALSE(finish(0));
  run = output.BeginIntegration(1);
  EXPECT_EQ(run.samples.size(), 2u);
  for (EndedSample& sample : run.samples) run.integrator->Add(std::move(sample));
  integrated = output.EndIntegration(run.query);
  EXPECT_THAT(integrated.withdrawn, ElementsAre(2));
  EXPECT_FALSE(integrated.again);
  EXPECT_EQ(output.Append(2, Sampled("owl")).end, 0u);
  EXPECT_TRUE(output.Finish(2, SequenceEnd::kCancelled, Generated(7)));
  run = output.BeginIntegration(2);
  for (EndedSample& sample : run.samples) run.integrator->Add(std::move(sample));
  output.EndIntegration(run.query);

  std::optional<CallOutput::Message> last;
  int results = 0;
  while (auto message = output.Next()) {
    EXPECT_FALSE(last.has_value() && last->output.has_integration());
    results += message->output.has_result();
    last = std::move(message);
  }
  EXPECT_EQ(results, 4);
  const v1::IntegrationResult& result = last->output.integration();
  EXPECT_EQ(result.answer(), "fox");
  EXPECT_EQ(result.sample_index(), 0);
  EXPECT_EQ(result.samples_cancelled(), 1);
  EXPECT_EQ(result.saved_tokens(), 43);
  EXPECT_TRUE(output.complete());
  EXPECT_TRUE(output.status().ok());
}

TEST(CallOutput, LeavesSamplesOutOnRequest) {
  auto options = std::make_shared<IntegrationOptions>();
  options->omit_samples = true;
  CallOutput output(One(AfterBos(1, options)), TestTokenizer(), 1024);
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(output.Append(0, Sampled("the fox")).pause);
  output.Finish(0, SequenceEnd::kLength, Generated(3000));
  EXPECT_FALSE(output.Next().has_value());
  CallOutput::Integration run = output.BeginIntegration(0);
  run.integrator->Add(std::move(run.samples[0]));
  output.EndIntegration(run.query);
  const auto message = output.Next();
  ASSERT_TRUE(message.has_value());
  EXPECT_FALSE(message->output.has_result());
  EXPECT_EQ(message->output.integration().text().size(), 7000u);
}

TEST(CallOutput, FailsAsAWholeWhereNoQueryIsToBlame) {
  const auto status_after = [](SequenceEnd end, int generated) {
    CallOutput output(One(AfterBos(2)), TestTokenizer(), 1024);
    output.Finish(0, end, Generated(generated));
    output.Finish(1, SequenceEnd::kLength, Generated(0));
    return output.status().code();
  };
  EXPECT_EQ(status_after(SequenceEnd::kLength, 5), absl::StatusCode::kOk);
  EXPECT_EQ(status_after(SequenceEnd::kDeadline, 5), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status_after(SequenceEnd::kStalled, 5), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status_after(SequenceEnd::kCancelled, 5), absl::StatusCode::kCancelled);
  EXPECT_EQ(status_after(SequenceEnd::kEngineFailed, 5), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status_after(SequenceEnd::kDrained, 0), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status_after(SequenceEnd::kDrained, 1), absl::StatusCode::kOk);
}

}  // namespace
}  // namespace photon
