// Clients that leave, deadlines, a full queue, drain, and an engine that fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "inference/grpc_predict_v2.grpc.pb.h"
#include "server/run.h"
#include "server/signals.h"
#include "tests/scheduler/fake_clock.h"
#include "tests/server/server_fixture.h"

namespace photon {
namespace {

TEST_F(ServerTest, FreesTheRowOfAClientThatLeaves) {
  Start();
  CloseGate();
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Request(4000));
  gate_.Allow(1);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  gate_.Open();
  EXPECT_TRUE(Eventually([&] { return server_->stats().num_running == 0; }));
  EXPECT_LT(server_->stats().generated_tokens, 4000);
}

TEST_F(ServerTest, EndsRequestsAtTheirDeadline) {
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  Start(shape);
  CloseGate();
  const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(100);
  grpc::ClientContext running_context, waiting_context;
  running_context.set_deadline(deadline);
  waiting_context.set_deadline(deadline);
  const auto running = generation_->Generate(&running_context, Request(4000));
  const auto waiting = generation_->Generate(&waiting_context, Request(4000));
  EXPECT_EQ(ReadAll(*running).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(ReadAll(*waiting).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  gate_.Open();
  EXPECT_TRUE(Eventually([&] {
    const SchedulerStats stats = server_->stats();
    return stats.num_running + stats.num_waiting == 0;
  }));
  EXPECT_EQ(server_->stats().pages_in_use, 0);
}

TEST_F(ServerTest, RefusesWhatItsQueueCannotHold) {
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  Start(shape, {.max_queue = 1});
  CloseGate();
  grpc::ClientContext running_context, waiting_context, refused_context;
  const auto running = generation_->Generate(&running_context, Request(8));
  gate_.AwaitStep(1);
  // The queue hears of it a moment after the engine.
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_running == 1; }));
  const auto waiting = generation_->Generate(&waiting_context, Request(8));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));
  const auto refused = generation_->Generate(&refused_context, Request(8));
  EXPECT_EQ(ReadAll(*refused).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused_context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  gate_.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());
  EXPECT_TRUE(ReadAll(*waiting).status.ok());
}

TEST_F(ServerTest, DrainsRunningStreamsAndRefusesNewOnes) {
  Start();
  CloseGate();
  grpc::ClientContext watch_context;
  const auto watch = health_->Watch(&watch_context, HealthCheckRequest());
  HealthCheckResponse health;
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::SERVING);

  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(50));
  gate_.AwaitStep(1);
  server_->Drain();
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::NOT_SERVING);
  // The client hears that it is to connect again for another call, and finds nobody.
  EXPECT_TRUE(Eventually(
      [&] { return channel_->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_IDLE; }));
  EXPECT_EQ(Generate(Request(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  gate_.Open();
  const Reply reply = ReadAll(*running);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.token_ids.size(), 50u);
  EXPECT_TRUE(server_->Wait().ok());
  EXPECT_FALSE(watch->Read(&health));
}

TEST_F(ServerTest, EndsStreamsWithPartialTextWhenTheDrainTimesOut) {
  options_.drain_timeout = std::chrono::milliseconds(0);
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  Start(shape);
  CloseGate();
  grpc::ClientContext running_context, waiting_context;
  const auto running = generation_->Generate(&running_context, Request(4000));
  gate_.AwaitStep(1);
  // The queue hears of it a moment after the engine.
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_running == 1; }));
  const auto waiting = generation_->Generate(&waiting_context, Request(4000));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));
  gate_.Allow(2);
  gate_.AwaitStep(3);
  server_->Drain();
  gate_.Open();
  const Reply reply = ReadAll(*running);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_DRAIN);
  // After a forced BOS two steps of 4, and the third if the drain found it done.
  EXPECT_THAT(reply.token_ids.size(), ::testing::AnyOf(7u, 11u));
  EXPECT_EQ(ReadAll(*waiting).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(server_->Wait().ok());
}

