// DocumentService: a document's life, and questions about it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

struct AskReply {
  grpc::Status status;
  std::map<std::pair<int, int>, std::vector<TokenId>> token_ids;  // by question and sample
  std::map<std::pair<int, int>, v1::GenerationResult> results;
  std::map<int, v1::IntegrationResult> integrations;  // by question
  std::map<int, v1::Error> errors;
};

class DocumentTest : public ServerTest {
 protected:
  static void IdentifyAs(const std::string& key, grpc::ClientContext& context) {
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
  }

  std::pair<grpc::Status, v1::Document> Upload(
      const std::vector<v1::CreateDocumentRequest>& messages, const std::string& key = "") {
    grpc::ClientContext context;
    IdentifyAs(key, context);
    v1::CreateDocumentResponse response;
    const auto writer = documents_->CreateDocument(&context, &response);
    for (const auto& message : messages) {
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    return {status, response.document()};
  }

  static v1::CreateDocumentRequest Settings(int ttl_s = 600, const std::string& name = "tale") {
    v1::CreateDocumentRequest message;
    message.mutable_settings()->set_ttl_s(ttl_s);
    message.mutable_settings()->set_display_name(name);
    return message;
  }

  static v1::CreateDocumentRequest Text(const std::string& text) {
    v1::CreateDocumentRequest message;
    message.set_text(text);
    return message;
  }

  v1::Document Create(const std::string& text, int ttl_s = 600, const std::string& key = "") {
    auto [status, document] = Upload({Settings(ttl_s), Text(text)}, key);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return document;
  }

  grpc::StatusCode Get(const std::string& id, const std::string& key = "") {
    grpc::ClientContext context;
    IdentifyAs(key, context);
    v1::GetDocumentRequest request;
    request.set_document_id(id);
    v1::GetDocumentResponse response;
    return documents_->GetDocument(&context, request, &response).error_code();
  }

  grpc::StatusCode Delete(const std::string& id, const std::string& key = "") {
    grpc::ClientContext context;
    IdentifyAs(key, context);
    v1::DeleteDocumentRequest request;
    request.set_document_id(id);
    v1::DeleteDocumentResponse response;
    return documents_->DeleteDocument(&context, request, &response).error_code();
  }

  std::vector<v1::Document> List(const std::string& key = "") {
    grpc::ClientContext context;
    IdentifyAs(key, context);
    v1::ListDocumentsResponse response;
    EXPECT_TRUE(documents_->ListDocuments(&context, {}, &response).ok());
    return {response.documents().begin(), response.documents().end()};
  }

  static v1::AskRequest Questions(const std::string& id, const std::vector<std::string>& questions,
                                  int max_tokens = 8, int n = 1) {
    v1::AskRequest request;
    request.set_document_id(id);
    for (const std::string& question : questions) request.add_questions()->set_text(question);
    *request.mutable_parameters() = Request(max_tokens).parameters();
    request.mutable_parameters()->set_n(n);
    return request;
  }

  AskReply Ask(const v1::AskRequest& request, const std::string& key = "") {
    grpc::ClientContext context;
    IdentifyAs(key, context);
    const auto reader = documents_->Ask(&context, request);
    AskReply reply;
    v1::AskResponse message;
    while (reader->Read(&message)) {
      const int question = message.question_index();
      if (message.has_error()) {
        reply.errors[question] = message.error();
        continue;
      }
      if (message.output().has_integration()) {
        reply.integrations[question] = message.output().integration();
        continue;
      }
      const std::pair tag(question, message.output().sample_index());
      auto& ids = reply.token_ids[tag];
      ids.insert(ids.end(), message.output().token_ids().begin(),
                 message.output().token_ids().end());
      if (message.output().has_result()) reply.results[tag] = message.output().result();
    }
    reply.status = reader->Finish();
    return reply;
  }

  static std::string LongText() {
    std::string text;
    for (int i = 0; i < 60; ++i) text += "The fox ran home. The owl slept " + std::to_string(i);
    return text;
  }
};

TEST_F(DocumentTest, IsUploadedInPiecesAndDescribesItself) {
  Start();
  const std::string text = LongText();
  const std::vector<v1::CreateDocumentRequest> messages = {
      Settings(600, "my tale"), Text(text.substr(0, 7)), Text(text.substr(7, 100)), Text(""),
      Text(text.substr(107))};
  const auto [status, document] = Upload(messages);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(document.id().size(), 32u);
  EXPECT_EQ(document.display_name(), "my tale");
  // As one text, and BOS.
  const int tokens = static_cast<int>(TestTokenizer().Encode(text).size()) + 1;
  EXPECT_EQ(document.num_tokens(), tokens);
  EXPECT_EQ(document.cache_bytes(), (tokens / 4 * 4 + 15) / 16 * 64);
  EXPECT_EQ(document.owner(), "shared");
  EXPECT_NEAR(static_cast<double>(document.expires_unix_ms() - document.created_unix_ms()), 600e3,
              5e3);
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_pins == 1; }));
  EXPECT_EQ(server_->stats().pages_pinned * 64, document.cache_bytes());
  EXPECT_EQ(List()[0].SerializeAsString().size(), document.SerializeAsString().size());
}

