// What sequences say, as ModelInferResponses: each piece in one, or all of it in a single one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "inference/grpc_predict_v2.pb.h"
#include "server/call_output.h"
#include "server/kserve/inference_request.h"

namespace photon {

// For one request, and one thread at a time.
class InferenceResponse {
 public:
  // `model_name` outlives it.
  InferenceResponse(InferenceRequest request, const std::string& model_name);

  const InferenceRequest& request() const { return request_; }

  // A piece of a sample as a response of its own, about that sample alone. `last`: of the request.
  inference::ModelInferResponse Piece(CallOutput::Message message, bool last) const;

  // Keeps a message for Whole().
  void Add(CallOutput::Message message);
  // Of what is kept, about.
  int64_t bytes() const { return bytes_; }
  // Every sample of every prompt.
  inference::ModelInferResponse Whole() const;

  // A response without outputs, for errors.
  inference::ModelInferResponse Frame() const;

 private:
  struct Sample {
    std::string text;
    std::vector<int32_t> token_ids;
    std::vector<float> logprobs;
    v1::GenerationResult result;
  };

  static void Append(CallOutput::Message message, Sample& sample);
  void AddOutputs(const std::vector<Sample>& samples, std::vector<int64_t> shape, bool ended,
                  inference::ModelInferResponse& response) const;

  const InferenceRequest request_;
  const std::string& model_name_;
  const int samples_per_prompt_;
  std::vector<Sample> samples_;  // of the first prompt, then those of the next
  int64_t bytes_ = 0;
};

}  // namespace photon
