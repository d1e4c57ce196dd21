#include "server/generation_fields.h"

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "server/generation_request.h"

namespace photon {
namespace {

constexpr size_t kMaxProblems = 8;
constexpr size_t kMaxFieldNameBytes = 64;
constexpr int64_t kMaxTimeoutMs = 24 * 3600 * 1000;
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

}  // namespace

bool GenerationFields::Read(std::string_view name, const Json& value) {
  static const std::map<std::string, Reader, std::less<>> kFields = {
      {"max_tokens", &GenerationFields::MaxTokens},
      {"temperature", &GenerationFields::Temperature},
      {"top_p", &GenerationFields::TopP},
      {"top_k", &GenerationFields::TopK},
      {"min_p", &GenerationFields::MinP},
      {"n", &GenerationFields::N},
      {"stop", &GenerationFields::Stop},
      {"stop_token_ids", &GenerationFields::StopTokenIds},
      {"seed", &GenerationFields::Seed},
      {"mode", &GenerationFields::Mode},
      {"priority", &GenerationFields::PriorityClass},
      {"ignore_eos", &GenerationFields::IgnoreEos},
      {"timeout_ms", &GenerationFields::TimeoutMs},
  };
  const auto field = kFields.find(name);
  if (field == kFields.end()) return false;
  if (!value.is_null()) (this->*field->second)(name, value);
  return true;
}

void GenerationFields::AddProblem(std::string_view name, std::string problem) {
  if (problems_.size() >= kMaxProblems) return;
  problems_.push_back(absl::StrCat(std::string(name.substr(0, kMaxFieldNameBytes)), ": ", problem));
}

absl::Status GenerationFields::status() const {
  if (problems_.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems_, "; "));
}

std::optional<int64_t> GenerationFields::Integer(std::string_view name, const Json& value,
                                                 int64_t least, int64_t most) {
  std::optional<int64_t> integer;
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) integer = number;
  } else if (value.is_number_integer()) {
    integer = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) < 1e15 && number == std::floor(number)) {
      integer = static_cast<int64_t>(number);
    }
  }
  if (integer.has_value() && *integer >= least && *integer <= most) return integer;
  Fail(name, "expected a whole number in [", least, ", ", most, "]");
  return std::nullopt;
}

std::optional<float> GenerationFields::Number(std::string_view name, const Json& value) {
  if (value.is_number()) return static_cast<float>(value.get<double>());
  Expect(name, "a number");
  return std::nullopt;
}

std::optional<bool> GenerationFields::Boolean(std::string_view name, const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  Expect(name, "true or false");
  return std::nullopt;
}

void GenerationFields::MaxTokens(std::string_view name, const Json& value) {
  if (const auto number = Integer(name, value, 1, kMaxInt)) {
    parameters_.set_max_tokens(static_cast<int32_t>(*number));
  }
}

void GenerationFields::Temperature(std::string_view name, const Json& value) {
  if (const auto number = Number(name, value)) {
    parameters_.mutable_sampling()->set_temperature(*number);
  }
}

void GenerationFields::TopP(std::string_view name, const Json& value) {
  if (const auto number = Number(name, value)) parameters_.mutable_sampling()->set_top_p(*number);
}

void GenerationFields::TopK(std::string_view name, const Json& value) {
  if (const auto number = Integer(name, value, 0, kMaxInt)) {
    parameters_.mutable_sampling()->set_top_k(static_cast<int32_t>(*number));
  }
}

void GenerationFields::MinP(std::string_view name, const Json& value) {
  if (const auto number = Number(name, value)) parameters_.mutable_sampling()->set_min_p(*number);
}

void GenerationFields::N(std::string_view name, const Json& value) {
  if (const auto number = Integer(name, value, 1, limits_.max_samples)) {
    n_ = static_cast<int>(*number);
  }
}