TEST_F(DocumentTest, IsComputedOnceAndAskedOften) {
  Start();
  const std::string text = LongText();
  const v1::Document document = Create(text);
  ASSERT_TRUE(Eventually([&] { return server_->stats().num_pins == 1; }));
  const std::vector<std::string> questions = {" Who?", " Where?", "\nWhen?", " Why?",
                                              "How?",  " What",   "",        " Whose?"};
  const AskReply reply = Ask(Questions(document.id(), questions, 10, 3));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.results.size(), 24u);
  std::vector<TokenId> prefix = TestTokenizer().Encode(text);
  prefix.insert(prefix.begin(), 1);
  Sampling sampling;
  sampling.seed = 1;
  for (const auto& [tag, result] : reply.results) {
    std::vector<TokenId> prompt = prefix;
    for (TokenId id : TestTokenizer().EncodeContinuation(questions[tag.first]))
      prompt.push_back(id);
    EXPECT_EQ(TestTokenizer().Decode(prompt), text + questions[tag.first]);
    EXPECT_EQ(result.usage().prompt_tokens(), static_cast<int>(prompt.size()));
    // All of the document's whole meta-contexts but, perhaps, the last one of a page.
    EXPECT_GE(result.usage().cached_tokens(), static_cast<int>(prefix.size()) / 4 * 4 - 4);
    EXPECT_EQ(reply.token_ids.at(tag), Continue(*engine_, prompt, 10, sampling));
  }
}

TEST_F(DocumentTest, ABadQuestionFailsAlone) {
  Start();
  const v1::Document document = Create(LongText());
  v1::AskRequest request = Questions(document.id(), {" Who?", "", " Why?"});
  for (int i = 0; i < 4090; ++i) request.mutable_questions(1)->mutable_token_ids()->add_ids(5);
  const AskReply reply = Ask(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.results.size(), 2u);
  ASSERT_EQ(reply.errors.size(), 1u);
  EXPECT_EQ(reply.errors.at(1).code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.errors.at(1).message(), HasSubstr("questions[1]: has"));
}

TEST_F(DocumentTest, QuestionsAreVotedOn) {
  Start();
  const v1::Document document = Create("two and two");
  engine_->model = [](std::span<const TokenId>, const Sampling& sampling) {
    static const TokenId digit[] = {TestTokenizer().Encode("4").back(),
                                    TestTokenizer().Encode("5").back()};
    return digit[sampling.query == 1 && sampling.sample != 1];
  };
  v1::AskRequest request = Questions(document.id(), {" is", " is not"}, 1, 3);
  auto& integration = *request.mutable_parameters()->mutable_integration();
  integration.mutable_majority_vote()->set_answer_source(v1::ANSWER_SOURCE_LAST_NUMBER);
  integration.set_omit_samples(true);
  const AskReply reply = Ask(request);
  EXPECT_TRUE(reply.results.empty());
  ASSERT_EQ(reply.integrations.size(), 2u);
  EXPECT_EQ(reply.integrations.at(0).answer(), "4");
  EXPECT_EQ(reply.integrations.at(1).answer(), "5");
}

