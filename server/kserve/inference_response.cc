#include "server/kserve/inference_response.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "server/kserve/tensor.h"

namespace photon {
namespace {

// Beside its text a token costs its id and its log-probability.
constexpr int64_t kBytesPerToken = sizeof(int32_t) + sizeof(float);

std::string FinishReasonOf(const v1::GenerationResult& result) {
  return absl::AsciiStrToLower(
      absl::StripPrefix(v1::FinishReason_Name(result.finish_reason()), "FINISH_REASON_"));
}

// Rows of different lengths as one tensor, the shorter ones filled up.
template <typename Value>
std::vector<Value> Padded(std::span<const std::vector<Value>* const> rows, size_t width,
                          Value filling) {
  std::vector<Value> padded;
  padded.reserve(rows.size() * width);
  for (const std::vector<Value>* row : rows) {
    padded.insert(padded.end(), row->begin(), row->end());
    padded.resize(padded.size() + width - row->size(), filling);
  }
  return padded;
}

}  // namespace

InferenceResponse::InferenceResponse(InferenceRequest request, const std::string& model_name)
    : request_(std::move(request)),
      model_name_(model_name),
      samples_per_prompt_(request_.generation.parameters().n()),
      samples_(request_.stream ? 0 : request_.generation.prompts_size() * samples_per_prompt_) {}

inference::ModelInferResponse InferenceResponse::Frame() const {
  inference::ModelInferResponse response;
  response.set_model_name(model_name_);
  response.set_model_version(kModelVersion);
  response.set_id(request_.id);
  return response;
}

void InferenceResponse::Append(CallOutput::Message message, Sample& sample) {
  v1::GenerateResponse& output = message.output;
  sample.text += output.text();
  sample.token_ids.insert(sample.token_ids.end(), output.token_ids().begin(),
                          output.token_ids().end());
  for (const v1::TokenLogprobs& token : output.logprobs()) {
    sample.logprobs.push_back(token.logprob());
  }
  if (output.has_result()) sample.result.Swap(output.mutable_result());
}

void InferenceResponse::AddOutputs(const std::vector<Sample>& samples, std::vector<int64_t> shape,
                                   bool ended, inference::ModelInferResponse& response) const {
  const auto add_bytes = [&](const char* name, const auto& value_of) {
    if (!request_.Wants(name)) return;
    std::vector<std::string> values;
    for (const Sample& sample : samples) values.push_back(value_of(sample));
    AddBytesOutput(name, shape, values, response);
  };
  const auto add_count = [&](const char* name, const auto& value_of) {
    if (!request_.Wants(name)) return;
    std::vector<int32_t> values;
    for (const Sample& sample : samples) values.push_back(value_of(sample.result.usage()));
    AddInt32Output(name, shape, values, response);
  };
  add_bytes("text_output", [](const Sample& sample) { return sample.text; });
  if (ended) {
    add_bytes("finish_reason", [](const Sample& sample) { return FinishReasonOf(sample.result); });
    add_count("prompt_tokens", [](const v1::Usage& usage) { return usage.prompt_tokens(); });
    add_count("cached_tokens", [](const v1::Usage& usage) { return usage.cached_tokens(); });
    add_count("generated_tokens", [](const v1::Usage& usage) { return usage.generated_tokens(); });
  }
  if (request_.Wants("cum_log_probs")) {
    std::vector<float> values;
    for (const Sample& sample : samples) {
      values.push_back(std::accumulate(sample.logprobs.begin(), sample.logprobs.end(), 0.0f));
    }
    AddFp32Output("cum_log_probs", shape, values, response);
  }
  // One dimension more: tokens.
  size_t width = 0;
  std::vector<const std::vector<int32_t>*> ids;
  std::vector<const std::vector<float>*> logprobs;
  for (const Sample& sample : samples) {
    width = std::max(width, sample.token_ids.size());
    ids.push_back(&sample.token_ids);
    logprobs.push_back(&sample.logprobs);
  }
  shape.push_back(static_cast<int64_t>(width));
  if (request_.Wants("output_ids")) {
    AddInt32Output("output_ids", shape, Padded<int32_t>(ids, width, -1), response);
  }
  if (request_.Wants("output_log_probs")) {
    AddFp32Output("output_log_probs", shape, Padded<float>(logprobs, width, 0), response);
  }
}

inference::ModelInferResponse InferenceResponse::Piece(CallOutput::Message message,
                                                       bool last) const {
  inference::ModelInferResponse response = Frame();
  auto& parameters = *response.mutable_parameters();
  parameters["triton_final_response"].set_bool_param(last);
  if (request_.generation.prompts_size() > 1) {
    parameters["batch_index"].set_int64_param(static_cast<int64_t>(message.query));
  }
  if (samples_per_prompt_ > 1) {
    parameters["sample_index"].set_int64_param(message.output.sample_index());
  }
  const bool ended = message.output.has_result();
  std::vector<Sample> samples(1);
  Append(std::move(message), samples.front());
  std::vector<int64_t> shape = {1};
  if (request_.has_column) shape.push_back(1);
  AddOutputs(samples, std::move(shape), ended, response);
  return response;
}

void InferenceResponse::Add(CallOutput::Message message) {
  bytes_ += static_cast<int64_t>(message.output.text().size()) +
            message.output.token_ids_size() * kBytesPerToken;
  const size_t sample = message.query * samples_per_prompt_ + message.output.sample_index();
  Append(std::move(message), samples_[sample]);
}

inference::ModelInferResponse InferenceResponse::Whole() const {
  inference::ModelInferResponse response = Frame();
  std::vector<int64_t> shape = {request_.generation.prompts_size()};
  if (request_.has_column || samples_per_prompt_ > 1) shape.push_back(samples_per_prompt_);
  AddOutputs(samples_, std::move(shape), /*ended=*/true, response);
  return response;
}

}  // namespace photon
