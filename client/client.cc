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

absl::Status ToAbslStatus(const grpc::Status& status) {
  // gRPC's codes and Abseil's are the same numbers.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

template <typename Message>
absl::StatusOr<Message> MessageOrStatus(const grpc::Status& status, Message message) {
  if (!status.ok()) return ToAbslStatus(status);
  return message;
}

}  // namespace

Client::Client(const ClientOptions& options) : deadline_(options.deadline) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  const auto channel =
      grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
  generation_ = v1::GenerationService::NewStub(channel);
  model_ = v1::ModelService::NewStub(channel);
  health_ = grpc::health::v1::Health::NewStub(channel);
}

void Client::SetDeadline(grpc::ClientContext& context) const {
  if (deadline_) context.set_deadline(std::chrono::system_clock::now() + *deadline_);
}

absl::StatusOr<v1::GenerationResult> Client::Generate(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_response, std::stop_token stop) {
  grpc::ClientContext context;
  SetDeadline(context);
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });

  const auto stream = generation_->Generate(&context, request);
  std::optional<v1::GenerationResult> result;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    on_response(response);
    if (response.has_result()) result = response.result();
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return ToAbslStatus(status);
  if (!result) return absl::InternalError("the server ended the stream without a result");
  return *std::move(result);
}

absl::StatusOr<v1::GetModelInfoResponse> Client::GetModelInfo() {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetModelInfoResponse response;
  const grpc::Status status = model_->GetModelInfo(&context, {}, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::TokenizeResponse response;
  const grpc::Status status = model_->Tokenize(&context, request, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DetokenizeResponse response;
  const grpc::Status status = model_->Detokenize(&context, request, &response);
  return MessageOrStatus(status, std::move(response));
}

absl::StatusOr<HealthCheckResponse::ServingStatus> Client::CheckHealth(const std::string& service) {
  grpc::ClientContext context;
  SetDeadline(context);
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
