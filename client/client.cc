#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <utility>

namespace photon {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// A server that is starting is found again after at most this long.
constexpr int kMaxReconnectBackoffMs = 500;
constexpr size_t kUploadPieceBytes = 64 << 10;

absl::Status ToAbslStatus(const grpc::Status& status) {
  // gRPC's codes and Abseil's are the same numbers.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// Bytes of the next piece of an upload: whole characters.
size_t PieceLength(std::string_view text) {
  if (text.size() <= kUploadPieceBytes) return text.size();
  size_t length = kUploadPieceBytes;
  while (length > 0 && (text[length] & 0xC0) == 0x80) --length;
  return length > 0 ? length : text.size();  // no UTF-8: the server says so
}

// Hands over the messages of a stream until it ends.
template <typename Response>
absl::Status ReadAll(grpc::ClientReader<Response>& reader,
                     const std::function<void(const Response&)>& on_response) {
  Response response;
  while (reader.Read(&response)) on_response(response);
  return ToAbslStatus(reader.Finish());
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const ClientOptions& options) {
  if (!options.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = options.tls->authorities;
  tls.pem_cert_chain = options.tls->certificate;
  tls.pem_private_key = options.tls->key;
  return grpc::SslCredentials(tls);
}

template <typename Message>
absl::StatusOr<Message> MessageOrStatus(const grpc::Status& status, Message message) {
  if (!status.ok()) return ToAbslStatus(status);
  return message;
}

}  // namespace

Client::Client(const ClientOptions& options)
    : deadline_(options.deadline), api_key_(options.api_key) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  const auto channel = grpc::CreateCustomChannel(options.server, Credentials(options), arguments);
  generation_ = v1::GenerationService::NewStub(channel);
  documents_ = v1::DocumentService::NewStub(channel);
  model_ = v1::ModelService::NewStub(channel);
  health_ = grpc::health::v1::Health::NewStub(channel);
}

void Client::Prepare(grpc::ClientContext& context) const {
  if (deadline_) context.set_deadline(std::chrono::system_clock::now() + *deadline_);
  if (!api_key_.empty()) context.AddMetadata("authorization", "Bearer " + api_key_);
}

absl::StatusOr<v1::GenerationResult> Client::Generate(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_response, std::stop_token stop) {
  std::optional<v1::GenerationResult> result;
  const absl::Status status = GenerateSamples(
      request,
      [&](const v1::GenerateResponse& response) {
        on_response(response);
        if (response.has_result()) result = response.result();
      },
      std::move(stop));
  if (!status.ok()) return status;
  if (!result) return absl::InternalError("the server ended the stream without a result");
  return *std::move(result);
}

absl::Status Client::GenerateSamples(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_response, std::stop_token stop) {
  grpc::ClientContext context;
  Prepare(context);
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });
  return ReadAll(*generation_->Generate(&context, request), on_response);
}

absl::Status Client::GenerateBatch(
    const v1::GenerateBatchRequest& request,
    const std::function<void(const v1::GenerateBatchResponse&)>& on_response,
    std::stop_token stop) {
  grpc::ClientContext context;
  Prepare(context);
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });
  return ReadAll(*generation_->GenerateBatch(&context, request), on_response);
}

absl::Status Client::Ask(const v1::AskRequest& request,
                         const std::function<void(const v1::AskResponse&)>& on_response,
                         std::stop_token stop) {
  grpc::ClientContext context;
  Prepare(context);
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });
  return ReadAll(*documents_->Ask(&context, request), on_response);
}

absl::StatusOr<v1::Document> Client::CreateDocument(const v1::DocumentSettings& settings,
                                                    std::string_view text, std::stop_token stop) {
  grpc::ClientContext context;
  Prepare(context);
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });
  v1::CreateDocumentResponse response;
  const auto writer = documents_->CreateDocument(&context, &response);
  v1::CreateDocumentRequest message;
  *message.mutable_settings() = settings;
  bool open = writer->Write(message);
  while (open && !text.empty()) {
    const std::string_view piece = text.substr(0, PieceLength(text));
    message.set_text(piece.data(), piece.size());
    open = writer->Write(message);
    text.remove_prefix(piece.size());
  }
  // A write that fails means that the server has answered already.
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  return MessageOrStatus(status, std::move(*response.mutable_document()));
}

