#include "server/generation_service.h"

#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/byte_buffer_codec.h"
#include "server/generation_request.h"
#include "server/request_id.h"

namespace photon {

GenerationService::GenerationService(const CallEnvironment& calls, const RequestLimits& limits)
    : calls_(calls), limits_(limits) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  CallStream::Call call = {
      context, NameCall(context, v1::GenerationService::service_full_name(), "Generate")};
  v1::GenerateRequest request;
  if (absl::Status status = ParseMessage(*buffer, &request); !status.ok()) {
    return CallStream::Reject(std::move(call), status);
  }
  const ModelLease model = calls_.models->Enter();
  auto query = ParseGenerateRequest(request, model->facts(), limits_, RandomBits());
  if (!query.ok()) return CallStream::Reject(std::move(call), query.status());
  std::vector<absl::StatusOr<Query>> queries;
  queries.push_back(std::move(query));
  return CallStream::Start(std::move(call), calls_, model.model(), std::move(queries),
                           EncodeGenerateResponse);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::GenerateBatch(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  CallStream::Call call = {
      context, NameCall(context, v1::GenerationService::service_full_name(), "GenerateBatch")};
  v1::GenerateBatchRequest request;
  if (absl::Status status = ParseMessage(*buffer, &request); !status.ok()) {
    return CallStream::Reject(std::move(call), status);
  }
  const ModelLease model = calls_.models->Enter();
  auto queries = ParseGenerateBatchRequest(request, model->facts(), limits_, RandomBits());
  if (!queries.ok()) return CallStream::Reject(std::move(call), queries.status());
  CheckThatEachFits(model->scheduler(), *queries);
  return CallStream::Start(std::move(call), calls_, model.model(), *std::move(queries),
                           EncodeGenerateBatchResponse);
}

}  // namespace photon
