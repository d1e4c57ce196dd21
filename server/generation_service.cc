#include "server/generation_service.h"

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/byte_buffer_codec.h"
#include "server/generation_request.h"
#include "server/generation_stream.h"
#include "server/request_id.h"

namespace photon {

GenerationService::GenerationService(const ModelFacts* model, Scheduler* scheduler,
                                     int64_t max_unread_bytes)
    : model_(model), scheduler_(scheduler), max_unread_bytes_(max_unread_bytes) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  std::string request_id = EchoRequestId(context);
  v1::GenerateRequest request;
  if (absl::Status status = ParseMessage(*buffer, &request); !status.ok()) {
    return GenerationStream::Reject(context, std::move(request_id), status);
  }
  absl::StatusOr<Generation> generation = ParseGenerateRequest(request, *model_, RandomBits());
  if (!generation.ok()) {
    return GenerationStream::Reject(context, std::move(request_id), generation.status());
  }
  return GenerationStream::Start(context, std::move(request_id), *std::move(generation),
                                 *model_->tokenizer, scheduler_, max_unread_bytes_);
}

}  // namespace photon
