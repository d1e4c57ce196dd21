#include "server/kserve/inference_request.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/utf8.h"
#include "server/generation_fields.h"
#include "server/kserve/tensor.h"

namespace photon {
namespace {

using Json = nlohmann::json;
using inference::InferParameter;

constexpr int64_t kMaxTimeoutUs = int64_t{24} * 3600 * 1'000'000;

constexpr std::array<TensorTemplate, 16> kInputs = {{
    {"text_input", "BYTES", 1},
    {"max_tokens", "INT32", 1},
    {"temperature", "FP32", 1},
    {"top_k", "INT32", 1},
    {"top_p", "FP32", 1},
    {"min_p", "FP32", 1},
    {"seed", "UINT64", 1},
    {"stop", "BYTES", -1},
    {"stop_token_ids", "INT32", -1},
    {"ignore_eos", "BOOL", 1},
    {"mode", "BYTES", 1},
    {"n", "INT32", 1},
    {"logprobs", "BOOL", 1},
    {"stream", "BOOL", 1},
    {"sampling_parameters", "BYTES", 1},
    {"exclude_input_in_output", "BOOL", 1},
}};

constexpr std::array<TensorTemplate, 8> kOutputs = {{
    {"text_output", "BYTES", -1},
    {"finish_reason", "BYTES", -1},
    {"prompt_tokens", "INT32", -1},
    {"cached_tokens", "INT32", -1},
    {"generated_tokens", "INT32", -1},
    {"output_ids", "INT32", -1},
    {"output_log_probs", "FP32", -1},
    {"cum_log_probs", "FP32", -1},
}};

bool NeedsLogprobs(std::string_view output) {
  return output == "output_log_probs" || output == "cum_log_probs";
}

// What users of other backends say.
std::string_view CanonicalName(std::string_view name) {
  if (name == "stop_words") return "stop";
  if (name == "random_seed") return "seed";
  if (name == "return_log_probs") return "logprobs";
  return name;
}

bool IsList(std::string_view name) {
  return name == "stop" || name == "stop_token_ids";
}

Json ValueOf(const InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case InferParameter::kBoolParam:
      return parameter.bool_param();
    case InferParameter::kInt64Param:
      return parameter.int64_param();
    case InferParameter::kStringParam:
      return parameter.string_param();
    case InferParameter::kDoubleParam:
      return parameter.double_param();
    case InferParameter::kUint64Param:
      return parameter.uint64_param();
    case InferParameter::PARAMETER_CHOICE_NOT_SET:
      break;
  }
  return nullptr;
}

// Reads the tensors and parameters of a request into an InferenceRequest.
class Reader {
 public:
  Reader(const RequestLimits& limits, bool may_stream)
      : limits_(limits), may_stream_(may_stream), fields_(limits) {
    request_.stream = may_stream;
  }

  absl::StatusOr<InferenceRequest> Read(const inference::ModelInferRequest& request) {
    const int64_t most = std::max({limits_.max_prompts, kMaxStopTokens, kMaxStopStrings});
    auto tensors = ReadInputs(request, most);
    if (!tensors.ok()) return tensors.status();
    request_.id = request.id();
    for (InputTensor& tensor : *tensors) {
      if (tensor.name == "text_input") {
        Prompts(tensor);
      } else {
        Field(tensor.name, TakeValue(tensor));
      }
    }
    if (!has_prompts_) fields_.Fail("text_input", "is missing");
    for (const auto& [name, parameter] : request.parameters()) {
      if (!ProtocolParameter(name, parameter)) Field(name, ValueOf(parameter));
    }
    Outputs(request);
    CheckTogether();
    if (absl::Status status = fields_.status(); !status.ok()) return status;
    if (!request_.timeout.has_value()) request_.timeout = fields_.timeout();
    *request_.generation.mutable_parameters() = std::move(fields_.parameters());
    return std::move(request_);
  }

