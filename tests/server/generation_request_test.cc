#include "server/generation_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/server/test_model.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 77;

TEST(GenerateRequest, GetsEveryDefault) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("the fox");
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok()) << query.status();
  std::vector<TokenId> prompt = TestTokenizer().Encode("the fox");
  prompt.insert(prompt.begin(), 1);
  EXPECT_EQ(query->sequence.prompt, prompt);
  EXPECT_EQ(query->sequence.max_tokens, 16);
  EXPECT_EQ(query->sequence.mode, GenerationMode::kExact);
  EXPECT_EQ(query->sequence.sampling.temperature, 1.0f);
  EXPECT_EQ(query->sequence.sampling.top_p, 1.0f);
  EXPECT_EQ(query->sequence.sampling.seed, kSeed);
  EXPECT_THAT(query->sequence.stop_tokens, ElementsAre(2));
  EXPECT_FALSE(query->logprobs);
}

TEST(GenerateRequest, KeepsZerosThatTheClientSet) {
  v1::GenerateRequest request;
  request.mutable_parameters()->mutable_sampling()->set_temperature(0);
  request.mutable_parameters()->mutable_sampling()->set_seed(0);
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok());
  EXPECT_EQ(query->sequence.sampling.temperature, 0);
  EXPECT_EQ(query->sequence.sampling.seed, 0u);
}

TEST(GenerateRequest, StartsFromBosWithoutAPrompt) {
  v1::GenerateRequest unset, no_text, no_ids;
  no_text.mutable_prompt()->set_text("");
  no_ids.mutable_prompt()->mutable_token_ids();
  for (const auto& request : {unset, no_text, no_ids}) {
    const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
    ASSERT_TRUE(query.ok());
    EXPECT_THAT(query->sequence.prompt, ElementsAre(1));
  }
}

TEST(GenerateRequest, TakesTokenIdsAsTheyAre) {
  v1::GenerateRequest request;
  for (int id : {5, 6, 7}) request.mutable_prompt()->mutable_token_ids()->add_ids(id);
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok());
  EXPECT_THAT(query->sequence.prompt, ElementsAre(5, 6, 7));
}

TEST(GenerateRequest, DefaultsToWhatTheContextLeaves) {
  v1::GenerateRequest request;
  for (int i = 0; i < 4090; ++i) request.mutable_prompt()->mutable_token_ids()->add_ids(9);
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok());
  EXPECT_EQ(query->sequence.max_tokens, 6);
}

TEST(GenerateRequest, IgnoresTheModelsEndOfTextOnRequest) {
  v1::GenerateRequest request;
  request.mutable_parameters()->mutable_stop()->set_ignore_eos(true);
  request.mutable_parameters()->mutable_stop()->add_token_ids(50);
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok());
  EXPECT_THAT(query->sequence.stop_tokens, ElementsAre(50));
}

struct BadRequest {
  const char* message;  // part of the error
  std::function<void(v1::GenerateRequest&)> spoil;
};

