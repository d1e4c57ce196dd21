// The C++ client against the photon-server program with the demo checkpoint.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "client/client.h"

namespace photon {
namespace {

// A photon-server on a free loopback port; drained at the end.
class ServerProcess {
 public:
  ServerProcess() {
    int log[2];
    if (pipe2(log, O_CLOEXEC) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, log[1], STDERR_FILENO);
    std::string args[] = {SERVER_PROGRAM, "--model",       TEST_MODEL,   "--listen",
                          "127.0.0.1:0",  "--http-listen", "127.0.0.1:0"};
    char* argv[] = {args[0].data(), args[1].data(), args[2].data(), args[3].data(),
                    args[4].data(), args[5].data(), args[6].data(), nullptr};
    if (posix_spawn(&pid_, SERVER_PROGRAM, &actions, nullptr, argv, environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(log[1]);
    log_ = fdopen(log[0], "r");
    // Its log says where it serves; the few lines after that fit the pipe.
    char line[1024];
    const std::string marker = " on 127.0.0.1:";
    while (fgets(line, sizeof(line), log_) != nullptr) {
      const std::string text(line);
      if (const size_t at = text.find(marker); at != std::string::npos) {
        address_ = text.substr(at + 4, text.find_last_not_of("\n") - at - 3);
        return;
      }
    }
  }

  ~ServerProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGTERM);
      int status = 0;
      waitpid(pid_, &status, 0);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    if (log_ != nullptr) fclose(log_);
  }

  const std::string& address() const { return address_; }

 private:
  pid_t pid_ = -1;
  FILE* log_ = nullptr;
  std::string address_;
};

class ClientEndToEnd : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new ServerProcess; }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  static ClientOptions Options() {
    return {.server = server_->address(), .deadline = std::chrono::seconds(90)};
  }

  static v1::GenerateRequest LongRequest() {
    v1::GenerateRequest request;
    request.mutable_prompt()->set_text("Once upon a time");
    request.mutable_parameters()->set_max_tokens(900);
    request.mutable_parameters()->mutable_stop()->set_ignore_eos(true);
    return request;
  }

  static ServerProcess* server_;
};

ServerProcess* ClientEndToEnd::server_ = nullptr;

TEST_F(ClientEndToEnd, StreamsTextAndReturnsTheResult) {
  Client client(Options());
  ASSERT_TRUE(client.WaitUntilServing("").ok());
  v1::GenerateRequest request = LongRequest();
  request.mutable_parameters()->set_max_tokens(40);
  int messages = 0;
  std::string text;
  const auto result = client.Generate(request, [&](const v1::GenerateResponse& response) {
    ++messages;
    text += response.text();
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(messages, 1);
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(result->finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(result->usage().generated_tokens(), 40);
}

TEST_F(ClientEndToEnd, StopsAStreamOnRequest) {
  Client client(Options());
  std::stop_source stop;
  const auto result = client.Generate(
      LongRequest(), [&](const v1::GenerateResponse&) { stop.request_stop(); }, stop.get_token());
  EXPECT_TRUE(absl::IsCancelled(result.status())) << result.status();
}

TEST_F(ClientEndToEnd, GivesUpAtTheDeadline) {
  ClientOptions options = Options();
  options.deadline = std::chrono::milliseconds(20);
  Client client(options);
  const auto result = client.Generate(LongRequest(), [](const v1::GenerateResponse&) {});
  EXPECT_TRUE(absl::IsDeadlineExceeded(result.status())) << result.status();
}

TEST_F(ClientEndToEnd, PassesOnTheServersRefusals) {
  Client client(Options());
  v1::GenerateRequest request = LongRequest();
  request.mutable_parameters()->mutable_sampling()->set_temperature(-1);
  const auto result = client.Generate(request, [](const v1::GenerateResponse&) {});
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
}

TEST_F(ClientEndToEnd, TurnsTextIntoTokensAndBack) {
  Client client(Options());
  v1::TokenizeRequest request;
  request.set_text("The wolf said: “Who are you?”");
  const auto tokens = client.Tokenize(request);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens->token_ids();
  const auto text = client.Detokenize(back);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->text(), request.text());
}

TEST_F(ClientEndToEnd, AsksADocumentThatItUploaded) {
  Client client(Options());
  std::string tale;
  while (tale.size() < 3000) tale += "Once upon a time there was a café by the sea. ";
  v1::DocumentSettings settings;
  settings.set_display_name("tale");
  const auto document = client.CreateDocument(settings, tale);
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ(client.ListDocuments()->size(), 1u);
  EXPECT_TRUE(client.UpdateDocument(document->id(), std::chrono::seconds(900)).ok());
  EXPECT_EQ(client.GetDocument(document->id())->display_name(), "tale");

  v1::AskRequest request;
  request.set_document_id(document->id());
  for (const char* question : {" Then", " And"}) request.add_questions()->set_text(question);
  request.mutable_parameters()->set_n(2);
  request.mutable_parameters()->set_max_tokens(12);
  int results = 0;
  const absl::Status asked = client.Ask(request, [&](const v1::AskResponse& response) {
    if (!response.output().has_result()) return;
    ++results;
    EXPECT_GT(response.output().result().usage().cached_tokens(), 100);
  });
  EXPECT_TRUE(asked.ok()) << asked;
  EXPECT_EQ(results, 4);

  ClientOptions other = Options();
  other.api_key = "somebody else";
  EXPECT_TRUE(absl::IsNotFound(Client(other).GetDocument(document->id()).status()));
  EXPECT_TRUE(client.DeleteDocument(document->id()).ok());
  EXPECT_TRUE(absl::IsNotFound(client.DeleteDocument(document->id())));
}

TEST_F(ClientEndToEnd, GeneratesBatchesAndSamples) {
  Client client(Options());
  v1::GenerateBatchRequest batch;
  for (const char* prompt : {"Once upon", "The fox"}) batch.add_prompts()->set_text(prompt);
  batch.add_prompts()->mutable_token_ids()->add_ids(-1);
  batch.mutable_parameters()->set_max_tokens(8);
  int results = 0, errors = 0;
  const absl::Status status =
      client.GenerateBatch(batch, [&](const v1::GenerateBatchResponse& response) {
        results += response.output().has_result();
        errors += response.has_error();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(results, 2);
  EXPECT_EQ(errors, 1);

  v1::GenerateRequest request = LongRequest();
  request.mutable_parameters()->set_max_tokens(8);
  request.mutable_parameters()->set_n(3);
  request.mutable_parameters()->mutable_integration()->mutable_best_of_n();
  bool integrated = false;
  results = 0;
  const absl::Status sampled =
      client.GenerateSamples(request, [&](const v1::GenerateResponse& response) {
        results += response.has_result();
        integrated = response.has_integration();
      });
  EXPECT_TRUE(sampled.ok()) << sampled;
  EXPECT_EQ(results, 3);
  EXPECT_TRUE(integrated);
}

TEST_F(ClientEndToEnd, EstimatesWhatAGenerationTakes) {
  Client client(Options());
  v1::EstimateCostRequest request;
  request.set_prompt_tokens(100);
  const auto estimate = client.EstimateCost(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_TRUE(estimate->fits());
}

TEST_F(ClientEndToEnd, LearnsTheModelAndItsHealth) {
  Client client(Options());
  const auto info = client.GetModelInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_GT(info->meta_context_tokens(), 1);
  const auto health = client.CheckHealth("photon.v1.GenerationService");
  ASSERT_TRUE(health.ok()) << health.status();
  EXPECT_EQ(*health, grpc::health::v1::HealthCheckResponse::SERVING);
}

}  // namespace
}  // namespace photon