TEST_F(DocumentTest, DoesNotExistForOtherTenants) {
  Start();
  const v1::Document document = Create(LongText(), 600, "alice");
  EXPECT_NE(document.owner(), "shared");
  for (const char* key : {"", "bob", "alice "}) {
    EXPECT_EQ(Get(document.id(), key), grpc::StatusCode::NOT_FOUND) << key;
    EXPECT_EQ(Delete(document.id(), key), grpc::StatusCode::NOT_FOUND) << key;
    EXPECT_EQ(Ask(Questions(document.id(), {"?"}), key).status.error_code(),
              grpc::StatusCode::NOT_FOUND);
    EXPECT_TRUE(List(key).empty());
  }
  EXPECT_EQ(Get(document.id(), "alice"), grpc::StatusCode::OK);
  EXPECT_EQ(Ask(Questions(document.id(), {"?"}), "alice").results.size(), 1u);
  EXPECT_EQ(List("alice").size(), 1u);
  // Nor does what it left in the cache.
  const int64_t cached = server_->stats().prompt_tokens_cached;
  const v1::Document copy = Create(LongText(), 600, "bob");
  EXPECT_NE(copy.id(), document.id());
  EXPECT_NE(copy.owner(), document.owner());
  EXPECT_EQ(server_->stats().prompt_tokens_cached, cached);
}

TEST_F(DocumentTest, EndsWithItsTimeToLive) {
  Start();
  const v1::Document document = Create(LongText(), 1);
  EXPECT_TRUE(Eventually([&] { return Get(document.id()) == grpc::StatusCode::NOT_FOUND; }));
  EXPECT_EQ(Ask(Questions(document.id(), {"?"})).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] { return server_->stats().num_pins == 0; }));
  EXPECT_EQ(server_->stats().pages_pinned, 0);
}

TEST_F(DocumentTest, LivesLongerOnRequest) {
  Start();
  const v1::Document document = Create(LongText(), 60);
  v1::UpdateDocumentRequest request;
  request.set_document_id(document.id());
  request.set_ttl_s(7200);
  grpc::ClientContext context, bad_context;
  v1::UpdateDocumentResponse response;
  ASSERT_TRUE(documents_->UpdateDocument(&context, request, &response).ok());
  EXPECT_GT(response.document().expires_unix_ms(), document.expires_unix_ms() + 7'000'000);
  request.set_ttl_s(24 * 3600 + 1);
  const grpc::Status refused = documents_->UpdateDocument(&bad_context, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error_message(), "ttl_s: expected 1 to 86400, got 86401");
}

TEST_F(DocumentTest, GivesItsPagesBackWhenItIsDeleted) {
  Start();
  const v1::Document document = Create(LongText());
  EXPECT_EQ(Delete(document.id()), grpc::StatusCode::OK);
  EXPECT_EQ(Get(document.id()), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Delete(document.id()), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] { return server_->stats().num_pins == 0; }));
}

TEST_F(DocumentTest, AClientThatLeavesFreesAllItsQuestions) {
  Start();
  const v1::Document document = Create(LongText());
  CloseGate();
  grpc::ClientContext context;
  const auto reader =
      documents_->Ask(&context, Questions(document.id(), {" a", " b", " c"}, 2000, 5));
  gate_.Allow(3);
  v1::AskResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  gate_.Open();
  EXPECT_TRUE(Eventually([&] {
    const SchedulerStats stats = server_->stats();
    return stats.num_running + stats.num_waiting == 0 && stats.pages_in_use == 0;
  }));
  EXPECT_EQ(server_->stats().num_pins, 1);  // the document stays
}

TEST_F(DocumentTest, AnUploadThatIsCancelledLeavesNothing) {
  Start();
  CloseGate();
  grpc::ClientContext context;
  v1::CreateDocumentResponse response;
  const auto writer = documents_->CreateDocument(&context, &response);
  writer->Write(Settings());
  writer->Write(Text(LongText()));
  writer->WritesDone();
  gate_.AwaitStep(1);
  context.TryCancel();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(List().empty());  // over the same connection: the server has heard of both
  gate_.Open();
  EXPECT_TRUE(Eventually([&] {
    const SchedulerStats stats = server_->stats();
    return stats.num_running + stats.num_waiting + stats.num_pins == 0;
  }));
  EXPECT_TRUE(List().empty());
}

