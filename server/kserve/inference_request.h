// ModelInferRequests, checked. docs/kserve.md lists every tensor and parameter.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "inference/grpc_predict_v2.pb.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/clock.h"
#include "server/generation_request.h"
#include "server/model_facts.h"
#include "server/options.h"

namespace photon {

// There is one; a request may name it.
inline constexpr char kModelVersion[] = "1";

// A tensor that requests may have, or that responses have.
struct TensorTemplate {
  const char* name;
  const char* datatype;
  int64_t last_dimension;  // beside the batch's; -1: any size
};
std::span<const TensorTemplate> InputTensors();  // the first alone is required
std::span<const TensorTemplate> OutputTensors();

struct InferenceRequest {
  std::string id;
  // Every prompt and the parameters that they share.
  v1::GenerateBatchRequest generation;
  // text_input was [batch, 1], not [batch].
  bool has_column = false;
  // Each piece of the output in a response of its own.
  bool stream = false;
  // Names of the outputs that are wanted.
  std::vector<std::string> outputs;
  std::optional<Duration> timeout;

  bool Wants(std::string_view output) const;
};

// `may_stream`: the request is one of ModelStreamInfer, whose requests stream unless they say no.
// kInvalidArgument names the tensor or parameter at fault and what is expected; what is unknown is
// at fault. kNotFound: another model or version.
absl::StatusOr<InferenceRequest> ParseInferenceRequest(const inference::ModelInferRequest& request,
                                                       const std::string& model_name,
                                                       const RequestLimits& limits,
                                                       bool may_stream);

// What the request asks the scheduler for. kInvalidArgument in the words of its tensors.
absl::StatusOr<std::vector<absl::StatusOr<Query>>> InferenceQueries(const InferenceRequest& request,
                                                                    const ModelFacts& model,
                                                                    const RequestLimits& limits,
                                                                    uint64_t seed);

// kNotFound, unless they are of the model that is served; an empty version is.
absl::Status CheckModel(const std::string& name, const std::string& version,
                        const std::string& model_name);

}  // namespace photon
