#include "server/http/completion_request.h"

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace photon {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxProblems = 8;
constexpr size_t kMaxFieldNameBytes = 64;
constexpr size_t kMaxUserBytes = 512;
constexpr int64_t kMaxTimeoutMs = 24 * 3600 * 1000;

// Reads the members of a request's object into a CompletionRequest.
class Reader {
 public:
  Reader(const std::string& model_name, const RequestLimits& limits)
      : model_name_(model_name), limits_(limits) {}

  absl::StatusOr<CompletionRequest> Read(const Json& body) {
    static const std::map<std::string, void (Reader::*)(const Json&), std::less<>> kFields = {
        {"model", &Reader::Model},
        {"prompt", &Reader::Prompt},
        {"max_tokens", &Reader::MaxTokens},
        {"temperature", &Reader::Temperature},
        {"top_p", &Reader::TopP},
        {"n", &Reader::N},
        {"best_of", &Reader::BestOf},
        {"stream", &Reader::Stream},
        {"stream_options", &Reader::StreamOptions},
        {"logprobs", &Reader::Logprobs},
        {"echo", &Reader::Echo},
        {"stop", &Reader::Stop},
        {"seed", &Reader::Seed},
        {"user", &Reader::User},
        {"presence_penalty", &Reader::PresencePenalty},
        {"frequency_penalty", &Reader::FrequencyPenalty},
        {"logit_bias", &Reader::LogitBias},
        {"suffix", &Reader::Suffix},
        // Of this server's own.
        {"mode", &Reader::Mode},
        {"top_k", &Reader::TopK},
        {"min_p", &Reader::MinP},
        {"priority", &Reader::PriorityClass},
        {"ignore_eos", &Reader::IgnoreEos},
        {"stop_token_ids", &Reader::StopTokenIds},
        {"timeout_ms", &Reader::TimeoutMs},
    };
    parameters().set_max_tokens(kDefaultCompletionTokens);
    for (const auto& [name, value] : body.items()) {
      const auto field = kFields.find(name);
      if (field == kFields.end()) {
        Fail(name.substr(0, kMaxFieldNameBytes), "is not a field of a completion request");
      } else if (!value.is_null()) {
        name_ = name;
        (this->*field->second)(value);
      }
    }
    CheckTogether();
    if (!problems_.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems_, "; "));
    if (model_ != model_name_) {
      return absl::NotFoundError(absl::StrCat("model: this server serves ", model_name_));
    }
    return std::move(request_);
  }

 private:
  v1::GenerationParameters& parameters() { return *request_.generation.mutable_parameters(); }

  template <typename... Parts>
  void Fail(const std::string& field, const Parts&... parts) {
    if (problems_.size() < kMaxProblems) {
      problems_.push_back(absl::StrCat(field, ": ", absl::StrCat(parts...)));
    }
  }
  void Expect(const char* what) { Fail(name_, "expected ", what); }

  // --- Values of the field that is being read ---

  std::optional<int64_t> Integer(const Json& value, int64_t least, int64_t most) {
    // Numbers without a fraction count, however they are written.
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
    Fail(name_, "expected a whole number in [", least, ", ", most, "]");
    return std::nullopt;
  }

  std::optional<float> Number(const Json& value) {
    if (value.is_number()) return static_cast<float>(value.get<double>());
    Expect("a number");
    return std::nullopt;
  }

  std::optional<bool> Boolean(const Json& value) {
    if (value.is_boolean()) return value.get<bool>();
    Expect("true or false");
    return std::nullopt;
  }

  static constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

  // --- Fields ---

  void Model(const Json& value) {
    if (!value.is_string()) return Expect("a string");
    model_ = value.get<std::string>();
  }

  void Prompt(const Json& value) {
    static constexpr char kExpected[] =
        "a string, a list of strings, a list of token ids, or a list of lists of token ids";
    auto& prompts = *request_.generation.mutable_prompts();
    has_prompt_ = true;
    if (value.is_string()) {
      prompts.Add()->set_text(value.get<std::string>());
      return;
    }
    if (!value.is_array() || value.empty()) return Expect(kExpected);
    if (value.front().is_number()) return TokenIds(value, "prompt", *prompts.Add());
    request_.is_prompt_list = true;
    if (value.size() > static_cast<size_t>(limits_.max_prompts)) {
      return Fail(name_, "expected at most ", limits_.max_prompts, " prompts, got ", value.size());
    }
    for (size_t i = 0; i < value.size(); ++i) {
      const Json& prompt = value[i];
      if (prompt.is_string() && value.front().is_string()) {
        prompts.Add()->set_text(prompt.get<std::string>());
      } else if (prompt.is_array() && value.front().is_array()) {
        TokenIds(prompt, absl::StrCat("prompt[", i, "]"), *prompts.Add());
      } else {
        return Expect(kExpected);
      }
    }
  }

  void TokenIds(const Json& list, const std::string& field, v1::Prompt& prompt) {
    auto& ids = *prompt.mutable_token_ids()->mutable_ids();
    ids.Reserve(static_cast<int>(list.size()));
    for (const Json& id : list) {
      if (!id.is_number_integer()) return Fail(field, "expected token ids alone");
      // Whether there is such a token is checked later: -1 stands for all that do not fit.
      const int64_t number = id.get<int64_t>();
      ids.Add(number < 0 || number > kMaxInt ? -1 : static_cast<int32_t>(number));
    }
  }

  void MaxTokens(const Json& value) {
    if (const auto number = Integer(value, 1, kMaxInt)) {
      parameters().set_max_tokens(static_cast<int32_t>(*number));
    }
  }
  void Temperature(const Json& value) {
    if (const auto number = Number(value))
      parameters().mutable_sampling()->set_temperature(*number);
  }
  void TopP(const Json& value) {
    if (const auto number = Number(value)) parameters().mutable_sampling()->set_top_p(*number);
  }
  void TopK(const Json& value) {
    if (const auto number = Integer(value, 0, kMaxInt)) {
      parameters().mutable_sampling()->set_top_k(static_cast<int32_t>(*number));
    }
  }
  void MinP(const Json& value) {
    if (const auto number = Number(value)) parameters().mutable_sampling()->set_min_p(*number);
  }
  void N(const Json& value) {
    if (const auto number = Integer(value, 1, limits_.max_samples)) {
      request_.n = static_cast<int>(*number);
    }
  }
  void BestOf(const Json& value) {
    if (const auto number = Integer(value, 1, limits_.max_samples)) {
      best_of_ = static_cast<int>(*number);
    }
  }
  void Stream(const Json& value) {
    if (const auto flag = Boolean(value)) request_.stream = *flag;
  }

  void StreamOptions(const Json& value) {
    if (!value.is_object()) return Expect("an object");
    has_stream_options_ = true;
    for (const auto& [name, option] : value.items()) {
      name_ = absl::StrCat("stream_options.", name.substr(0, kMaxFieldNameBytes));
      if (option.is_null()) continue;
      if (name == "include_usage") {
        if (const auto flag = Boolean(option)) request_.include_usage = *flag;
      } else if (name == "include_obfuscation") {
        if (const auto flag = Boolean(option); flag.has_value() && *flag) Refuse("false");
      } else {
        Fail(name_, "is not a stream option");
      }
    }
  }

  void Logprobs(const Json& value) {
    if (value.is_boolean() && !value.get<bool>()) return;
    if (const auto number = Integer(value, 0, kMaxCompletionLogprobs)) {
      request_.logprobs = static_cast<int>(*number);
    }
  }
  void Echo(const Json& value) {
    if (const auto flag = Boolean(value)) request_.echo = *flag;
  }

  void Stop(const Json& value) {
    auto& strings = *parameters().mutable_stop()->mutable_strings();
    if (value.is_string()) {
      *strings.Add() = value.get<std::string>();
      return;
    }
    if (!value.is_array()) return Expect("a string or a list of strings");
    if (value.size() > static_cast<size_t>(kMaxStopStrings)) {
      return Fail(name_, "expected at most ", kMaxStopStrings, " strings, got ", value.size());
    }
    for (const Json& text : value) {
      if (!text.is_string()) return Expect("a string or a list of strings");
      *strings.Add() = text.get<std::string>();
    }
  }

  void StopTokenIds(const Json& value) {
    if (!value.is_array()) return Expect("a list of token ids");
    if (value.size() > static_cast<size_t>(kMaxStopTokens)) {
      return Fail(name_, "expected at most ", kMaxStopTokens, " ids, got ", value.size());
    }
    for (const Json& id : value) {
      if (const auto number = Integer(id, 0, kMaxInt)) {
        parameters().mutable_stop()->add_token_ids(static_cast<int32_t>(*number));
      }
    }
  }

  void Seed(const Json& value) {
    if (value.is_number_unsigned()) {
      parameters().mutable_sampling()->set_seed(value.get<uint64_t>());
    } else if (value.is_number_integer()) {
      parameters().mutable_sampling()->set_seed(static_cast<uint64_t>(value.get<int64_t>()));
    } else {
      Expect("a whole number of 64 bits");
    }
  }

  void User(const Json& value) {
    if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxUserBytes) {
      Expect("a string of at most 512 bytes");
    }
  }

  // Not offered: only the value that asks for nothing is taken.
  void Refuse(const char* neutral) {
    Fail(name_, "is not supported by this server; leave it out or give ", neutral);
  }
  void Penalty(const Json& value) {
    if (!value.is_number() || value.get<double>() != 0) Refuse("0");
  }
  void PresencePenalty(const Json& value) { Penalty(value); }
  void FrequencyPenalty(const Json& value) { Penalty(value); }
  void LogitBias(const Json& value) {
    if (!value.is_object() || !value.empty()) Refuse("{}");
  }
  void Suffix(const Json& value) {
    if (!value.is_string() || !value.get_ref<const std::string&>().empty()) Refuse("\"\"");
  }

  void Mode(const Json& value) {
    static const std::map<std::string, v1::GenerationMode, std::less<>> kModes = {
        {"exact", v1::GENERATION_MODE_EXACT},
        {"hiergen", v1::GENERATION_MODE_HIERGEN},
        {"recgen", v1::GENERATION_MODE_RECGEN}};
    const auto mode =
        value.is_string() ? kModes.find(value.get_ref<const std::string&>()) : kModes.end();
    if (mode == kModes.end()) return Expect("\"exact\", \"hiergen\" or \"recgen\"");
    parameters().set_mode(mode->second);
  }

  void PriorityClass(const Json& value) {
    static const std::map<std::string, v1::Priority, std::less<>> kPriorities = {
        {"low", v1::PRIORITY_LOW}, {"normal", v1::PRIORITY_NORMAL}, {"high", v1::PRIORITY_HIGH}};
    const auto priority = value.is_string() ? kPriorities.find(value.get_ref<const std::string&>())
                                            : kPriorities.end();
    if (priority == kPriorities.end()) return Expect("\"low\", \"normal\" or \"high\"");
    parameters().set_priority(priority->second);
  }

  void IgnoreEos(const Json& value) {
    if (const auto flag = Boolean(value)) parameters().mutable_stop()->set_ignore_eos(*flag);
  }
  void TimeoutMs(const Json& value) {
    if (const auto number = Integer(value, 1, kMaxTimeoutMs)) {
      request_.timeout = std::chrono::milliseconds(*number);
    }
  }

  void CheckTogether() {
    if (!model_.has_value()) Fail("model", "is missing");
    if (!has_prompt_) request_.generation.add_prompts();
    if (has_stream_options_ && !request_.stream) {
      Fail("stream_options", "is allowed with stream alone");
    }
    const int best_of = best_of_.value_or(request_.n);
    if (best_of < request_.n) {
      Fail("best_of", "expected at least n, ", request_.n, ", got ", best_of);
    }
    request_.best_of = best_of > request_.n;
    if (request_.best_of && request_.stream) {
      Fail("best_of", "cannot be streamed: which samples are best is known at the end");
    }
    if (request_.logprobs.has_value() && request_.echo) {
      Fail("echo", "not with logprobs: those of the prompt are not computed");
    }
    const int64_t sequences = int64_t{request_.generation.prompts_size()} * best_of;
    if (sequences > limits_.max_sequences) {
      Fail(best_of_.has_value() ? "best_of" : "n", "prompts times samples are ", sequences,
           " sequences, expected at most ", limits_.max_sequences);
    }
    parameters().set_n(best_of);
    parameters().set_logprobs(request_.best_of || request_.logprobs.has_value());
    if (request_.logprobs.value_or(0) > 0) parameters().set_top_logprobs(*request_.logprobs);
  }

  const std::string& model_name_;
  const RequestLimits& limits_;
  CompletionRequest request_;
  std::optional<std::string> model_;
  std::optional<int> best_of_;
  bool has_prompt_ = false;
  bool has_stream_options_ = false;
  std::string name_;  // of the field that is being read
  std::vector<std::string> problems_;
};

