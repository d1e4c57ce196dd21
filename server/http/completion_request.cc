#include "server/http/completion_request.h"

#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/generation_fields.h"

namespace photon {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFieldNameBytes = 64;
constexpr size_t kMaxUserBytes = 512;
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

// Reads the members of a request's object into a CompletionRequest.
class Reader {
 public:
  Reader(const std::string& model_name, const RequestLimits& limits)
      : model_name_(model_name), limits_(limits), fields_(limits) {}

  absl::StatusOr<CompletionRequest> Read(const Json& body) {
    static const std::map<std::string, void (Reader::*)(const Json&), std::less<>> kFields = {
        {"model", &Reader::Model},
        {"prompt", &Reader::Prompt},
        {"best_of", &Reader::BestOf},
        {"stream", &Reader::Stream},
        {"stream_options", &Reader::StreamOptions},
        {"logprobs", &Reader::Logprobs},
        {"echo", &Reader::Echo},
        {"user", &Reader::User},
        {"presence_penalty", &Reader::PresencePenalty},
        {"frequency_penalty", &Reader::FrequencyPenalty},
        {"logit_bias", &Reader::LogitBias},
        {"suffix", &Reader::Suffix},
    };
    fields_.parameters().set_max_tokens(kDefaultCompletionTokens);
    for (const auto& [name, value] : body.items()) {
      name_ = name;
      const auto field = kFields.find(name);
      if (field != kFields.end()) {
        if (!value.is_null()) (this->*field->second)(value);
      } else if (!fields_.Read(name, value)) {
        Fail("is not a field of a completion request");
      }
    }
    CheckTogether();
    if (absl::Status status = fields_.status(); !status.ok()) return status;
    if (model_ != model_name_) {
      return absl::NotFoundError(absl::StrCat("model: this server serves ", model_name_));
    }
    request_.timeout = fields_.timeout();
    *request_.generation.mutable_parameters() = std::move(fields_.parameters());
    return std::move(request_);
  }

 private:
  // Of the field that is being read.
  template <typename... Parts>
  void Fail(const Parts&... parts) {
    fields_.Fail(name_, parts...);
  }
  void Expect(const char* what) { fields_.Expect(name_, what); }
  std::optional<bool> Boolean(const Json& value) { return fields_.Boolean(name_, value); }

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
      return Fail("expected at most ", limits_.max_prompts, " prompts, got ", value.size());
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
      if (!id.is_number_integer()) return fields_.Fail(field, "expected token ids alone");
      // Whether there is such a token is checked later: -1 stands for all that do not fit.
      const int64_t number = id.get<int64_t>();
      ids.Add(number < 0 || number > kMaxInt ? -1 : static_cast<int32_t>(number));
    }
  }

  void BestOf(const Json& value) {
    if (const auto number = fields_.Integer(name_, value, 1, limits_.max_samples)) {
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
        Fail("is not a stream option");
      }
    }
  }

  void Logprobs(const Json& value) {
    if (value.is_boolean() && !value.get<bool>()) return;
    if (const auto number = fields_.Integer(name_, value, 0, kMaxCompletionLogprobs)) {
      request_.logprobs = static_cast<int>(*number);
    }
  }
  void Echo(const Json& value) {
    if (const auto flag = Boolean(value)) request_.echo = *flag;
  }

  void User(const Json& value) {
    if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxUserBytes) {
      Expect("a string of at most 512 bytes");
    }
  }

  // Not offered: only the value that asks for nothing is taken.
  void Refuse(const char* neutral) {
    Fail("is not supported by this server; leave it out or give ", neutral);
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

  void CheckTogether() {
    if (!model_.has_value()) fields_.Fail("model", "is missing");
    if (!has_prompt_) request_.generation.add_prompts();
    if (has_stream_options_ && !request_.stream) {
      fields_.Fail("stream_options", "is allowed with stream alone");
    }
    request_.n = fields_.n();
    const int best_of = best_of_.value_or(request_.n);
    if (best_of < request_.n) {
      fields_.Fail("best_of", "expected at least n, ", request_.n, ", got ", best_of);
    }
    request_.best_of = best_of > request_.n;
    if (request_.best_of && request_.stream) {
      fields_.Fail("best_of", "cannot be streamed: which samples are best is known at the end");
    }
    if (request_.logprobs.has_value() && request_.echo) {
      fields_.Fail("echo", "not with logprobs: those of the prompt are not computed");
    }
    const int64_t sequences = int64_t{request_.generation.prompts_size()} * best_of;
    if (sequences > limits_.max_sequences) {
      fields_.Fail(best_of_.has_value() ? "best_of" : "n", "prompts times samples are ", sequences,
                   " sequences, expected at most ", limits_.max_sequences);
    }
    v1::GenerationParameters& parameters = fields_.parameters();
    parameters.set_n(best_of);
    parameters.set_logprobs(request_.best_of || request_.logprobs.has_value());
    if (request_.logprobs.value_or(0) > 0) parameters.set_top_logprobs(*request_.logprobs);
  }

  const std::string& model_name_;
  const RequestLimits& limits_;
  GenerationFields fields_;
  CompletionRequest request_;
  std::optional<std::string> model_;
  std::optional<int> best_of_;
  bool has_prompt_ = false;
  bool has_stream_options_ = false;
  std::string name_;  // of the field that is being read
};

// The words of photon.v1 in those of a completion request.
absl::Status InFieldsOfCompletion(const absl::Status& error, bool is_prompt_list) {
  const absl::Status result = InGenerationFields(error, "prompt");
  if (result.ok() || is_prompt_list) return result;
  return absl::Status(
      result.code(), absl::StrReplaceAll(std::string(result.message()), {{"prompt[0]", "prompt"}}));
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
