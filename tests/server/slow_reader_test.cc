// Readers that do not keep up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

class SlowReaderTest : public ServerTest {
 protected:
  SlowReaderTest() { options_.max_unread_bytes = 4096; }

  // With a client whose connection buffers little of each stream.
  void StartServer(std::chrono::milliseconds max_pause) {
    Start(TestShape(), {.max_pause = max_pause});
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    generation_ = v1::GenerationService::NewStub(grpc::CreateCustomChannel(
        server_->address(), grpc::InsecureChannelCredentials(), arguments));
  }

  // Until `paused` sequences are paused for good, because connection and buffers are full.
  void AwaitStandstill(int paused) {
    ASSERT_TRUE(Eventually([&] {
      const int64_t generated = server_->stats().generated_tokens;
      if (server_->stats().num_paused != paused) return false;
      Generate(Request(50));
      const SchedulerStats stats = server_->stats();
      return stats.num_paused == paused && stats.generated_tokens == generated + 50;
    }));
  }

  // About a megabyte of log-probabilities for each sample.
  static v1::GenerateRequest Large(int n = 1) {
    v1::GenerateRequest request = Request(4000);
    request.mutable_parameters()->set_top_logprobs(20);
    request.mutable_parameters()->set_n(n);
    return request;
  }
};

TEST_F(SlowReaderTest, HoldsUpItsOwnSequenceAlone) {
  StartServer(std::chrono::hours(1));
  grpc::ClientContext context;
  const auto slow = generation_->Generate(&context, Large());
  AwaitStandstill(1);
  const int64_t generated = server_->stats().generated_tokens;
  const Reply other = Generate(Request(200));
  EXPECT_TRUE(other.status.ok());
  EXPECT_EQ(other.token_ids.size(), 200u);
  EXPECT_TRUE(Eventually([&] { return server_->stats().generated_tokens == generated + 200; }));
  EXPECT_EQ(server_->stats().num_paused, 1);
  EXPECT_GT(server_->stats().pages_in_use, 0);

  const Reply late = ReadAll(*slow);
  EXPECT_TRUE(late.status.ok()) << late.status.error_message();
  EXPECT_EQ(late.token_ids.size(), 4000u);
  EXPECT_EQ(late.num_logprobs, 4000);
  EXPECT_EQ(server_->stats().num_paused, 0);
}

TEST_F(SlowReaderTest, LosesItsSequenceAfterAWhile) {
  StartServer(std::chrono::milliseconds(50));
  grpc::ClientContext context;
  const auto slow = generation_->Generate(&context, Large());
  ASSERT_TRUE(Eventually(
      [&] { return server_->stats().finished[static_cast<size_t>(SequenceEnd::kStalled)] == 1; }));
  EXPECT_TRUE(Eventually([&] { return server_->stats().pages_in_use == 0; }));
  EXPECT_EQ(Generate(Request(20)).token_ids.size(), 20u);
  const Reply late = ReadAll(*slow);
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(late.status.error_message(), HasSubstr("does not read"));
  EXPECT_LT(late.token_ids.size(), 4000u);
}

TEST_F(SlowReaderTest, PausesAllItsSamplesOneByOne) {
  StartServer(std::chrono::hours(1));
  grpc::ClientContext context;
  const auto slow = generation_->Generate(&context, Large(4));
  AwaitStandstill(4);
  EXPECT_EQ(Generate(Request(50)).token_ids.size(), 50u);
  std::map<int, int> num_tokens;
  v1::GenerateResponse message;
  while (slow->Read(&message)) num_tokens[message.sample_index()] += message.token_ids_size();
  EXPECT_TRUE(slow->Finish().ok());
  for (int sample = 0; sample < 4; ++sample) EXPECT_EQ(num_tokens[sample], 4000);
}

TEST_F(SlowReaderTest, FreesWhatPausesWhenTheClientLeaves) {
  StartServer(std::chrono::hours(1));
  grpc::ClientContext context;
  const auto slow = generation_->Generate(&context, Large(2));
  AwaitStandstill(2);
  context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return server_->stats().pages_in_use == 0; }));
  EXPECT_EQ(ReadAll(*slow).status.error_code(), grpc::StatusCode::CANCELLED);
}

}  // namespace
}  // namespace photon
