// Generate with several samples, and what is made of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

// A call's messages by sample.
struct Samples {
  grpc::Status status;
  std::map<int, std::string> texts;
  std::map<int, std::vector<TokenId>> token_ids;
  std::map<int, v1::GenerationResult> results;
  std::optional<v1::IntegrationResult> integration;
};

class SamplesTest : public ServerTest {
 protected:
  Samples GenerateSamples(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, request);
    Samples samples;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      EXPECT_FALSE(samples.integration.has_value()) << "a message after the last one";
      if (message.has_integration()) {
        samples.integration = message.integration();
        continue;
      }
      const int sample = message.sample_index();
      EXPECT_EQ(samples.results.count(sample), 0u) << "a message after the sample's last one";
      samples.texts[sample] += message.text();
      auto& ids = samples.token_ids[sample];
      ids.insert(ids.end(), message.token_ids().begin(), message.token_ids().end());
      if (message.has_result()) samples.results[sample] = message.result();
    }
    samples.status = reader->Finish();
    return samples;
  }

  // Sample i says texts[i], and then ends.
  void MakeSamplesSay(const std::vector<std::string>& texts) {
    std::vector<std::vector<TokenId>> scripts;
    for (const std::string& text : texts) {
      scripts.push_back(TestTokenizer().Encode(text));
      scripts.back().push_back(2);
    }
    engine_->model = [scripts](std::span<const TokenId> history, const Sampling& sampling) {
      const std::vector<TokenId>& script = scripts[sampling.sample];
      return script[(history.size() - 1) % script.size()];
    };
  }

  static v1::GenerateRequest SamplesOf(int n, int max_tokens = 50) {
    v1::GenerateRequest request = Request(max_tokens);
    request.mutable_parameters()->set_n(n);
    request.mutable_parameters()->mutable_stop()->set_ignore_eos(false);
    return request;
  }

  static v1::GenerateRequest VoteOf(int n, int max_tokens = 50) {
    v1::GenerateRequest request = SamplesOf(n, max_tokens);
    request.mutable_parameters()->mutable_integration()->mutable_majority_vote()->set_answer_source(
        v1::ANSWER_SOURCE_LAST_NUMBER);
    return request;
  }
};

TEST_F(SamplesTest, EachSampleIsTaggedAndEndsWithItsOwnResult) {
  Start();
  const std::vector<std::string> texts = {"the fox", "a river", "The owl slept.", "home"};
  MakeSamplesSay(texts);
  const Samples samples = GenerateSamples(SamplesOf(4));
  ASSERT_TRUE(samples.status.ok()) << samples.status.error_message();
  ASSERT_EQ(samples.results.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(samples.texts.at(i), texts[i]);
    EXPECT_EQ(samples.results.at(i).finish_reason(), v1::FINISH_REASON_STOP_TOKEN);
    EXPECT_EQ(samples.results.at(i).usage().generated_tokens(),
              static_cast<int>(samples.token_ids.at(i).size()));
  }
  EXPECT_FALSE(samples.integration.has_value());
}

TEST_F(SamplesTest, SamplesShareTheirPrompt) {
  Start();
  v1::GenerateRequest request = SamplesOf(6, 8);
  *request.mutable_prompt()->mutable_text() = std::string(400, 'a') + std::string(400, 'b');
  const Samples samples = GenerateSamples(request);
  ASSERT_EQ(samples.results.size(), 6u);
  int64_t computed = 0;
  for (const auto& [sample, result] : samples.results) {
    computed += result.usage().prompt_tokens() - result.usage().cached_tokens();
  }
  const int prompt_tokens = samples.results.at(0).usage().prompt_tokens();
  // Once, and of every sample the meta-contexts at its beginning.
  EXPECT_LE(computed, prompt_tokens + 6 * 2 * 4);
}

TEST_F(SamplesTest, ATwinOfASampleSaysTheSame) {
  Start();
  engine_->model = [](std::span<const TokenId> history, const Sampling& sampling) {
    return static_cast<TokenId>(300 + (history.size() * 7 + sampling.sample * 13) % 100);
  };
  const Samples few = GenerateSamples(SamplesOf(2, 30));
  const Samples many = GenerateSamples(SamplesOf(20, 30));
  for (int i = 0; i < 2; ++i) EXPECT_EQ(few.token_ids.at(i), many.token_ids.at(i));
  EXPECT_NE(many.token_ids.at(0), many.token_ids.at(19));
}

