// GenerateBatch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

struct BatchReply {
  grpc::Status status;
  std::map<std::pair<int, int>, std::vector<TokenId>> token_ids;  // by prompt and sample
  std::map<std::pair<int, int>, v1::GenerationResult> results;
  std::map<int, v1::IntegrationResult> integrations;  // by prompt
  std::map<int, v1::Error> errors;
};

class BatchTest : public ServerTest {
 protected:
  BatchReply GenerateBatch(const v1::GenerateBatchRequest& request) {
    grpc::ClientContext context;
    const auto reader = generation_->GenerateBatch(&context, request);
    BatchReply reply;
    v1::GenerateBatchResponse message;
    while (reader->Read(&message)) {
      const int prompt = message.prompt_index();
      if (message.has_error()) {
        reply.errors[prompt] = message.error();
        continue;
      }
      const v1::GenerateResponse& output = message.output();
      if (output.has_integration()) {
        reply.integrations[prompt] = output.integration();
        continue;
      }
      const std::pair key(prompt, output.sample_index());
      auto& ids = reply.token_ids[key];
      ids.insert(ids.end(), output.token_ids().begin(), output.token_ids().end());
      if (output.has_result()) reply.results[key] = output.result();
    }
    reply.status = reader->Finish();
    return reply;
  }

  static v1::GenerateBatchRequest BatchOf(const std::vector<std::string>& prompts, int max_tokens) {
    v1::GenerateBatchRequest request;
    for (const std::string& prompt : prompts) request.add_prompts()->set_text(prompt);
    *request.mutable_parameters() = Request(max_tokens).parameters();
    return request;
  }
};

TEST_F(BatchTest, ContinuesEachPromptInSeveralSamples) {
  Start();
  v1::GenerateBatchRequest request = BatchOf({"the fox", "", "a river"}, 20);
  request.mutable_parameters()->set_n(2);
  const BatchReply reply = GenerateBatch(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.results.size(), 6u);
  for (int prompt = 0; prompt < 3; ++prompt) {
    std::vector<TokenId> tokens = TestTokenizer().Encode(request.prompts(prompt).text());
    tokens.insert(tokens.begin(), 1);
    Sampling sampling;
    sampling.seed = 1;
    for (int sample = 0; sample < 2; ++sample) {
      EXPECT_EQ(reply.token_ids.at({prompt, sample}), Continue(*engine_, tokens, 20, sampling));
    }
  }
}

TEST_F(BatchTest, DrawsByPromptAndSample) {
  Start();
  engine_->model = [](std::span<const TokenId>, const Sampling& sampling) {
    return static_cast<TokenId>(300 + 10 * sampling.query + sampling.sample);
  };
  v1::GenerateBatchRequest request = BatchOf({"a", "a", "a"}, 1);
  request.mutable_parameters()->set_n(2);
  const BatchReply reply = GenerateBatch(request);
  for (int prompt = 0; prompt < 3; ++prompt) {
    for (int sample = 0; sample < 2; ++sample) {
      EXPECT_EQ(reply.token_ids.at({prompt, sample})[0], 300 + 10 * prompt + sample);
    }
  }
}

TEST_F(BatchTest, ABadPromptFailsAlone) {
  EngineShape shape = TestShape();
  shape.num_pages = 16;  // 256 tokens
  Start(shape);
  v1::GenerateBatchRequest request = BatchOf({"the fox", "", "a river", ""}, 8);
  request.mutable_prompts(1)->mutable_token_ids()->add_ids(9999);
  for (int i = 0; i < 300; ++i) request.mutable_prompts(3)->mutable_token_ids()->add_ids(5);
  const BatchReply reply = GenerateBatch(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.errors.size(), 2u);
  EXPECT_EQ(reply.errors.at(1).code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.errors.at(1).message(),
              HasSubstr("prompts[1].token_ids.ids[0]: expected [0, 768), got 9999"));
  EXPECT_THAT(reply.errors.at(3).message(), HasSubstr("the server has 16"));
  EXPECT_EQ(reply.results.count({0, 0}), 1u);
  EXPECT_EQ(reply.results.count({2, 0}), 1u);
  EXPECT_EQ(reply.results.size(), 2u);
}

TEST_F(BatchTest, ABatchOfBadPromptsIsABatch) {
  Start();
  v1::GenerateBatchRequest request = BatchOf({"", ""}, 8);
  for (auto& prompt : *request.mutable_prompts()) prompt.mutable_token_ids()->add_ids(-1);
  const BatchReply reply = GenerateBatch(request);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.errors.size(), 2u);
}

TEST_F(BatchTest, VotesOnEachPrompt) {
  Start();
  engine_->model = [](std::span<const TokenId>, const Sampling& sampling) {
    static const TokenId one = TestTokenizer().Encode("1").back();
    static const TokenId two = TestTokenizer().Encode("2").back();
    return sampling.query == 0 || sampling.sample == 0 ? one : two;
  };
  v1::GenerateBatchRequest request = BatchOf({"a", "b"}, 1);
  request.mutable_parameters()->set_n(3);
  request.mutable_parameters()->mutable_integration()->mutable_majority_vote()->set_answer_source(
      v1::ANSWER_SOURCE_WHOLE_TEXT);
  const BatchReply reply = GenerateBatch(request);
  ASSERT_EQ(reply.integrations.size(), 2u);
  EXPECT_EQ(reply.integrations.at(0).answer(), "1");
  EXPECT_EQ(reply.integrations.at(1).answer(), "2");
  EXPECT_EQ(reply.integrations.at(1).sample_index(), 1);
}

TEST_F(BatchTest, RefusesABatchThatIsTooLargeByItsNumbers) {
  options_.requests.max_prompts = 4;
  options_.requests.max_sequences = 6;
  Start();
  BatchReply reply = GenerateBatch(BatchOf({}, 1));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("prompts: expected 1 to 4, got 0"));
  reply = GenerateBatch(BatchOf({"", "", "", "", ""}, 1));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("prompts: expected 1 to 4, got 5"));
  v1::GenerateBatchRequest request = BatchOf({"", "", ""}, 1);
  request.mutable_parameters()->set_n(3);
  reply = GenerateBatch(request);
  EXPECT_THAT(reply.status.error_message(),
              HasSubstr("prompts: 3 times an n of 3 are 9 sequences, expected at most 6"));
}

TEST_F(BatchTest, TheQueueTakesABatchWholeOrNot) {
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  Start(shape, {.max_queue = 4});
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(8));
  gate_.AwaitStep(1);
  grpc::ClientContext waiting_context;
  v1::GenerateBatchRequest two = BatchOf({"", ""}, 1);
  const auto waiting = generation_->GenerateBatch(&waiting_context, two);
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 2; }));
  const BatchReply refused = GenerateBatch(BatchOf({"", "", ""}, 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(refused.token_ids.empty());
  EXPECT_EQ(server_->stats().num_waiting, 2);
  gate_.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());
  v1::GenerateBatchResponse message;
  while (waiting->Read(&message)) {
  }
  EXPECT_TRUE(waiting->Finish().ok());
}

}  // namespace
}  // namespace photon
