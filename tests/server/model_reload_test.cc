// A model that takes the place of another while requests run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "photon/v1/admin.grpc.pb.h"
#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelReloadTest : public ServerTest {
 protected:
  ModelReloadTest() {
    loader_ = [this](const std::string& directory) -> absl::StatusOr<LoadedModel> {
      loaded_from_.push_back(directory);
      if (!load_error_.ok()) return load_error_;
      next_engine_ = std::make_shared<FakeEngine>(next_shape_);
      next_engine_->on_step = next_on_step_;
      return LoadedModel{
          .facts = TestModel(next_shape_), .engines = {next_engine_}, .directory = directory};
    };
  }

  void StartServer() {
    Start();
    admin_ = v1::AdminService::NewStub(channel_);
  }

  struct Reload {
    std::vector<v1::ReloadStage> stages;
    v1::ReloadModelResponse last;
    grpc::Status status;
  };

  Reload ReloadFrom(const std::string& directory) {
    grpc::ClientContext context;
    v1::ReloadModelRequest request;
    request.set_directory(directory);
    const auto reader = admin_->ReloadModel(&context, request);
    Reload reload;
    v1::ReloadModelResponse message;
    while (reader->Read(&message)) {
      reload.stages.push_back(message.stage());
      reload.last = message;
    }
    reload.status = reader->Finish();
    return reload;
  }

  int Generation() {
    grpc::ClientContext context;
    v1::GetModelInfoResponse info;
    EXPECT_TRUE(model_->GetModelInfo(&context, {}, &info).ok());
    return info.generation();
  }

  std::string CreateDocument() {
    grpc::ClientContext context;
    v1::CreateDocumentResponse created;
    const auto upload = documents_->CreateDocument(&context, &created);
    v1::CreateDocumentRequest settings, text;
    settings.mutable_settings();
    text.set_text(std::string(64, 'a'));
    upload->Write(settings);
    upload->Write(text);
    upload->WritesDone();
    EXPECT_TRUE(upload->Finish().ok());
    return created.document().id();
  }

  std::unique_ptr<v1::AdminService::Stub> admin_;
  EngineShape next_shape_ = TestShape();
  std::function<absl::Status(std::span<const Row>)> next_on_step_;
  absl::Status load_error_;
  std::shared_ptr<FakeEngine> next_engine_;
  std::vector<std::string> loaded_from_;
};

TEST_F(ModelReloadTest, NewRequestsGoToTheNewModelAndRunningOnesEndOnTheOld) {
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(50));
  gate_.AwaitStep(1);

  grpc::ClientContext reload_context;
  v1::ReloadModelRequest request;
  request.set_directory("next");
  const auto reload = admin_->ReloadModel(&reload_context, request);
  v1::ReloadModelResponse message;
  for (const auto stage :
       {v1::RELOAD_STAGE_LOADING, v1::RELOAD_STAGE_PROBING, v1::RELOAD_STAGE_DRAINING}) {
    ASSERT_TRUE(reload->Read(&message));
    EXPECT_EQ(message.stage(), stage);
  }
  EXPECT_EQ(message.num_running(), 1);
  EXPECT_EQ(message.model_generation(), 2);
  EXPECT_EQ(Generation(), 2);
  // The gate is the old engine's.
  EXPECT_EQ(Generate(Request(20)).token_ids.size(), 20u);
  EXPECT_GT(next_engine_->steps, 1);
  EXPECT_EQ(Health(), HealthCheckResponse::SERVING);
  EXPECT_EQ(server_->stats().num_running, 1);
  EXPECT_EQ(server_->stats().num_pages, 2 * TestShape().num_pages);

  gate_.Open();
  const Reply reply = ReadAll(*running);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.token_ids.size(), 50u);
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_TRUE(reload->Read(&message));
  EXPECT_EQ(message.stage(), v1::RELOAD_STAGE_DONE);
  EXPECT_FALSE(reload->Read(&message));
  EXPECT_TRUE(reload->Finish().ok());
  EXPECT_EQ(server_->stats().num_pages, TestShape().num_pages);
  // What both have done.
  EXPECT_EQ(server_->stats().generated_tokens, 70);
}

