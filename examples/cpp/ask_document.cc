// Streams a story, then has the server read it as a document and asks two questions about it at
// once.
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "client/client.h"

namespace {

int Fail(const absl::Status& status) {
  std::cerr << status << "\n";
  return 1;
}

}  // namespace

int main() {
  photon::ClientOptions options;
  if (const char* server = std::getenv("PHOTON_SERVER")) options.server = server;
  options.deadline = std::chrono::minutes(1);
  photon::Client client(options);

  photon::v1::GenerateRequest request;
  request.mutable_prompt()->set_text("Once upon a time, there was a fox");
  request.mutable_parameters()->set_max_tokens(80);
  request.mutable_parameters()->mutable_sampling()->set_temperature(0.3F);
  std::string story = request.prompt().text();
  std::cout << story;
  const auto result = client.Generate(request, [&](const photon::v1::GenerateResponse& response) {
    story += response.text();
    std::cout << response.text() << std::flush;
  });
  if (!result.ok()) return Fail(result.status());
  std::cout << "\n(" << result->usage().generated_tokens() << " tokens)\n";

  const auto document = client.CreateDocument({}, story);
  if (!document.ok()) return Fail(document.status());

  photon::v1::AskRequest ask;
  ask.set_document_id(document->id());
  for (const char* question : {" The fox said:", " In the end,"}) {
    ask.add_questions()->set_text(question);
  }
  ask.mutable_parameters()->set_max_tokens(20);
  std::vector<std::string> answers(ask.questions_size());
  const absl::Status status = client.Ask(ask, [&](const photon::v1::AskResponse& response) {
    answers[response.question_index()] += response.output().text();
  });
  if (!status.ok()) return Fail(status);
  for (int i = 0; i < ask.questions_size(); ++i) {
    std::cout << "..." << ask.questions(i).text() << answers[i] << "\n";
  }
  const absl::Status deleted = client.DeleteDocument(document->id());
  return deleted.ok() ? 0 : Fail(deleted);
}