absl::StatusOr<v1::Document> Client::GetDocument(const std::string& id) {
  grpc::ClientContext context;
  Prepare(context);
  v1::GetDocumentRequest request;
  request.set_document_id(id);
  v1::GetDocumentResponse response;
  const grpc::Status status = documents_->GetDocument(&context, request, &response);
  return MessageOrStatus(status, std::move(*response.mutable_document()));
}

absl::StatusOr<std::vector<v1::Document>> Client::ListDocuments() {
  grpc::ClientContext context;
  Prepare(context);
  v1::ListDocumentsResponse response;
  const grpc::Status status = documents_->ListDocuments(&context, {}, &response);
  return MessageOrStatus(
      status, std::vector<v1::Document>(response.documents().begin(), response.documents().end()));
}

absl::StatusOr<v1::Document> Client::UpdateDocument(const std::string& id,
                                                    std::chrono::seconds ttl) {
  grpc::ClientContext context;
  Prepare(context);
  v1::UpdateDocumentRequest request;
  request.set_document_id(id);
  request.set_ttl_s(static_cast<int32_t>(ttl.count()));
  v1::UpdateDocumentResponse response;
  const grpc::Status status = documents_->UpdateDocument(&context, request, &response);
  return MessageOrStatus(status, std::move(*response.mutable_document()));
}

absl::Status Client::DeleteDocument(const std::string& id) {
  grpc::ClientContext context;
  Prepare(context);
  v1::DeleteDocumentRequest request;
  request.set_document_id(id);
  v1::DeleteDocumentResponse response;
  return ToAbslStatus(documents_->DeleteDocument(&context, request, &response));
}

absl::StatusOr<v1::GetModelInfoResponse> Client::GetModelInfo() {
  grpc::ClientContext context;
  Prepare(context);
  v1::GetModelInfoResponse response;
  const grpc::Status status = model_->GetModelInfo(&context, {}, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  grpc::ClientContext context;
  Prepare(context);
  v1::TokenizeResponse response;
  const grpc::Status status = model_->Tokenize(&context, request, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  grpc::ClientContext context;
  Prepare(context);
  v1::DetokenizeResponse response;
  const grpc::Status status = model_->Detokenize(&context, request, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<v1::EstimateCostResponse> Client::EstimateCost(
    const v1::EstimateCostRequest& request) {
  grpc::ClientContext context;
  Prepare(context);
  v1::EstimateCostResponse response;
  const grpc::Status status = model_->EstimateCost(&context, request, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<HealthCheckResponse::ServingStatus> Client::CheckHealth(const std::string& service) {
  grpc::ClientContext context;
  Prepare(context);
  HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = health_->Check(&context, request, &response);
  if (!status.ok()) return ToAbslStatus(status);
  return response.status();
}

absl::Status Client::WaitUntilServing(const std::string& service, std::stop_token stop) {
  HealthCheckRequest request;
  request.set_service(service);
  const auto deadline = deadline_ ? std::chrono::system_clock::now() + *deadline_
                                  : std::chrono::system_clock::time_point::max();
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    context.set_wait_for_ready(true);
    const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
    const auto stream = health_->Watch(&context, request);
    HealthCheckResponse response;
    while (stream->Read(&response)) {
      if (response.status() == HealthCheckResponse::SERVING) {
        context.TryCancel();
        stream->Finish();
        return absl::OkStatus();
      }
    }
    // The watched server went away: watch the one that takes its place. Any other end is final.
    const absl::Status status = ToAbslStatus(stream->Finish());
    if (!absl::IsUnavailable(status)) return status;
  }
}

}  // namespace photon