TEST_F(ServerTest, TellsEveryoneWhenTheEngineFails) {
  Start();
  grpc::ClientContext watch_context;
  const auto watch = health_->Watch(&watch_context, HealthCheckRequest());
  HealthCheckResponse health;
  ASSERT_TRUE(watch->Read(&health));
  engine_->on_step = [](std::span<const Row>) { return absl::InternalError("device lost"); };
  EXPECT_EQ(Generate(Request(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(server_->Wait(), absl::InternalError("device lost"));
}

TEST_F(ServerTest, TakesRequestsDuringTheDrainPauseThoughHealthSaysNo) {
  options_.drain_pause = std::chrono::hours(1);
  Start();
  server_->Drain();
  EXPECT_EQ(Health(), HealthCheckResponse::NOT_SERVING);
  const Reply reply = Generate(Request(5));
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.token_ids.size(), 5u);
  server_.reset();  // does not wait for the pause
}

TEST_F(ServerTest, DrainsWhenThePauseIsOver) {
  options_.drain_pause = std::chrono::milliseconds(1);
  Start();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(50));
  gate_.AwaitStep(1);
  server_->Drain();
  server_->Drain();
  gate_.Open();
  EXPECT_EQ(ReadAll(*running).token_ids.size(), 50u);
  EXPECT_TRUE(server_->Wait().ok());
  EXPECT_EQ(Generate(Request(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

// A server whose clock the test moves: so far that the step under way counts as stuck.
class StuckServerTest : public ServerTest {
 protected:
  void StartAndGetStuck() {
    clock_ = &fake_clock_;
    options_.supervisor.step_timeout = std::chrono::seconds(60);
    options_.drain_timeout = std::chrono::hours(1);
    Start();
    CloseGate();
  }

  // Wait does not wait for the step, the destructor does.
  void TearDown() override {
    gate_.Open();
    server_.reset();
  }

  // As the Open Inference Protocol has it.
  bool IsLive() {
    grpc::ClientContext context;
    inference::ServerLiveResponse response;
    const grpc::Status status = inference::GRPCInferenceService::NewStub(channel_)->ServerLive(
        &context, inference::ServerLiveRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.live();
  }

  FakeClock fake_clock_;
};

TEST_F(StuckServerTest, AStuckEngineEndsEverythingWithUnavailable) {
  StartAndGetStuck();
  grpc::ClientContext watch_context;
  const auto watch = health_->Watch(&watch_context, HealthCheckRequest());
  HealthCheckResponse health;
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::SERVING);
  EXPECT_TRUE(IsLive());

  grpc::ClientContext context, upload_context;
  const auto running = generation_->Generate(&context, Request(50));
  gate_.AwaitStep(1);
  v1::CreateDocumentResponse created;
  const auto upload = documents_->CreateDocument(&upload_context, &created);
  v1::CreateDocumentRequest settings, text;
  settings.mutable_settings();
  text.set_text("Once upon a time");
  ASSERT_TRUE(upload->Write(settings));
  ASSERT_TRUE(upload->Write(text));
  ASSERT_TRUE(upload->WritesDone());
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));

  fake_clock_.Advance(std::chrono::seconds(60));
  EXPECT_EQ(ReadAll(*running).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(upload->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(IsLive());
  const absl::Status ended = server_->Wait();
  EXPECT_EQ(ended.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(ended.message()), ::testing::HasSubstr("the engine is stuck"));
  EXPECT_TRUE(server_->must_be_left_behind());
}

// In a process of its own, whose engine never comes back.
TEST(StuckServerDeathTest, TheProcessExitsWith1AlthoughTheStepNeverEnds) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto serve = [] {
    ServerSignals::Block();
    spdlog::set_default_logger(spdlog::stderr_logger_mt("test"));
    FakeClock clock;
    FakeEngine engine(TestShape());
    StepGate gate;
    engine.on_step = [&](std::span<const Row>) { return gate.Pass(); };
    gate.Allow(1);  // of the first probe
    ServerOptions options;
    options.listen = options.http.listen = "127.0.0.1:0";
    options.supervisor.step_timeout = std::chrono::seconds(60);
    auto server = Server::Start(options, {}, {TestModel(), {Borrowed<Engine>(&engine)}},
                                /*loader=*/nullptr, &clock);
    std::thread client;
    const int exit_code = RunUntilEnd(**server, [&] {
      client = std::thread([&] {
        const auto channel =
            grpc::CreateChannel((*server)->address(), grpc::InsecureChannelCredentials());
        grpc::ClientContext context;
        v1::GenerateRequest request;
        request.mutable_prompt()->set_text("a");
        const auto stub = v1::GenerationService::NewStub(channel);
        const auto reader = stub->Generate(&context, request);
        gate.AwaitStep(2);
        clock.Advance(std::chrono::seconds(60));
        v1::GenerateResponse message;
        while (reader->Read(&message)) {
        }
        if (reader->Finish().error_code() != grpc::StatusCode::UNAVAILABLE) std::_Exit(3);
      });
    });
    std::_Exit(10 + exit_code);  // it should not have come here
  };
  EXPECT_EXIT(serve(), ::testing::ExitedWithCode(kExitFatal), "the engine is stuck");
}

TEST_F(ServerTest, ServesManyClientsWhoComeAndGo) {
  Start();
  std::vector<std::thread> clients;
  for (int client = 0; client < 16; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 12; ++i) {
        const int max_tokens = 1 + (client * 7 + i * 13) % 60;
        const std::string prompt(static_cast<size_t>(client * 5 + i), 'a');
        if ((client + i) % 3 == 0) {
          grpc::ClientContext context;
          const auto reader = generation_->Generate(&context, Request(4000, prompt));
          v1::GenerateResponse message;
          if (i % 2 == 0) reader->Read(&message);
          context.TryCancel();
          ReadAll(*reader);
          continue;
        }
        const Reply reply = Generate(Request(max_tokens, prompt));
        ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
        std::vector<TokenId> tokens = TestTokenizer().Encode(prompt);
        tokens.insert(tokens.begin(), 1);
        Sampling sampling;
        sampling.seed = 1;
        ASSERT_EQ(reply.token_ids, Continue(*engine_, tokens, max_tokens, sampling));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(Eventually([&] { return server_->stats().num_running == 0; }));
}

}  // namespace
}  // namespace photon
