// Tensors of the Open Inference Protocol, to and from its two wire forms: typed contents, and raw
// bytes (little-endian; each element of BYTES has its length in four bytes before it).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "inference/grpc_predict_v2.pb.h"

namespace photon {

struct InputTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<nlohmann::json> elements;  // row-major: booleans, numbers or strings of bytes
};

// Every input of `request`. kInvalidArgument: a datatype that is unknown or not offered (FP16,
// BF16), a shape that does not go with the contents or has more than `max_elements`, contents in
// both forms, or in shared memory; names the tensor.
absl::StatusOr<std::vector<InputTensor>> ReadInputs(const inference::ModelInferRequest& request,
                                                    int64_t max_elements);

// Adds an output to `response`, in raw form.
void AddBytesOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const std::string> elements, inference::ModelInferResponse& response);
void AddInt32Output(std::string_view name, std::span<const int64_t> shape,
                    std::span<const int32_t> elements, inference::ModelInferResponse& response);
void AddFp32Output(std::string_view name, std::span<const int64_t> shape,
                   std::span<const float> elements, inference::ModelInferResponse& response);

}  // namespace photon