void GenerationFields::Stop(std::string_view name, const Json& value) {
  auto& strings = *parameters_.mutable_stop()->mutable_strings();
  if (value.is_string()) {
    *strings.Add() = value.get<std::string>();
    return;
  }
  if (!value.is_array()) return Expect(name, "a string or a list of strings");
  if (value.size() > static_cast<size_t>(kMaxStopStrings)) {
    return Fail(name, "expected at most ", kMaxStopStrings, " strings, got ", value.size());
  }
  for (const Json& text : value) {
    if (!text.is_string()) return Expect(name, "a string or a list of strings");
    *strings.Add() = text.get<std::string>();
  }
}

void GenerationFields::StopTokenIds(std::string_view name, const Json& value) {
  if (!value.is_array()) return Expect(name, "a list of token ids");
  if (value.size() > static_cast<size_t>(kMaxStopTokens)) {
    return Fail(name, "expected at most ", kMaxStopTokens, " ids, got ", value.size());
  }
  for (const Json& id : value) {
    if (const auto number = Integer(name, id, 0, kMaxInt)) {
      parameters_.mutable_stop()->add_token_ids(static_cast<int32_t>(*number));
    }
  }
}

void GenerationFields::Seed(std::string_view name, const Json& value) {
  if (value.is_number_unsigned()) {
    parameters_.mutable_sampling()->set_seed(value.get<uint64_t>());
  } else if (value.is_number_integer()) {
    parameters_.mutable_sampling()->set_seed(static_cast<uint64_t>(value.get<int64_t>()));
  } else {
    Expect(name, "a whole number of 64 bits");
  }
}

void GenerationFields::Mode(std::string_view name, const Json& value) {
  static const std::map<std::string, v1::GenerationMode, std::less<>> kModes = {
      {"exact", v1::GENERATION_MODE_EXACT},
      {"hiergen", v1::GENERATION_MODE_HIERGEN},
      {"recgen", v1::GENERATION_MODE_RECGEN}};
  const auto mode =
      value.is_string() ? kModes.find(value.get_ref<const std::string&>()) : kModes.end();
  if (mode == kModes.end()) return Expect(name, "\"exact\", \"hiergen\" or \"recgen\"");
  parameters_.set_mode(mode->second);
}

void GenerationFields::PriorityClass(std::string_view name, const Json& value) {
  static const std::map<std::string, v1::Priority, std::less<>> kPriorities = {
      {"low", v1::PRIORITY_LOW}, {"normal", v1::PRIORITY_NORMAL}, {"high", v1::PRIORITY_HIGH}};
  const auto priority =
      value.is_string() ? kPriorities.find(value.get_ref<const std::string&>()) : kPriorities.end();
  if (priority == kPriorities.end()) return Expect(name, "\"low\", \"normal\" or \"high\"");
  parameters_.set_priority(priority->second);
}

void GenerationFields::IgnoreEos(std::string_view name, const Json& value) {
  if (const auto flag = Boolean(name, value)) parameters_.mutable_stop()->set_ignore_eos(*flag);
}

void GenerationFields::TimeoutMs(std::string_view name, const Json& value) {
  if (const auto number = Integer(name, value, 1, kMaxTimeoutMs)) {
    timeout_ = std::chrono::milliseconds(*number);
  }
}

absl::Status InGenerationFields(const absl::Status& error, std::string_view prompts) {
  if (error.ok()) return error;
  return absl::Status(error.code(),
                      absl::StrReplaceAll(std::string(error.message()),
                                          {{"parameters.sampling.", ""},
                                           {"parameters.stop.strings", "stop"},
                                           {"parameters.stop.token_ids", "stop_token_ids"},
                                           {"parameters.top_logprobs", "logprobs"},
                                           {"parameters.", ""},
                                           {"].token_ids.ids[", "]["},
                                           {"GENERATION_MODE_EXACT", "exact"},
                                           {"GENERATION_MODE_HIERGEN", "hiergen"},
                                           {"GENERATION_MODE_RECGEN", "recgen"},
                                           {"prompts[", absl::StrCat(std::string(prompts), "[")}}));
}

}  // namespace photon
