// Commands about documents, the model and the server.
#include "client/commands.h"

#include "absl/strings/str_join.h"
#include "client/text.h"

namespace photon {

int RunCreateDocument(Client& client, const CreateDocumentOptions& options,
                      const Terminal& terminal) {
  v1::DocumentSettings settings;
  settings.set_display_name(options.name);
  if (options.ttl_s) settings.set_ttl_s(*options.ttl_s);
  const auto document = client.CreateDocument(settings, options.text, terminal.interrupted);
  if (!document.ok()) return Fail(document.status(), terminal);
  if (options.json) {
    terminal.out << JsonLine(*document);
  } else {
    terminal.out << document->id() << "\n";
    terminal.err << DocumentText(*document);
  }
  return kSuccess;
}

int RunGetDocument(Client& client, const std::string& id, bool json, const Terminal& terminal) {
  const auto document = client.GetDocument(id);
  if (!document.ok()) return Fail(document.status(), terminal);
  terminal.out << (json ? JsonLine(*document) : DocumentText(*document));
  return kSuccess;
}

int RunListDocuments(Client& client, bool json, const Terminal& terminal) {
  const auto documents = client.ListDocuments();
  if (!documents.ok()) return Fail(documents.status(), terminal);
  for (const v1::Document& document : *documents) {
    terminal.out << (json ? JsonLine(document) : DocumentText(document));
  }
  return kSuccess;
}

int RunExtendDocument(Client& client, const std::string& id, int32_t ttl_s, bool json,
                      const Terminal& terminal) {
  const auto document = client.UpdateDocument(id, std::chrono::seconds(ttl_s));
  if (!document.ok()) return Fail(document.status(), terminal);
  terminal.out << (json ? JsonLine(*document) : DocumentText(*document));
  return kSuccess;
}

int RunDeleteDocument(Client& client, const std::string& id, const Terminal& terminal) {
  const absl::Status status = client.DeleteDocument(id);
  return status.ok() ? kSuccess : Fail(status, terminal);
}

int RunEstimate(Client& client, const v1::EstimateCostRequest& request, bool json,
                const Terminal& terminal) {
  const auto estimate = client.EstimateCost(request);
  if (!estimate.ok()) return Fail(estimate.status(), terminal);
  terminal.out << (json ? JsonLine(*estimate) : EstimateText(*estimate));
  return kSuccess;
}

int RunInfo(Client& client, bool json, const Terminal& terminal) {
  const auto info = client.GetModelInfo();
  if (!info.ok()) return Fail(info.status(), terminal);
  terminal.out << (json ? JsonLine(*info) : ModelInfoText(*info));
  return kSuccess;
}

int RunTokenize(Client& client, const std::string& text, bool add_bos, const Terminal& terminal) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_bos(add_bos);
  const auto response = client.Tokenize(request);
  if (!response.ok()) return Fail(response.status(), terminal);
  terminal.out << absl::StrJoin(response->token_ids(), " ") << "\n";
  return kSuccess;
}

int RunDetokenize(Client& client, const std::vector<int32_t>& ids, const Terminal& terminal) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  const auto response = client.Detokenize(request);
  if (!response.ok()) return Fail(response.status(), terminal);
  terminal.out << response->text() << "\n";
  return kSuccess;
}

int RunHealth(Client& client, const std::string& service, bool wait, const Terminal& terminal) {
  using grpc::health::v1::HealthCheckResponse;
  auto status = HealthCheckResponse::SERVING;
  if (wait) {
    const absl::Status served = client.WaitUntilServing(service, terminal.interrupted);
    if (!served.ok()) return Fail(served, terminal);
  } else {
    const auto checked = client.CheckHealth(service);
    if (!checked.ok()) return Fail(checked.status(), terminal);
    status = *checked;
  }
  terminal.out << HealthCheckResponse::ServingStatus_Name(status) << "\n";
  return status == HealthCheckResponse::SERVING ? kSuccess : kFailed;
}

}  // namespace photon
