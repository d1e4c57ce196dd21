// Bodies of completion requests: what each field becomes, and what is refused, by name.
#include "server/http/completion_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/server/test_model.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<CompletionRequest> Parse(const std::string& members) {
  return ParseCompletionRequest(R"({"model": "test")" + members + "}", "test", RequestLimits());
}

CompletionRequest MustParse(const std::string& members) {
  auto request = Parse(members);
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() ? *std::move(request) : CompletionRequest();
}

TEST(CompletionRequest, HasTheDocumentedDefaults) {
  const CompletionRequest request = MustParse("");
  ASSERT_EQ(request.generation.prompts_size(), 1);
  EXPECT_EQ(request.generation.prompts(0).text(), "");
  EXPECT_EQ(request.generation.parameters().max_tokens(), 16);
  EXPECT_EQ(request.n, 1);
  EXPECT_FALSE(request.stream || request.echo || request.best_of || request.include_usage);
  EXPECT_FALSE(request.logprobs.has_value() || request.timeout.has_value());
}

TEST(CompletionRequest, TakesNullForEachDefault) {
  const CompletionRequest request = MustParse(
      R"(, "prompt": null, "best_of": null, "echo": null, "frequency_penalty": null,
         "logit_bias": null, "logprobs": null, "max_tokens": null, "n": null,
         "presence_penalty": null, "seed": null, "stop": null, "stream": null,
         "stream_options": null, "suffix": null, "temperature": null, "top_p": null,
         "user": null, "mode": null, "top_k": null)");
  EXPECT_EQ(request.generation.parameters().max_tokens(), 16);
  EXPECT_FALSE(request.generation.parameters().sampling().has_temperature());
}

TEST(CompletionRequest, ReadsEveryField) {
  const CompletionRequest request = MustParse(
      R"(, "prompt": "Once", "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "n": 2,
         "best_of": 3, "logprobs": 4, "stop": ["a", "b"], "seed": -1, "user": "me",
         "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "suffix": "",
         "mode": "recgen", "top_k": 5, "min_p": 0.125, "priority": "low", "ignore_eos": true,
         "stop_token_ids": [3, 4], "timeout_ms": 1500, "stream": false)");
  EXPECT_EQ(request.generation.prompts(0).text(), "Once");
  const v1::GenerationParameters& parameters = request.generation.parameters();
  EXPECT_EQ(parameters.max_tokens(), 7);
  EXPECT_EQ(parameters.sampling().temperature(), 0.5f);
  EXPECT_EQ(parameters.sampling().top_p(), 0.25f);
  EXPECT_EQ(parameters.sampling().top_k(), 5);
  EXPECT_EQ(parameters.sampling().min_p(), 0.125f);
  EXPECT_EQ(parameters.sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(parameters.n(), 3);
  EXPECT_EQ(request.n, 2);
  EXPECT_TRUE(request.best_of);
  EXPECT_EQ(request.logprobs, 4);
  EXPECT_TRUE(parameters.logprobs());
  EXPECT_EQ(parameters.top_logprobs(), 4);
  EXPECT_THAT(parameters.stop().strings(), ElementsAre("a", "b"));
  EXPECT_THAT(parameters.stop().token_ids(), ElementsAre(3, 4));
  EXPECT_TRUE(parameters.stop().ignore_eos());
  EXPECT_EQ(parameters.mode(), v1::GENERATION_MODE_RECGEN);
  EXPECT_EQ(parameters.priority(), v1::PRIORITY_LOW);
  EXPECT_EQ(request.timeout, std::chrono::milliseconds(1500));
}

TEST(CompletionRequest, TakesPromptsInFourForms) {
  EXPECT_EQ(MustParse(R"(, "prompt": "a")").generation.prompts_size(), 1);
  const auto texts = MustParse(R"(, "prompt": ["a", ""])").generation;
  ASSERT_EQ(texts.prompts_size(), 2);
  EXPECT_EQ(texts.prompts(0).text(), "a");
  const auto ids = MustParse(R"(, "prompt": [5, 6, 7])").generation;
  ASSERT_EQ(ids.prompts_size(), 1);
  EXPECT_THAT(ids.prompts(0).token_ids().ids(), ElementsAre(5, 6, 7));
  const auto lists = MustParse(R"(, "prompt": [[5], [6, 7]])").generation;
  ASSERT_EQ(lists.prompts_size(), 2);
  EXPECT_THAT(lists.prompts(1).token_ids().ids(), ElementsAre(6, 7));
}

TEST(CompletionRequest, StreamsWithUsageWhenAsked) {
  const auto request = MustParse(R"(, "stream": true, "stream_options": {"include_usage": true,
                "include_obfuscation": false})");
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
}