TEST(GenerateRequest, NamesTheFieldAndItsLimit) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto sampling = [](v1::GenerateRequest& r) {
    return r.mutable_parameters()->mutable_sampling();
  };
  const auto stop = [](v1::GenerateRequest& r) { return r.mutable_parameters()->mutable_stop(); };
  const std::vector<BadRequest> cases = {
      {"parameters.sampling.temperature: expected [0, 100], got -1",
       [&](auto& r) { sampling(r)->set_temperature(-1); }},
      {"parameters.sampling.temperature: expected [0, 100], got nan",
       [&](auto& r) { sampling(r)->set_temperature(nan); }},
      {"parameters.sampling.temperature: expected [0, 100], got inf",
       [&](auto& r) { sampling(r)->set_temperature(INFINITY); }},
      {"parameters.sampling.top_k: expected 0 or more, got -3",
       [&](auto& r) { sampling(r)->set_top_k(-3); }},
      {"parameters.sampling.top_p: expected (0, 1], got 0",
       [&](auto& r) { sampling(r)->set_top_p(0); }},
      {"parameters.sampling.top_p: expected (0, 1], got 1.5",
       [&](auto& r) { sampling(r)->set_top_p(1.5); }},
      {"parameters.sampling.top_p: expected (0, 1], got nan",
       [&](auto& r) { sampling(r)->set_top_p(nan); }},
      {"parameters.sampling.min_p: expected [0, 1], got 2",
       [&](auto& r) { sampling(r)->set_min_p(2); }},
      {"parameters.top_logprobs: expected [0, 20], got 21",
       [&](auto& r) { r.mutable_parameters()->set_top_logprobs(21); }},
      {"parameters.max_tokens: expected at least 1, got 0",
       [&](auto& r) { r.mutable_parameters()->set_max_tokens(0); }},
      {"parameters.max_tokens: expected at most 4095, got 5000",
       [&](auto& r) { r.mutable_parameters()->set_max_tokens(5000); }},
      {"parameters.mode: this model allows GENERATION_MODE_EXACT, GENERATION_MODE_HIERGEN; got "
       "GENERATION_MODE_RECGEN",
       [&](auto& r) { r.mutable_parameters()->set_mode(v1::GENERATION_MODE_RECGEN); }},
      {"got 42",
       [&](auto& r) { r.mutable_parameters()->set_mode(static_cast<v1::GenerationMode>(42)); }},
      {"parameters.stop.strings: expected at most 16, got 17",
       [&](auto& r) {
         for (int i = 0; i < 17; ++i) stop(r)->add_strings("x");
       }},
      {"parameters.stop.strings[1]: expected 1 to 256 bytes, got 0",
       [&](auto& r) {
         stop(r)->add_strings("x");
         stop(r)->add_strings("");
       }},
      {"parameters.stop.strings[0]: expected 1 to 256 bytes, got 257",
       [&](auto& r) { stop(r)->add_strings(std::string(257, 'x')); }},
      {"parameters.stop.token_ids[0]: expected [0, 768), got 768",
       [&](auto& r) { stop(r)->add_token_ids(768); }},
      {"parameters.stop.token_ids: expected at most 64, got 65",
       [&](auto& r) {
         for (int i = 0; i < 65; ++i) stop(r)->add_token_ids(3);
       }},
      {"prompt.token_ids.ids[1]: expected [0, 768), got -4",
       [&](auto& r) {
         r.mutable_prompt()->mutable_token_ids()->add_ids(3);
         r.mutable_prompt()->mutable_token_ids()->add_ids(-4);
       }},
      {"parameters.n: expected 1 to 1024, got 0",
       [&](auto& r) { r.mutable_parameters()->set_n(0); }},
      {"parameters.priority: expected one of Priority, got 7",
       [&](auto& r) { r.mutable_parameters()->set_priority(static_cast<v1::Priority>(7)); }},
      {"parameters.integration: expected majority_vote or best_of_n",
       [&](auto& r) { r.mutable_parameters()->mutable_integration()->set_omit_samples(true); }},
      {"parameters.integration.majority_vote.answer_source: expected one of AnswerSource, got 0",
       [&](auto& r) { r.mutable_parameters()->mutable_integration()->mutable_majority_vote(); }},
      {"prompt: has 4096 tokens, expected at most 4095",
       [&](auto& r) {
         for (int i = 0; i < 4096; ++i) r.mutable_prompt()->mutable_token_ids()->add_ids(3);
       }},
  };
  for (const BadRequest& bad : cases) {
    v1::GenerateRequest request;
    bad.spoil(request);
    const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
    EXPECT_EQ(query.status().code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(query.status().message()), HasSubstr(bad.message));
  }
}

TEST(GenerateRequest, ReadsSamplesPriorityAndIntegration) {
  v1::GenerateRequest request;
  request.mutable_parameters()->set_n(7);
  request.mutable_parameters()->set_priority(v1::PRIORITY_HIGH);
  auto& integration = *request.mutable_parameters()->mutable_integration();
  integration.mutable_majority_vote()->set_answer_source(v1::ANSWER_SOURCE_JSON_POINTER);
  integration.mutable_majority_vote()->set_json_pointer("/answer");
  const auto query = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(query.ok()) << query.status();
  EXPECT_EQ(query->n, 7);
  EXPECT_EQ(query->sequence.priority, Priority::kHigh);
  ASSERT_NE(query->integration, nullptr);
  EXPECT_EQ(query->integration->extractor->Extract(R"({"answer": 5})"), "5");
  EXPECT_FALSE(query->integration->omit_samples);
}

TEST(AskRequest, PutsEachQuestionAfterTheDocument) {
  v1::AskRequest request;
  request.add_questions()->set_text(" and the owl");
  request.add_questions()->mutable_token_ids()->add_ids(9);
  request.add_questions();
  std::vector<TokenId> document = TestTokenizer().Encode("the fox");
  const auto queries = ParseAskRequest(request, document, TestModel(), RequestLimits(), kSeed);
  ASSERT_TRUE(queries.ok()) << queries.status();
  ASSERT_EQ(queries->size(), 3u);
  EXPECT_EQ(TestTokenizer().Decode((*queries)[0]->sequence.prompt), "the fox and the owl");
  EXPECT_EQ((*queries)[2]->sequence.prompt, document);
  document.push_back(9);
  EXPECT_EQ((*queries)[1]->sequence.prompt, document);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ((*queries)[i]->sequence.sampling.query, i);
}

TEST(GenerateRequest, NamesEveryProblemAtOnce) {
  v1::GenerateRequest request;
  request.mutable_parameters()->mutable_sampling()->set_top_p(2);
  request.mutable_parameters()->set_max_tokens(-1);
  const auto status = ParseGenerateRequest(request, TestModel(), RequestLimits(), kSeed).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("parameters.sampling.top_p"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("parameters.max_tokens"));
}

}  // namespace
}  // namespace photon
