// Any bytes as a request message of photon.v1: refused with a message in UTF-8 that names a field,
// or queries within the limits. The first byte chooses the method.
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/model/utf8.h"
#include "scheduler/scheduler.h"
#include "server/byte_buffer_codec.h"
#include "server/call_output.h"
#include "server/generation_request.h"
#include "server/grpc_status.h"
#include "tests/server/test_model.h"

namespace {

using photon::Query;

void CheckError(const absl::Status& error) {
  if (error.code() != absl::StatusCode::kInvalidArgument) std::abort();
  if (!photon::IsValidUtf8(std::string(error.message()))) std::abort();
  // What gRPC sends beside it.
  if (photon::ToGrpcStatus(error).error_details().empty()) std::abort();
}

void CheckQueries(std::vector<absl::StatusOr<Query>> queries, const photon::ModelFacts& model) {
  size_t sequences = 0;
  for (const absl::StatusOr<Query>& query : queries) {
    if (!query.ok()) {
      CheckError(query.status());
      continue;
    }
    sequences += query->n;
    const auto tokens = static_cast<int64_t>(query->sequence.prompt.size());
    if (tokens + query->sequence.max_tokens > photon::MaxSequenceTokens(model.shape)) std::abort();
  }
  if (sequences > 64) std::abort();
  photon::CallOutput output(std::move(queries), *model.tokenizer, 1024);
  if (output.TakeRequests().size() != sequences) std::abort();
}

template <typename Request, typename Parse>
void Run(const grpc::ByteBuffer& bytes, const photon::ModelFacts& model, const Parse& parse) {
  Request request;
  if (const absl::Status status = photon::ParseMessage(bytes, &request); !status.ok()) {
    return CheckError(status);
  }
  auto queries = parse(request);
  if (!queries.ok()) return CheckError(queries.status());
  CheckQueries(*std::move(queries), model);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const photon::ModelFacts model = photon::TestModel();
  photon::RequestLimits limits;
  limits.max_samples = limits.max_prompts = limits.max_questions = limits.max_sequences = 64;
  if (size == 0) return 0;
  const grpc::Slice slice(data + 1, size - 1);
  const grpc::ByteBuffer bytes(&slice, 1);
  switch (data[0] % 3) {
    case 0:
      Run<photon::v1::GenerateRequest>(bytes, model, [&](const auto& request) {
        auto query = photon::ParseGenerateRequest(request, model, limits, 1);
        // Its error is the call's.
        std::vector<absl::StatusOr<Query>> queries;
        queries.push_back(std::move(query));
        return absl::StatusOr<std::vector<absl::StatusOr<Query>>>(std::move(queries));
      });
      break;
    case 1:
      Run<photon::v1::GenerateBatchRequest>(bytes, model, [&](const auto& request) {
        return photon::ParseGenerateBatchRequest(request, model, limits, 1);
      });
      break;
    default:
      Run<photon::v1::AskRequest>(bytes, model, [&](const auto& request) {
        static const std::vector<photon::TokenId> document(100, 5);
        return photon::ParseAskRequest(request, document, model, limits, 1);
      });
  }
  return 0;
}
