// The real server on a real socket, over a fake engine.
#include "server/server.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/scheduler/fake_engine.h"
#include "tests/server/test_model.h"

namespace photon {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ::testing::AllOf;
using ::testing::HasSubstr;

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
    options_.listen = "127.0.0.1:0";
    engine_ = std::make_unique<FakeEngine>(shape);
    auto server = Server::Start(options_, scheduler, TestModel(shape), engine_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    generation_ = v1::GenerationService::NewStub(channel_);
    model_ = v1::ModelService::NewStub(channel_);
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
  StepGate gate_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> model_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

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
  const auto waiting = generation_->Generate(&waiting_context, Request(8));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));
  const auto refused = generation_->Generate(&refused_context, Request(8));
  EXPECT_EQ(ReadAll(*refused).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused_context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  gate_.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());
  EXPECT_TRUE(ReadAll(*waiting).status.ok());
}

TEST_F(ServerTest, ASlowReaderLosesOnlyItsOwnRequest) {
  options_.max_unread_bytes = 4096;
  Start();
  // Log-probabilities make it more than connections buffer.
  v1::GenerateRequest large = Request(4000);
  large.mutable_parameters()->set_top_logprobs(20);
  grpc::ClientContext slow_context;
  const auto slow = generation_->Generate(&slow_context, large);
  const Reply reply = Generate(Request(200));
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.token_ids.size(), 200u);
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_running == 0; }));
  EXPECT_LT(server_->stats().generated_tokens, 4000);
  const Reply late = ReadAll(*slow);
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(late.status.error_message(), HasSubstr("does not read"));
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
  EXPECT_EQ(Health(), HealthCheckResponse::NOT_SERVING);
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
  const auto waiting = generation_->Generate(&waiting_context, Request(4000));
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_waiting == 1; }));
  gate_.Allow(2);
  gate_.AwaitStep(3);
  server_->Drain();
  gate_.Open();
  const Reply reply = ReadAll(*running);
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_DRAIN);
  EXPECT_EQ(reply.token_ids.size(), 11u);  // three steps of 4, after a forced BOS
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

TEST_F(ServerTest, KnowsTheHealthOfEachService) {
  Start();
  for (const char* service :
       {"", "photon.v1.GenerationService", "photon.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_EQ(Health(service), HealthCheckResponse::SERVING) << service;
  }
  HealthCheckRequest unknown;
  unknown.set_service("nobody");
  HealthCheckResponse response;
  grpc::ClientContext check_context, watch_context;
  EXPECT_EQ(health_->Check(&check_context, unknown, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  const auto watch = health_->Watch(&watch_context, unknown);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  watch_context.TryCancel();
  EXPECT_FALSE(watch->Read(&response));
}

TEST_F(ServerTest, ListsItsServicesByReflection) {
  Start();
  std::string answer;
  // ServerReflectionRequest { list_services (7): "" }
  const grpc::Status status =
      CallRaw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              std::string("\x3a\x00", 2), &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(answer,
              AllOf(HasSubstr("photon.v1.GenerationService"), HasSubstr("photon.v1.ModelService"),
                    HasSubstr("grpc.health.v1.Health")));
  answer.clear();
  // ServerReflectionRequest { file_containing_symbol (4) }: clients need the descriptors.
  ASSERT_TRUE(CallRaw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      "\x22\x15grpc.health.v1.Health", &answer)
                  .ok());
  EXPECT_THAT(answer, HasSubstr("HealthCheckRequest"));
}

TEST_F(ServerTest, DescribesItsModel) {
  Start();
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(model_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.name(), "test");
  EXPECT_EQ(info.device(), "fake");
  EXPECT_EQ(info.max_context_tokens(), 4096);
  EXPECT_EQ(info.meta_context_tokens(), 4);
  ASSERT_EQ(info.levels_size(), 1);
  EXPECT_EQ(info.levels(0).encoder_span(), v1::ENCODER_SPAN_GLOBAL);
  EXPECT_EQ(info.levels(0).encoder().hidden_size(), 32);
  EXPECT_EQ(info.modes_size(), 2);
  EXPECT_EQ(info.default_mode(), v1::GENERATION_MODE_EXACT);
  EXPECT_EQ(info.bos_token_id(), 1);
  EXPECT_EQ(info.tokenizer_sha256(), TestTokenizer().fingerprint());
  EXPECT_EQ(info.cache().num_pages(), 1024);
}

TEST_F(ServerTest, TokenizesAndBack) {
  Start();
  v1::TokenizeRequest request;
  request.set_text("the fox 𝐛");
  request.set_add_bos(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context, detokenize_context, bad_context;
  ASSERT_TRUE(model_->Tokenize(&tokenize_context, request, &tokens).ok());
  EXPECT_EQ(tokens.token_ids(0), 1);
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(model_->Detokenize(&detokenize_context, back, &text).ok());
  EXPECT_EQ(text.text(), "the fox 𝐛");
  back.add_token_ids(768);
  const grpc::Status status = model_->Detokenize(&bad_context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("expected [0, 768), got 768"));
}

TEST_F(ServerTest, RefusesMessagesAboveItsLimit) {
  options_.max_message_bytes = 2048;
  Start();
  const Reply reply = Generate(Request(1, std::string(4096, 'x')));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
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

TEST(ServerOptions, NamesEveryProblem) {
  ServerOptions options;
  EXPECT_TRUE(options.Validate().empty());
  options.listen = "0.0.0.0:50051";
  options.drain_timeout = std::chrono::milliseconds(-1);
  options.max_streams_per_connection = 0;
  EXPECT_EQ(options.Validate().size(), 3u);
  EXPECT_THAT(options.Validate()[0], HasSubstr("needs --insecure"));
  options.insecure = true;
  EXPECT_EQ(options.Validate().size(), 2u);
  for (const char* address : {"", ":1", "localhost", "localhost:", "localhost:http"}) {
    ServerOptions bad;
    bad.listen = address;
    EXPECT_EQ(bad.Validate().size(), 1u) << address;
  }
  for (const char* address : {"localhost:0", "[::1]:1", "127.0.0.2:1", "unix:/tmp/photon.sock"}) {
    ServerOptions good;
    good.listen = address;
    EXPECT_TRUE(good.Validate().empty()) << address;
  }
}

TEST(ServerStart, RefusesAPortThatIsTaken) {
  FakeEngine engine(TestShape());
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  auto first = Server::Start(options, {}, TestModel(), &engine);
  ASSERT_TRUE(first.ok());
  options.listen = (*first)->address();
  FakeEngine other(TestShape());
  const auto second = Server::Start(options, {}, TestModel(), &other);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("cannot bind"));
}

}  // namespace
}  // namespace photon