TEST_F(ModelReloadTest, RequestsOfTheOldModelEndWithWhatTheyHaveWhenTheirTimeIsUp) {
  options_.drain_timeout = std::chrono::milliseconds(0);
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(4000));
  gate_.AwaitStep(1);
  gate_.Open();
  EXPECT_TRUE(ReloadFrom("next").status.ok());
  const Reply reply = ReadAll(*running);
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_DRAIN);
}

TEST_F(ModelReloadTest, TheOldEngineIsFreed) {
  StartServer();
  EXPECT_TRUE(ReloadFrom("second").status.ok());
  const std::weak_ptr<FakeEngine> second = next_engine_;
  next_engine_.reset();
  EXPECT_FALSE(second.expired());
  EXPECT_TRUE(ReloadFrom("third").status.ok());
  EXPECT_TRUE(second.expired());
}

TEST_F(ModelReloadTest, AModelThatDoesNotLoadLeavesTheOldOneAsItIs) {
  StartServer();
  load_error_ = absl::FailedPreconditionError("config.json: no such file");
  Reload reload = ReloadFrom("next");
  EXPECT_EQ(reload.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reload.status.error_message(), HasSubstr("config.json"));
  EXPECT_THAT(reload.stages, ElementsAre(v1::RELOAD_STAGE_LOADING));
  load_error_ = absl::ResourceExhaustedError("does not fit");
  EXPECT_EQ(ReloadFrom("next").status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  load_error_ = absl::OkStatus();
  EXPECT_EQ(Generation(), 1);
  EXPECT_TRUE(Generate(Request(5)).status.ok());
  EXPECT_TRUE(ReloadFrom("next").status.ok());
  EXPECT_EQ(Generation(), 2);
}

TEST_F(ModelReloadTest, AModelThatTheSettingsDoNotSuitIsRefused) {
  StartServer();
  next_shape_.modes = {GenerationMode::kRecGen};
  const Reload reload = ReloadFrom("next");
  EXPECT_EQ(reload.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reload.status.error_message(), HasSubstr("default_mode"));
  EXPECT_TRUE(Generate(Request(5)).status.ok());
}

TEST_F(ModelReloadTest, AModelThatFailsItsProbeIsRefused) {
  StartServer();
  next_on_step_ = [](std::span<const Row>) { return absl::InternalError("broken"); };
  const Reload reload = ReloadFrom("next");
  EXPECT_EQ(reload.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reload.stages, ElementsAre(v1::RELOAD_STAGE_LOADING, v1::RELOAD_STAGE_PROBING));
  EXPECT_EQ(Health(), HealthCheckResponse::SERVING);
  EXPECT_TRUE(Generate(Request(5)).status.ok());
  EXPECT_EQ(Generation(), 1);
}

TEST_F(ModelReloadTest, DocumentsEndWithTheirModel) {
  StartServer();
  const std::string id = CreateDocument();
  const Reload reload = ReloadFrom("next");
  EXPECT_TRUE(reload.status.ok());
  EXPECT_EQ(reload.last.num_documents_ended(), 1);
  grpc::ClientContext context;
  v1::GetDocumentRequest request;
  request.set_document_id(id);
  v1::GetDocumentResponse response;
  EXPECT_EQ(documents_->GetDocument(&context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_FALSE(CreateDocument().empty());
}

TEST_F(ModelReloadTest, ADocumentThatIsComputedMeanwhileIsToBeSentAgain) {
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  v1::CreateDocumentResponse created;
  const auto upload = documents_->CreateDocument(&context, &created);
  v1::CreateDocumentRequest settings, text;
  settings.mutable_settings();
  text.set_text(std::string(64, 'a'));
  upload->Write(settings);
  upload->Write(text);
  upload->WritesDone();
  gate_.AwaitStep(1);
  grpc::ClientContext reload_context;
  const auto reload = admin_->ReloadModel(&reload_context, {});
  v1::ReloadModelResponse message;
  do {
    ASSERT_TRUE(reload->Read(&message));
  } while (message.stage() != v1::RELOAD_STAGE_DRAINING);
  gate_.Open();
  EXPECT_EQ(upload->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  while (reload->Read(&message)) {
  }
  EXPECT_TRUE(reload->Finish().ok());
}

TEST_F(ModelReloadTest, OneReloadAtATime) {
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(20));
  gate_.AwaitStep(1);
  grpc::ClientContext reload_context;
  const auto reload = admin_->ReloadModel(&reload_context, {});
  v1::ReloadModelResponse message;
  ASSERT_TRUE(reload->Read(&message));
  EXPECT_EQ(ReloadFrom("other").status.error_code(), grpc::StatusCode::ABORTED);
  gate_.Open();
  while (reload->Read(&message)) {
  }
  EXPECT_TRUE(reload->Finish().ok());
  EXPECT_TRUE(ReadAll(*running).status.ok());
}

TEST_F(ModelReloadTest, AReloadGoesOnWhenItsClientLeaves) {
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(20));
  gate_.AwaitStep(1);
  grpc::ClientContext reload_context;
  const auto reload = admin_->ReloadModel(&reload_context, {});
  v1::ReloadModelResponse message;
  ASSERT_TRUE(reload->Read(&message));
  reload_context.TryCancel();
  EXPECT_EQ(reload->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return Generation() == 2; }));
  gate_.Open();
  EXPECT_EQ(ReadAll(*running).token_ids.size(), 20u);
}