// The words of photon.v1 in those of a completion request.
absl::Status InFieldsOfCompletion(const absl::Status& error, bool is_prompt_list) {
  if (error.ok()) return error;
  std::string message = absl::StrReplaceAll(std::string(error.message()),
                                            {{"parameters.sampling.", ""},
                                             {"parameters.stop.strings", "stop"},
                                             {"parameters.stop.token_ids", "stop_token_ids"},
                                             {"parameters.top_logprobs", "logprobs"},
                                             {"parameters.", ""},
                                             {"].token_ids.ids[", "]["},
                                             {"GENERATION_MODE_EXACT", "exact"},
                                             {"GENERATION_MODE_HIERGEN", "hiergen"},
                                             {"GENERATION_MODE_RECGEN", "recgen"},
                                             {"prompts[", "prompt["}});
  if (!is_prompt_list) absl::StrReplaceAll({{"prompt[0]", "prompt"}}, &message);
  return absl::Status(error.code(), message);
}

}  // namespace

absl::StatusOr<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                         const std::string& model_name,
                                                         const RequestLimits& limits) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return Reader(model_name, limits).Read(json);
}

absl::StatusOr<std::vector<absl::StatusOr<Query>>> CompletionQueries(
    const CompletionRequest& request, const ModelFacts& model, const RequestLimits& limits,
    uint64_t seed) {
  auto queries = ParseGenerateBatchRequest(request.generation, model, limits, seed);
  if (!queries.ok()) return InFieldsOfCompletion(queries.status(), request.is_prompt_list);
  // A completion succeeds or fails as a whole.
  for (const absl::StatusOr<Query>& query : *queries) {
    if (!query.ok()) return InFieldsOfCompletion(query.status(), request.is_prompt_list);
  }
  return queries;
}

}  // namespace photon