TEST_F(DocumentTest, AnUploadThatBreaksOffIsNoDocument) {
  options_.documents.max_per_tenant = 1;
  Start();
  grpc::ClientContext context;
  v1::CreateDocumentResponse response;
  const auto writer = documents_->CreateDocument(&context, &response);
  writer->Write(Settings());
  writer->Write(Text("the first half of"));
  context.TryCancel();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // Its place is free once the server has done with it.
  EXPECT_TRUE(
      Eventually([&] { return Upload({Settings(60, "other"), Text("another")}).first.ok(); }));
  ASSERT_EQ(List().size(), 1u);
  EXPECT_EQ(List()[0].display_name(), "other");
}

TEST_F(DocumentTest, RefusesUploadsThatMakeNoSense) {
  options_.documents.max_bytes = 20'000;
  Start();
  v1::CreateDocumentRequest ids;
  ids.mutable_token_ids()->add_ids(5);
  v1::CreateDocumentRequest bad_ids;
  bad_ids.mutable_token_ids()->add_ids(768);
  v1::CreateDocumentRequest many_ids;
  for (int i = 0; i < 4096; ++i) many_ids.mutable_token_ids()->add_ids(5);
  std::string many_tokens;
  for (int i = 0; i < 9000; ++i) many_tokens += "€";
  const std::vector<std::pair<std::vector<v1::CreateDocumentRequest>, const char*>> cases = {
      {{}, "the first message must bring settings"},
      {{Text("a")}, "the first message must bring settings"},
      {{Settings()}, "the document is empty"},
      {{Settings(), Settings()}, "only the first message"},
      {{Settings(), Text("a"), ids}, "token_ids: the document has text already"},
      {{Settings(), ids, Text("a")}, "text: the document has token_ids already"},
      {{Settings(), bad_ids}, "token_ids.ids[0]: expected [0, 768), got 768"},
      {{Settings(), many_ids}, "token_ids: expected at most 4095"},
      {{Settings(), Text(std::string(15'000, 'x')), Text(std::string(6'000, 'x'))},
       "text: expected at most 20000 bytes"},
      {{Settings(), Text(many_tokens.substr(0, 18'000))}, "tokens, expected at most 4095"},
      {{Settings(0), Text("a")}, "settings.ttl_s: expected 1 to 86400, got 0"},
      {{Settings(5, std::string(257, 'n')), Text("a")}, "settings.display_name: expected at most"},
      {{Settings(), v1::CreateDocumentRequest()}, "part: expected text or token_ids"},
  };
  for (const auto& [messages, expected] : cases) {
    const grpc::Status status = Upload(messages).first;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << expected;
    EXPECT_THAT(status.error_message(), HasSubstr(expected));
  }
  EXPECT_TRUE(List().empty());
}

TEST_F(DocumentTest, LimitsDocumentsAndTheCacheTheyHold) {
  options_.documents.max_per_tenant = 2;
  EngineShape shape = TestShape();
  shape.num_pages = 200;
  Start(shape, {.max_pinned_percent = 50});
  Create(LongText().substr(0, 600));
  grpc::Status refused = Upload({Settings(), Text(LongText() + LongText())}).first;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("pins may hold 100 cache pages"));
  Create("a second one");
  refused = Upload({Settings(), Text("a third one")}).first;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("2 documents of at most 2"));
  EXPECT_EQ(Upload({Settings(), Text("another's")}, "bob").first.error_code(),
            grpc::StatusCode::OK);
}

TEST_F(DocumentTest, RefusesToAskTooMuchAtOnce) {
  options_.requests.max_questions = 3;
  Start();
  const v1::Document document = Create("text");
  EXPECT_THAT(Ask(Questions(document.id(), {})).status.error_message(),
              HasSubstr("questions: expected 1 to 3, got 0"));
  EXPECT_THAT(Ask(Questions(document.id(), {"", "", "", ""})).status.error_message(),
              HasSubstr("questions: expected 1 to 3, got 4"));
  EXPECT_THAT(Ask(Questions(document.id(), {"", "", ""}, 1, 1000)).status.error_message(),
              HasSubstr("3000 sequences, expected at most 1024"));
}

}  // namespace
}  // namespace photon