TEST_F(ModelReloadTest, ADrainWaitsForTheRequestsOfBothModels) {
  StartServer();
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(50));
  gate_.AwaitStep(1);
  grpc::ClientContext reload_context;
  const auto reload = admin_->ReloadModel(&reload_context, {});
  v1::ReloadModelResponse message;
  do {
    ASSERT_TRUE(reload->Read(&message));
  } while (message.stage() != v1::RELOAD_STAGE_DRAINING);
  server_->Drain();
  EXPECT_FALSE(ReloadFrom("").status.ok());
  gate_.Open();
  EXPECT_TRUE(server_->Wait().ok());
  EXPECT_EQ(ReadAll(*running).token_ids.size(), 50u);
}

TEST_F(ModelReloadTest, NoRequestIsLostWhileModelsComeAndGo) {
  StartServer();
  std::vector<std::thread> clients;
  std::atomic<bool> done = false;
  std::atomic<int> num_replies = 0;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&] {
      while (!done) {
        const Reply reply = Generate(Request(30, "Once"));
        ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
        ASSERT_EQ(reply.result.finish_reason(), v1::FINISH_REASON_LENGTH);
        ++num_replies;
      }
    });
  }
  for (int i = 0; i < 10; ++i) {
    const int before = num_replies;
    EXPECT_TRUE(ReloadFrom("next").status.ok());
    EXPECT_TRUE(Eventually([&] { return num_replies > before; }));
  }
  done = true;
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(Generation(), 11);
  // A step's tokens reach the clients before the statistics.
  EXPECT_TRUE(Eventually([&] { return server_->stats().generated_tokens == 30 * num_replies; }));
}

TEST_F(ModelReloadTest, SighupReloadsADirectoryThatHasChanged) {
  StartServer();
  const std::string directory = ::testing::TempDir() + "model_reload_test";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/config.json") << "{}";
  ASSERT_TRUE(ReloadFrom(directory).status.ok());
  ASSERT_EQ(loaded_from_.size(), 1u);
  // The loader above names no version, so that this differs.
  server_->Reload();
  EXPECT_TRUE(Eventually([&] { return Generation() == 3; }));
  EXPECT_THAT(loaded_from_, ElementsAre(directory, directory));
  std::filesystem::remove_all(directory);
}

TEST(DirectoryVersion, ChangesWithTheFiles) {
  const std::string directory = ::testing::TempDir() + "directory_version_test";
  std::filesystem::remove_all(directory);
  EXPECT_EQ(DirectoryVersion(directory), "");
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/config.json") << "{}";
  const std::string first = DirectoryVersion(directory);
  EXPECT_EQ(DirectoryVersion(directory), first);
  std::ofstream(directory + "/config.json") << "{ }";
  const std::string second = DirectoryVersion(directory);
  EXPECT_NE(second, first);
  std::filesystem::rename(directory + "/config.json", directory + "/other.json");
  EXPECT_NE(DirectoryVersion(directory), second);
  std::filesystem::remove_all(directory);
}

TEST_F(ServerTest, WithoutALoaderNoModelIsReplaced) {
  Start();
  grpc::ClientContext context;
  const auto reload = v1::AdminService::NewStub(channel_)->ReloadModel(&context, {});
  v1::ReloadModelResponse message;
  EXPECT_FALSE(reload->Read(&message));
  EXPECT_EQ(reload->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace photon