 private:
  void Prompts(InputTensor& tensor) {
    const auto count = static_cast<int64_t>(tensor.elements.size());
    const bool is_column = tensor.shape.size() == 2 && tensor.shape[1] == 1;
    if (has_prompts_) return fields_.Fail("text_input", "is there twice");
    has_prompts_ = true;
    request_.has_column = is_column;
    if (!is_column && tensor.shape.size() != 1) {
      return fields_.Expect("text_input", "a shape of [prompts] or [prompts, 1]");
    }
    if (count < 1 || count > limits_.max_prompts) {
      return fields_.Fail("text_input", "expected 1 to ", limits_.max_prompts, " prompts, got ",
                          count);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (!tensor.elements[i].is_string()) {
        return fields_.Expect("text_input", "a datatype of BYTES");
      }
      auto& text = tensor.elements[i].get_ref<std::string&>();
      if (!IsValidUtf8(text)) {
        return fields_.Fail(absl::StrCat("text_input[", i, "]"), "is not valid UTF-8");
      }
      request_.generation.add_prompts()->set_text(std::move(text));
    }
  }

  // A tensor that holds a parameter: its only element, which may be there once for each prompt; or
  // its list.
  Json TakeValue(InputTensor& tensor) {
    if (IsList(CanonicalName(tensor.name))) return Json(std::move(tensor.elements));
    if (tensor.elements.empty() ||
        std::adjacent_find(tensor.elements.begin(), tensor.elements.end(), std::not_equal_to<>()) !=
            tensor.elements.end()) {
      fields_.Expect(tensor.name,
                     "one element, or the same for all prompts: they share parameters");
      return nullptr;
    }
    return std::move(tensor.elements.front());
  }

  // Parameters that Triton's protocol defines for all models. False: it is none of these.
  bool ProtocolParameter(const std::string& name, const InferParameter& parameter) {
    const Json value = ValueOf(parameter);
    if (name == "priority" && value.is_number()) {
      // 1 is the highest, and 0 says nothing.
      static constexpr std::array kClasses = {v1::PRIORITY_UNSPECIFIED, v1::PRIORITY_HIGH,
                                              v1::PRIORITY_NORMAL, v1::PRIORITY_LOW};
      const auto number = fields_.Integer(name, value, 0, kClasses.size() - 1);
      if (number.has_value()) fields_.parameters().set_priority(kClasses[*number]);
    } else if (name == "timeout") {
      const auto microseconds = fields_.Integer(name, value, 0, kMaxTimeoutUs);
      if (microseconds.value_or(0) > 0) request_.timeout = std::chrono::microseconds(*microseconds);
    } else if (name == "triton_enable_empty_final_response") {
      // Nothing to do: a last response is never empty.
      fields_.Boolean(name, value);
    } else if (name == "sequence_id" || name == "sequence_start" || name == "sequence_end") {
      fields_.Fail(name, "is not supported: requests stand for themselves");
    } else {
      return false;
    }
    return true;
  }

