// Generate with one sample: what is streamed, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(ServerTest, StreamsWhatTheEngineGenerates) {
  Start();
  const Reply reply = Generate(Request(30, "the old fox"));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  std::vector<TokenId> prompt = TestTokenizer().Encode("the old fox");
  prompt.insert(prompt.begin(), 1);
  Sampling sampling;
  sampling.seed = 1;
  EXPECT_EQ(reply.token_ids, Continue(*engine_, prompt, 30, sampling));
  std::vector<TokenId> all = prompt;
  all.insert(all.end(), reply.token_ids.begin(), reply.token_ids.end());
  EXPECT_EQ("the old fox" + reply.text, TestTokenizer().Decode(all));
  EXPECT_EQ(reply.num_results, 1);
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.result.usage().prompt_tokens(), static_cast<int>(prompt.size()));
  EXPECT_EQ(reply.result.usage().generated_tokens(), 30);
  EXPECT_EQ(reply.result.mode(), v1::GENERATION_MODE_EXACT);
  EXPECT_EQ(reply.result.seed(), 1u);
  EXPECT_GT(reply.result.timings().steps(), 7);
}

TEST_F(ServerTest, SendsTokensBeforeTheSequenceEnds) {
  Start();
  MakeEngineSay("The river ran under the bridge.");
  CloseGate();
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Request(20));
  gate_.Allow(1);
  gate_.AwaitStep(2);  // held there
  v1::GenerateResponse message;
  int received = 0;
  while (received < 3) {
    ASSERT_TRUE(reader->Read(&message));
    received += message.token_ids_size();
    EXPECT_FALSE(message.has_result());
  }
  gate_.Open();
  EXPECT_TRUE(ReadAll(*reader).status.ok());
}

TEST_F(ServerTest, EchoesTheRequestIdOrMakesOne) {
  Start();
  const std::vector<std::string> ids = {"my-request-7", "", std::string(129, 'x')};
  for (const std::string& sent : ids) {
    grpc::ClientContext context;
    if (!sent.empty()) context.AddMetadata("x-request-id", sent);
    const auto reader = generation_->Generate(&context, Request(1));
    reader->WaitForInitialMetadata();
    const auto found = context.GetServerInitialMetadata().find("x-request-id");
    ASSERT_NE(found, context.GetServerInitialMetadata().end());
    const std::string id(found->second.data(), found->second.size());
    if (sent == "my-request-7") {
      EXPECT_EQ(id, sent);
    } else {
      EXPECT_EQ(id.size(), 16u);
    }
    ReadAll(*reader);
  }
}

TEST_F(ServerTest, EndsAtAStopStringAndSaysWhich) {
  Start();
  MakeEngineSay("The fox ran home. The owl slept.");
  v1::GenerateRequest request = Request(500);
  request.mutable_parameters()->mutable_stop()->add_strings("never");
  request.mutable_parameters()->mutable_stop()->add_strings("me. T");
  const Reply reply = Generate(request);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.text, "The fox ran ho");
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(reply.result.stop_string(), "me. T");
  EXPECT_EQ(static_cast<int>(reply.token_ids.size()), reply.result.usage().generated_tokens());
}

TEST_F(ServerTest, EndsAtTheModelsEndOfText) {
  Start();
  engine_->model = [](std::span<const TokenId> history, const Sampling&) {
    return history.size() < 10 ? TokenId{300} : TokenId{2};
  };
  v1::GenerateRequest request = Request(100);
  request.mutable_parameters()->mutable_stop()->set_ignore_eos(false);
  const Reply reply = Generate(request);
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(reply.result.stop_token_id(), 2);
  EXPECT_EQ(reply.result.usage().generated_tokens(), 10);
  EXPECT_EQ(Generate(Request(100)).result.usage().generated_tokens(), 100);
}

TEST_F(ServerTest, ReportsALogprobForEachToken) {
  Start();
  v1::GenerateRequest request = Request(13);
  request.mutable_parameters()->set_top_logprobs(3);
  const Reply reply = Generate(request);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.num_logprobs, 13);
  EXPECT_EQ(Generate(Request(13)).num_logprobs, 0);
}

TEST_F(ServerTest, RefusesBadParametersByName) {
  Start();
  v1::GenerateRequest request = Request(10);
  request.mutable_parameters()->mutable_sampling()->set_top_p(1.5);
  request.mutable_parameters()->set_mode(v1::GENERATION_MODE_RECGEN);
  const Reply reply = Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), AllOf(HasSubstr("top_p"), HasSubstr("mode")));
  EXPECT_EQ(reply.num_results, 0);
}

TEST_F(ServerTest, RefusesWhatTheCacheCouldNeverHold) {
  EngineShape shape = TestShape();
  shape.num_pages = 4;
  Start(shape);
  const Reply reply = Generate(Request(100));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("the server has 4"));
}

TEST_F(ServerTest, NamesTheFieldThatIsNoUtf8) {
  Start();
  // prompt (1) { text (1): "a\xff" }
  grpc::Status status = CallRaw("/photon.v1.GenerationService/Generate",
                                std::string("\x0a\x04\x0a\x02") + "a\xff", nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "prompt.text: is not valid UTF-8");
  // parameters (2) { stop (4) { strings (1): "ok", "\xc3" } }
  status = CallRaw("/photon.v1.GenerationService/Generate",
                   "\x12\x09\x22\x07\x0a\x02ok\x0a\x01\xc3", nullptr);
  EXPECT_EQ(status.error_message(), "parameters.stop.strings[1]: is not valid UTF-8");
  // text (1): "\x80"
  status = CallRaw("/photon.v1.ModelService/Tokenize", "\x0a\x01\x80", nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "text: is not valid UTF-8");
  status = CallRaw("/photon.v1.GenerationService/Generate", "\x0a\x7f", nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("photon.v1.GenerateRequest"));
}

TEST_F(ServerTest, RefusesMessagesAboveItsLimit) {
  options_.max_message_bytes = 2048;
  Start();
  const Reply reply = Generate(Request(1, std::string(4096, 'x')));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace photon