TEST_F(SamplesTest, AnObviousMajorityStopsEarly) {
  Start();
  // The first 21 of 40 agree; the others would go on and on.
  engine_->model = [](std::span<const TokenId> history, const Sampling& sampling) {
    static const std::vector<TokenId> answer = TestTokenizer().Encode("It is 42");
    if (sampling.sample > 20) return TokenId{300};
    return history.size() <= answer.size() ? answer[history.size() - 1] : TokenId{2};
  };
  const Samples samples = GenerateSamples(VoteOf(40, 4000));  // 8 rows run at a time
  ASSERT_TRUE(samples.status.ok()) << samples.status.error_message();
  ASSERT_TRUE(samples.integration.has_value());
  const v1::IntegrationResult& vote = *samples.integration;
  EXPECT_EQ(vote.answer(), "42");
  EXPECT_EQ(vote.answers_size(), 1);
  EXPECT_GE(vote.samples_finished(), 21);
  EXPECT_GE(vote.samples_cancelled(), 8);
  EXPECT_EQ(vote.samples_finished() + vote.samples_cancelled(), 40);
  int64_t generated = 0, finished = 0, saved = 0;
  ASSERT_EQ(samples.results.size(), 40u);
  for (const auto& [index, result] : samples.results) {
    generated += result.usage().generated_tokens();
    if (result.finish_reason() == v1::FINISH_REASON_STOP_TOKEN) {
      ++finished;
    } else {
      EXPECT_EQ(result.finish_reason(), v1::FINISH_REASON_CANCELLED);
      saved += 4000 - result.usage().generated_tokens();
    }
  }
  EXPECT_EQ(vote.saved_tokens(), saved);
  EXPECT_EQ(vote.generated_tokens(), generated);
  EXPECT_EQ(vote.samples_finished(), finished);
}

TEST_F(SamplesTest, AVoteCanRunAllSamples) {
  Start();
  MakeSamplesSay({"2", "3", "2.0", "two", "+2"});
  v1::GenerateRequest request = VoteOf(5);
  request.mutable_parameters()->mutable_integration()->mutable_majority_vote()->set_run_all_samples(
      true);
  const v1::IntegrationResult vote = *GenerateSamples(request).integration;
  EXPECT_EQ(vote.answer(), "2");
  EXPECT_EQ(vote.sample_index(), 0);
  EXPECT_EQ(vote.samples_finished(), 5);
  EXPECT_EQ(vote.samples_without_answer(), 1);
  EXPECT_EQ(vote.saved_tokens(), 0);
  ASSERT_EQ(vote.answers_size(), 2);
  EXPECT_EQ(vote.answers(0).votes(), 3);
  EXPECT_EQ(vote.answers(1).answer(), "3");
}

TEST_F(SamplesTest, TheResultCanComeAlone) {
  Start();
  MakeSamplesSay({"1", "2", "2"});
  v1::GenerateRequest request = VoteOf(3);
  request.mutable_parameters()->mutable_integration()->set_omit_samples(true);
  const Samples samples = GenerateSamples(request);
  EXPECT_TRUE(samples.texts.empty());
  EXPECT_EQ(samples.integration->answer(), "2");
  EXPECT_EQ(samples.integration->text(), "2");
}

TEST_F(SamplesTest, TheBestOfNIsTheLikeliest) {
  Start();
  MakeSamplesSay({"one", "two"});
  v1::GenerateRequest request = SamplesOf(2);
  request.mutable_parameters()->mutable_integration()->mutable_best_of_n();
  const Samples samples = GenerateSamples(request);
  EXPECT_EQ(samples.integration->sample_index(), 0);  // the fake engine finds all equally likely
  EXPECT_EQ(samples.integration->text(), "one");
  EXPECT_EQ(samples.integration->mean_logprob(), -0.5f);
}

TEST_F(SamplesTest, RefusesBadVotesByName) {
  Start();
  v1::GenerateRequest request = VoteOf(2);
  auto& vote = *request.mutable_parameters()->mutable_integration()->mutable_majority_vote();
  vote.set_answer_source(v1::ANSWER_SOURCE_REGULAR_EXPRESSION);
  vote.set_regular_expression("(");
  request.mutable_parameters()->set_n(1025);
  const Samples samples = GenerateSamples(request);
  EXPECT_EQ(samples.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(samples.status.error_message(),
              HasSubstr("parameters.n: expected 1 to 1024, got 1025"));
  EXPECT_THAT(samples.status.error_message(),
              HasSubstr("parameters.integration.majority_vote.regular_expression: missing )"));
}

TEST_F(SamplesTest, RefusesMoreSamplesThanTheQueueEverTakes) {
  Start(TestShape(), {.max_queue = 8});
  EXPECT_EQ(GenerateSamples(SamplesOf(8)).results.size(), 8u);
  const Samples refused = GenerateSamples(SamplesOf(9));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("parameters.n: expected at most 8"));
}

}  // namespace
}  // namespace photon
