// Faults of the engine, injected where the server meets it: steps that fail, throw or stand still,
// and what clients of each protocol see of them. Over real sockets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <string>

#include "inference/grpc_predict_v2.grpc.pb.h"
#include "tests/server/http/socket_client.h"
#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class EngineFaultsTest : public ServerTest {
 protected:
  static inference::ModelInferRequest InferenceRequest(int max_tokens) {
    inference::ModelInferRequest request;
    request.set_model_name("test");
    request.set_id("mine");
    auto& prompt = *request.add_inputs();
    prompt.set_name("text_input");
    prompt.set_datatype("BYTES");
    prompt.add_shape(1);
    prompt.mutable_contents()->add_bytes_contents("a");
    (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
    (*request.mutable_parameters())["ignore_eos"].set_bool_param(true);
    return request;
  }

  grpc::Status Infer(int max_tokens) {
    const auto stub = inference::GRPCInferenceService::NewStub(channel_);
    grpc::ClientContext context;
    inference::ModelInferResponse response;
    return stub->ModelInfer(&context, InferenceRequest(max_tokens), &response);
  }

  std::atomic<bool> engine_fails_ = false;

  // A completion's whole answer.
  std::string Complete() {
    SocketClient client(server_->http_address());
    const std::string body = R"({"model": "test", "prompt": "a", "max_tokens": 5})";
    client.Send(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        "Connection: close\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.ReadAll();
  }
};

TEST_F(EngineFaultsTest, AStepThatFailsEndsTheServerWithItsCause) {
  Start();
  engine_->on_step = [](std::span<const Row>) { return absl::InternalError("device lost"); };
  const grpc::Status status = Infer(5);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(Complete(), StartsWith("HTTP/1.1 503"));
  EXPECT_EQ(Generate(Request(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Eventually([&] { return Health() == HealthCheckResponse::NOT_SERVING; }));
  EXPECT_EQ(server_->Wait(), absl::InternalError("device lost"));
}

TEST_F(EngineFaultsTest, AStepThatCannotAllocateEndsLikeOneWhoseDeviceIsLost) {
  Start();
  engine_->on_step = [](std::span<const Row>) -> absl::Status { throw std::bad_alloc(); };
  EXPECT_EQ(Generate(Request(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const absl::Status cause = server_->Wait();
  EXPECT_EQ(cause.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(cause.message()), HasSubstr("bad_alloc"));
}

TEST_F(EngineFaultsTest, AnInferenceStreamSaysWhichRequestTheEngineFailed) {
  Start();
  engine_->on_step = [this](std::span<const Row>) {
    const absl::Status passed = gate_.Pass();
    return engine_fails_ ? absl::InternalError("device lost") : passed;
  };
  const auto stub = inference::GRPCInferenceService::NewStub(channel_);
  grpc::ClientContext context;
  const auto stream = stub->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(InferenceRequest(1000)));
  gate_.Allow(1);
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.error_message(), "");
  engine_fails_ = true;
  gate_.Open();
  while (response.error_message().empty()) ASSERT_TRUE(stream->Read(&response));
  const auto& failed = response.infer_response();
  EXPECT_EQ(failed.id(), "mine");
  EXPECT_EQ(failed.parameters().at("status_code").string_param(), "UNAVAILABLE");
  EXPECT_TRUE(failed.parameters().at("triton_final_response").bool_param());
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(EngineFaultsTest, WhileAStepStandsOthersAreAnsweredAndDeadlinesKept) {
  Start();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(20));
  gate_.AwaitStep(1);
  EXPECT_EQ(Health(), HealthCheckResponse::SERVING);
  SocketClient client(server_->http_address());
  client.Send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), HasSubstr("photon_num_requests_running"));
  grpc::ClientContext late;
  late.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(ReadAll(*generation_->Generate(&late, Request(20))).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  gate_.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());
}

}  // namespace
}  // namespace photon