  void Field(const std::string& sent_name, const Json& value) {
    const std::string_view name = CanonicalName(sent_name);
    if (value.is_null()) return;
    if (!seen_.emplace(name).second) return fields_.Fail(sent_name, "is there twice");
    if (value.is_string() && !IsValidUtf8(value.get_ref<const std::string&>())) {
      return fields_.Fail(sent_name, "is not valid UTF-8");
    }
    if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i) {
        if (value[i].is_string() && !IsValidUtf8(value[i].get_ref<const std::string&>())) {
          return fields_.Fail(absl::StrCat(sent_name, "[", i, "]"), "is not valid UTF-8");
        }
      }
    }
    if (name == "stream") {
      Stream(value);
    } else if (name == "logprobs") {
      if (const auto flag = fields_.Boolean(sent_name, value)) {
        fields_.parameters().set_logprobs(*flag);
      }
    } else if (name == "exclude_input_in_output") {
      const auto flag = fields_.Boolean(sent_name, value);
      if (flag.has_value() && !*flag) {
        fields_.Expect(sent_name, "true: text_output is what was generated, without the prompt");
      }
    } else if (name == "sampling_parameters") {
      SamplingParameters(value);
    } else if (!fields_.Read(name, value)) {
      fields_.Fail(sent_name, "is not a tensor or parameter of this model");
    }
  }

  void Stream(const Json& value) {
    const auto flag = fields_.Boolean("stream", value);
    if (!flag.has_value()) return;
    if (*flag && !may_stream_)
      fields_.Fail("stream", "ModelStreamInfer streams, ModelInfer cannot");
    request_.stream = *flag && may_stream_;
  }

  // A JSON object with fields as above.
  void SamplingParameters(const Json& value) {
    static constexpr char kName[] = "sampling_parameters";
    Json object;
    if (value.is_string()) {
      object = Json::parse(value.get_ref<const std::string&>(), nullptr,
                           /*allow_exceptions=*/false);
    }
    if (!object.is_object()) return fields_.Expect(kName, "a JSON object");
    for (const auto& [name, member] : object.items()) {
      if (name == kName || name == "stream") {
        fields_.Fail(name, "is not for ", kName);
      } else {
        Field(name, member);
      }
    }
  }

  void Outputs(const inference::ModelInferRequest& request) {
    for (const auto& output : request.outputs()) {
      const auto found = std::find_if(kOutputs.begin(), kOutputs.end(),
                                      [&](const auto& spec) { return spec.name == output.name(); });
      if (found == kOutputs.end()) {
        std::vector<std::string> names;
        for (const TensorTemplate& spec : kOutputs) names.emplace_back(spec.name);
        return fields_.Fail("outputs", "expected some of ", absl::StrJoin(names, ", "));
      }
      if (output.parameters().contains("shared_memory_region")) {
        return fields_.Fail(output.name(), "shared memory is not supported");
      }
      if (output.parameters().contains("classification")) {
        return fields_.Fail(output.name(), "this model does not classify");
      }
      if (NeedsLogprobs(output.name())) fields_.parameters().set_logprobs(true);
      request_.outputs.push_back(output.name());
    }
    if (!request_.outputs.empty()) return;
    for (const TensorTemplate& spec : kOutputs) {
      if (fields_.parameters().logprobs() || !NeedsLogprobs(spec.name)) {
        request_.outputs.emplace_back(spec.name);
      }
    }
  }

  void CheckTogether() {
    fields_.parameters().set_n(fields_.n());
    const int64_t sequences = int64_t{request_.generation.prompts_size()} * fields_.n();
    if (sequences > limits_.max_sequences) {
      fields_.Fail("n", "prompts times samples are ", sequences, " sequences, expected at most ",
                   limits_.max_sequences);
    }
  }

  const RequestLimits& limits_;
  const bool may_stream_;
  GenerationFields fields_;
  InferenceRequest request_;
  bool has_prompts_ = false;
  std::set<std::string, std::less<>> seen_;
};

}  // namespace

std::span<const TensorTemplate> InputTensors() {
  return kInputs;
}

std::span<const TensorTemplate> OutputTensors() {
  return kOutputs;
}

bool InferenceRequest::Wants(std::string_view output) const {
  return std::find(outputs.begin(), outputs.end(), output) != outputs.end();
}

absl::Status CheckModel(const std::string& name, const std::string& version,
                        const std::string& model_name) {
  if (name != model_name) {
    return absl::NotFoundError(absl::StrCat("model_name: this server serves ", model_name));
  }
  if (!version.empty() && version != kModelVersion) {
    return absl::NotFoundError(
        absl::StrCat("model_version: this server has version ", kModelVersion, " of ", model_name));
  }
  return absl::OkStatus();
}

absl::StatusOr<InferenceRequest> ParseInferenceRequest(const inference::ModelInferRequest& request,
                                                       const std::string& model_name,
                                                       const RequestLimits& limits,
                                                       bool may_stream) {
  if (absl::Status status = CheckModel(request.model_name(), request.model_version(), model_name);
      !status.ok()) {
    return status;
  }
  return Reader(limits, may_stream).Read(request);
}

absl::StatusOr<std::vector<absl::StatusOr<Query>>> InferenceQueries(const InferenceRequest& request,
                                                                    const ModelFacts& model,
                                                                    const RequestLimits& limits,
                                                                    uint64_t seed) {
  auto queries = ParseGenerateBatchRequest(request.generation, model, limits, seed);
  if (!queries.ok()) return InGenerationFields(queries.status(), "text_input");
  // An inference succeeds or fails as a whole.
  for (const absl::StatusOr<Query>& query : *queries) {
    if (!query.ok()) return InGenerationFields(query.status(), "text_input");
  }
  return queries;
}

}  // namespace photon
