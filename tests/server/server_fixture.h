// The real server on a real socket, over a fake engine.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "photon/v1/document.grpc.pb.h"
#include "server/server.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/server/test_model.h"

namespace photon {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// Lets the engine run a given number of steps.
class StepGate {
 public:
  absl::Status Pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return passed_ < allowed_; });
    ++passed_;
    return absl::OkStatus();
  }
  void Allow(int steps) {
    std::lock_guard lock(mutex_);
    allowed_ += steps;
    changed_.notify_all();
  }
  void Open() { Allow(1 << 20); }
  // Until step `step` (from 1) has begun.
  void AwaitStep(int step) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= step; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, passed_ = 0, allowed_ = 0;
};

// A Generate call read to its end: one sample, or several in the order of their messages.
struct Reply {
  grpc::Status status;
  std::string text;
  std::vector<TokenId> token_ids;
  int num_logprobs = 0;
  int num_results = 0;
  v1::GenerationResult result;
};

class ServerTest : public ::testing::Test {
 protected:
  void Start(EngineShape shape = TestShape(), SchedulerOptions scheduler = {}) {
    options_.listen = options_.http.listen = "127.0.0.1:0";
    engine_ = std::make_unique<FakeEngine>(shape);
    auto server = Server::Start(
        options_, scheduler,
        {.facts = TestModel(shape), .engines = {Borrowed<Engine>(engine_.get())}}, loader_, clock_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_TRUE(server_->AwaitReady().ok());
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    generation_ = v1::GenerationService::NewStub(channel_);
    model_ = v1::ModelService::NewStub(channel_);
    documents_ = v1::DocumentService::NewStub(channel_);
    health_ = grpc::health::v1::Health::NewStub(channel_);
  }

  // The engine waits for the gate in each step from now on. Call before the first request.
  void CloseGate() {
    engine_->on_step = [this](std::span<const Row>) { return gate_.Pass(); };
  }

  void TearDown() override {
    gate_.Open();
    if (server_ == nullptr) return;
    server_->Drain();
    (void)server_->Wait();
    const SchedulerStats stats = server_->stats();
    EXPECT_EQ(stats.pages_in_use, 0);
    EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
  }

  // The engine generates the tokens of `text`, over and over.
  void MakeEngineSay(const std::string& text) {
    const std::vector<TokenId> script = TestTokenizer().Encode(text);
    engine_->model = [script](std::span<const TokenId> history, const Sampling&) {
      return script[(history.size() - 1) % script.size()];
    };
  }

  static v1::GenerateRequest Request(int max_tokens, const std::string& prompt = "") {
    v1::GenerateRequest request;
    request.mutable_prompt()->set_text(prompt);
    request.mutable_parameters()->set_max_tokens(max_tokens);
    request.mutable_parameters()->mutable_stop()->set_ignore_eos(true);
    request.mutable_parameters()->mutable_sampling()->set_seed(1);
    return request;
  }

  static Reply ReadAll(grpc::ClientReader<v1::GenerateResponse>& reader) {
    Reply reply;
    v1::GenerateResponse message;
    while (reader.Read(&message)) {
      reply.text += message.text();
      reply.token_ids.insert(reply.token_ids.end(), message.token_ids().begin(),
                             message.token_ids().end());
      reply.num_logprobs += message.logprobs_size();
      EXPECT_EQ(reply.num_results, 0) << "a message after the last one";
      if (message.has_result()) {
        ++reply.num_results;
        reply.result = message.result();
      }
    }
    reply.status = reader.Finish();
    return reply;
  }

  Reply Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, request);
    return ReadAll(*reader);
  }

  HealthCheckResponse::ServingStatus Health(const std::string& service = "") {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status = health_->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  // Sends raw bytes to any method and returns the first message of the answer.
  grpc::Status CallRaw(const std::string& method, const std::string& bytes, std::string* answer) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    std::mutex mutex;
    std::condition_variable done;
    std::optional<grpc::Status> status;
    stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                   [&](grpc::Status result) {
                     std::lock_guard lock(mutex);
                     status = std::move(result);
                     done.notify_one();
                   });
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return status.has_value(); });
    std::vector<grpc::Slice> slices;
    if (answer != nullptr && status->ok() && response.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        answer->append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
    return *status;
  }

  // Until what happens on other threads has happened.
  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::yield();
    }
    return true;
  }

  ServerOptions options_;
  ModelLoader loader_;
  const Clock* clock_ = nullptr;
  StepGate gate_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> model_;
  std::unique_ptr<v1::DocumentService::Stub> documents_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace photon