TEST(CompletionRequest, NamesWhatItRefuses) {
  const struct {
    const char* members;
    const char* error;
  } cases[] = {
      {R"(, "presence_penalty": 0.1)", "presence_penalty: is not supported"},
      {R"(, "frequency_penalty": -1)", "frequency_penalty: is not supported"},
      {R"(, "logit_bias": {"5": 1})", "logit_bias: is not supported"},
      {R"(, "suffix": "the end")", "suffix: is not supported"},
      {R"(, "messages": [])", "messages: is not a field"},
      {R"(, "max_tokens": 0)", "max_tokens: expected a whole number in [1, "},
      {R"(, "max_tokens": 1.5)", "max_tokens: expected a whole number"},
      {R"(, "max_tokens": "5")", "max_tokens: expected a whole number"},
      {R"(, "max_tokens": 99999999999999999999)", "max_tokens: expected a whole number"},
      {R"(, "n": 0)", "n: expected a whole number in [1, 1024]"},
      {R"(, "n": 1025)", "n: expected a whole number in [1, 1024]"},
      {R"(, "n": 3, "best_of": 2)", "best_of: expected at least n, 3, got 2"},
      {R"(, "best_of": 2, "stream": true)", "best_of: cannot be streamed"},
      {R"(, "prompt": ["a", "b"], "n": 600)", "n: prompts times samples are 1200 sequences"},
      {R"(, "logprobs": 6)", "logprobs: expected a whole number in [0, 5]"},
      {R"(, "logprobs": true)", "logprobs: expected a whole number"},
      {R"(, "logprobs": 0, "echo": true)", "echo: not with logprobs"},
      {R"(, "prompt": 5)", "prompt: expected a string, a list"},
      {R"(, "prompt": [])", "prompt: expected a string, a list"},
      {R"(, "prompt": ["a", 5])", "prompt: expected a string, a list"},
      {R"(, "prompt": [5, "a"])", "prompt: expected token ids alone"},
      {R"(, "prompt": [[5], ["a"]])", "prompt[1]: expected token ids alone"},
      {R"(, "prompt": {"a": 1})", "prompt: expected a string, a list"},
      {R"(, "stop": 5)", "stop: expected a string or a list"},
      {R"(, "stop": [5])", "stop: expected a string or a list"},
      {R"(, "seed": 1.5)", "seed: expected a whole number of 64 bits"},
      {R"(, "temperature": "hot")", "temperature: expected a number"},
      {R"(, "stream": 1)", "stream: expected true or false"},
      {R"(, "stream_options": {})", "stream_options: is allowed with stream alone"},
      {R"(, "stream": true, "stream_options": {"x": 1})", "stream_options.x: is not a stream"},
      {R"(, "stream": true, "stream_options": {"include_obfuscation": true})",
       "stream_options.include_obfuscation: is not supported"},
      {R"(, "mode": "fast")", "mode: expected \"exact\""},
      {R"(, "priority": "urgent")", "priority: expected \"low\""},
      {R"(, "user": 5)", "user: expected a string"},
      {R"(, "timeout_ms": 0)", "timeout_ms: expected a whole number in [1, "},
      {R"(, "stop_token_ids": ["a"])", "stop_token_ids: expected a whole number"},
  };
  for (const auto& c : cases) {
    const auto request = Parse(c.members);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << c.members;
    EXPECT_THAT(std::string(request.status().message()), StartsWith(c.error)) << c.members;
  }
}

TEST(CompletionRequest, NamesSeveralFieldsAtOnce) {
  const std::string error(Parse(R"(, "n": 0, "stop": 5)").status().message());
  EXPECT_THAT(error, HasSubstr("n: expected"));
  EXPECT_THAT(error, HasSubstr("; stop: expected"));
}

TEST(CompletionRequest, RefusesWhatIsNoJsonObject) {
  for (const char* body : {"", "[]", "5", "{", R"({"model": "test",})", "\xff",
                           R"({"a": "\ud800"})", R"({"max_tokens": 1e999})"}) {
    EXPECT_EQ(ParseCompletionRequest(body, "test", {}).status().message(),
              "the body is not a JSON object")
        << body;
  }
  const std::string deep(100'000, '[');
  EXPECT_FALSE(ParseCompletionRequest(deep, "test", {}).ok());
  EXPECT_FALSE(ParseCompletionRequest(deep + std::string(100'000, ']'), "test", {}).ok());
}

TEST(CompletionRequest, WantsThisModel) {
  EXPECT_EQ(ParseCompletionRequest("{}", "test", {}).status().message(), "model: is missing");
  const auto other = ParseCompletionRequest(R"({"model": "gpt"})", "test", {}).status();
  EXPECT_TRUE(absl::IsNotFound(other));
  EXPECT_EQ(other.message(), "model: this server serves test");
}

TEST(CompletionQueries, SpeakOfTheRequestsOwnFields) {
  const struct {
    const char* members;
    const char* error;
  } cases[] = {
      {R"(, "top_p": 0)", "top_p: expected (0, 1], got 0"},
      {R"(, "temperature": -1)", "temperature: expected [0, 100], got -1"},
      {R"(, "min_p": 2)", "min_p: expected [0, 1], got 2"},
      {R"(, "stop": [""])", "stop[0]: expected 1 to 256 bytes, got 0"},
      {R"(, "stop_token_ids": [99999])", "stop_token_ids[0]: expected [0, "},
      {R"(, "prompt": [5, 99999])", "prompt[1]: expected [0, "},
      {R"(, "prompt": [5, 99999999999])", "prompt[1]: expected [0, "},
      {R"(, "prompt": [[5], [5, 6, -7]])", "prompt[1][2]: expected [0, "},
      {R"(, "max_tokens": 5000)", "max_tokens: expected at most 4095, got 5000"},
  };
  const ModelFacts model = TestModel();
  for (const auto& c : cases) {
    const auto queries = CompletionQueries(MustParse(c.members), model, {}, 1);
    EXPECT_EQ(queries.status().code(), absl::StatusCode::kInvalidArgument) << c.members;
    EXPECT_THAT(std::string(queries.status().message()), StartsWith(c.error)) << c.members;
  }
}

TEST(CompletionQueries, RefuseModesThatTheModelLacksByTheirNames) {
  ModelFacts model = TestModel();
  model.shape.modes = {GenerationMode::kExact};
  const auto queries = CompletionQueries(MustParse(R"(, "mode": "recgen")"), model, {}, 1);
  EXPECT_EQ(queries.status().message(), "mode: this model allows exact; got recgen");
}

}  // namespace
}  // namespace photon
