// Any bytes as a ModelInferRequest: refused with a message in UTF-8, or queries within the limits
// whose output makes responses with the shapes that they say. The first byte chooses the method.
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/model/utf8.h"
#include "server/byte_buffer_codec.h"
#include "server/kserve/inference_request.h"
#include "server/kserve/inference_response.h"
#include "tests/server/test_model.h"

namespace {

void CheckError(const absl::Status& error) {
  if (error.ok() || !photon::IsValidUtf8(std::string(error.message()))) std::abort();
}

void CheckResponse(const inference::ModelInferResponse& response) {
  if (response.outputs_size() != response.raw_output_contents_size()) std::abort();
  for (int i = 0; i < response.outputs_size(); ++i) {
    size_t elements = 1;
    for (const int64_t dimension : response.outputs(i).shape()) elements *= dimension;
    // Of BYTES each element has a length in four bytes; the others are four bytes each.
    const size_t bytes = response.raw_output_contents(i).size();
    if (response.outputs(i).datatype() == "BYTES" ? bytes < 4 * elements : bytes != 4 * elements) {
      std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const photon::ModelFacts model = photon::TestModel();
  photon::RequestLimits limits;
  limits.max_samples = limits.max_prompts = limits.max_sequences = 64;
  if (size == 0) return 0;
  const grpc::Slice slice(data + 1, size - 1);
  inference::ModelInferRequest message;
  const absl::Status status = photon::ParseMessage(grpc::ByteBuffer(&slice, 1), &message);
  if (!status.ok()) {
    CheckError(status);
    return 0;
  }
  auto request = photon::ParseInferenceRequest(message, model.name, limits, data[0] % 2 == 1);
  if (!request.ok()) {
    CheckError(request.status());
    return 0;
  }
  const auto queries = photon::InferenceQueries(*request, model, limits, 1);
  if (!queries.ok()) {
    CheckError(queries.status());
    return 0;
  }
  const int samples = request->generation.parameters().n();
  const size_t sequences = queries->size() * samples;
  if (sequences < 1 || sequences > 64) std::abort();

  const bool stream = request->stream;
  photon::InferenceResponse response(*std::move(request), model.name);
  for (size_t i = 0; i < sequences; ++i) {
    photon::CallOutput::Message piece{.query = i / samples, .sequence = i};
    piece.output.set_sample_index(static_cast<int>(i % samples));
    piece.output.set_text(std::string(i, 'x'));
    for (size_t token = 0; token < i; ++token) {
      piece.output.add_token_ids(1);
      piece.output.add_logprobs()->set_logprob(-1);
    }
    piece.output.mutable_result()->set_finish_reason(photon::v1::FINISH_REASON_LENGTH);
    if (stream) {
      CheckResponse(response.Piece(std::move(piece), i + 1 == sequences));
    } else {
      response.Add(std::move(piece));
    }
  }
  if (!stream) CheckResponse(response.Whole());
  return 0;
}
