#include "server/generation_request.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "scheduler/scheduler.h"

namespace photon {
namespace {

// Collects what is wrong with a request.
class Problems {
 public:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    // A hostile request cannot make the answer long.
    if (problems_.size() < 8) problems_.push_back(absl::StrCat(parts...));
  }

  absl::Status ToStatus() const {
    if (problems_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(problems_, "; "));
  }

 private:
  std::vector<std::string> problems_;
};

std::optional<GenerationMode> FromProto(v1::GenerationMode mode, GenerationMode default_mode) {
  switch (mode) {
    case v1::GENERATION_MODE_UNSPECIFIED:
      return default_mode;
    case v1::GENERATION_MODE_EXACT:
      return GenerationMode::kExact;
    case v1::GENERATION_MODE_HIERGEN:
      return GenerationMode::kHierGen;
    case v1::GENERATION_MODE_RECGEN:
      return GenerationMode::kRecGen;
    default:
      return std::nullopt;
  }
}

std::string ModeName(GenerationMode mode) {
  return v1::GenerationMode_Name(ToProto(mode));
}

GenerationMode ParseMode(v1::GenerationMode wire_mode, const ModelFacts& model,
                         Problems& problems) {
  const std::optional<GenerationMode> mode = FromProto(wire_mode, model.default_mode);
  const std::vector<GenerationMode>& allowed = model.shape.modes;
  if (mode.has_value() && std::find(allowed.begin(), allowed.end(), *mode) != allowed.end()) {
    return *mode;
  }
  std::vector<std::string> names;
  for (GenerationMode allowed_mode : allowed) names.push_back(ModeName(allowed_mode));
  problems.Add("parameters.mode: this model allows ", absl::StrJoin(names, ", "), "; got ",
               mode.has_value() ? ModeName(*mode) : absl::StrCat(static_cast<int>(wire_mode)));
  return model.default_mode;
}

bool CheckToken(TokenId token, const std::string& field, const ModelFacts& model,
                Problems& problems) {
  const int vocab_size = model.shape.vocab_size;
  if (token >= 0 && token < vocab_size) return true;
  problems.Add(field, ": expected [0, ", vocab_size, "), got ", token);
  return false;
}

// Ids of `prompt` if it has any.
std::optional<std::vector<TokenId>> ParseTokenIds(const v1::Prompt& prompt,
                                                  const std::string& field, const ModelFacts& model,
                                                  Problems& problems) {
  if (prompt.token_ids().ids().empty()) return std::nullopt;
  const auto& ids = prompt.token_ids().ids();
  for (int i = 0; i < ids.size(); ++i) {
    if (!CheckToken(ids[i], absl::StrCat(field, ".token_ids.ids[", i, "]"), model, problems)) break;
  }
  return std::vector<TokenId>(ids.begin(), ids.end());
}

// The tokens that a text begins a sequence with, or, without any, BOS.
std::vector<TokenId> ParsePrompt(const v1::Prompt& prompt, const std::string& field,
                                 const ModelFacts& model, Problems& problems) {
  if (auto ids = ParseTokenIds(prompt, field, model, problems)) return *std::move(ids);
  return EncodeFromBos(prompt.text(), model);
}

// Puts a prompt into a query whose parameters are there, and checks that both fit the context.
void SetPrompt(std::vector<TokenId> tokens, const std::string& field,
               const v1::GenerationParameters& parameters, const ModelFacts& model, Query& query,
               Problems& problems) {
  const int64_t limit = MaxSequenceTokens(model.shape);
  const auto prompt_tokens = static_cast<int64_t>(tokens.size());
  const int64_t room = limit - prompt_tokens;
  query.sequence.prompt = std::move(tokens);
  if (room < 1) {
    problems.Add(field, ": has ", prompt_tokens, " tokens, expected at most ", limit - 1,
                 ": the context has ", limit, " and the output needs one");
  }
  if (!parameters.has_max_tokens()) {
    query.sequence.max_tokens = static_cast<int>(
        std::clamp<int64_t>(model.default_max_tokens, 1, std::max<int64_t>(room, 1)));
  } else if (room >= 1 && parameters.max_tokens() > room) {
    problems.Add("parameters.max_tokens: expected at most ", room, ", got ",
                 parameters.max_tokens(), ": the prompt has ", prompt_tokens,
                 " tokens and the context ", limit);
  }
}

Sampling ParseSampling(const v1::GenerationParameters& parameters, uint64_t seed,
                       Problems& problems) {
  const v1::SamplingParameters& wire = parameters.sampling();
  Sampling sampling;
  sampling.seed = wire.has_seed() ? wire.seed() : seed;
  // Comparisons are false for NaN.
  if (wire.has_temperature()) {
    sampling.temperature = wire.temperature();
    if (!(sampling.temperature >= 0 && sampling.temperature <= kMaxTemperature)) {
      problems.Add("parameters.sampling.temperature: expected [0, ", kMaxTemperature, "], got ",
                   sampling.temperature);
    }
  }
  if (wire.has_top_k()) {
    sampling.top_k = wire.top_k();
    if (sampling.top_k < 0) {
      problems.Add("parameters.sampling.top_k: expected 0 or more, got ", sampling.top_k);
    }
  }
  if (wire.has_top_p()) {
    sampling.top_p = wire.top_p();
    if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
      problems.Add("parameters.sampling.top_p: expected (0, 1], got ", sampling.top_p);
    }
  }
  if (wire.has_min_p()) {
    sampling.min_p = wire.min_p();
    if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
      problems.Add("parameters.sampling.min_p: expected [0, 1], got ", sampling.min_p);
    }
  }
  sampling.top_logprobs = parameters.top_logprobs();
  if (sampling.top_logprobs < 0 || sampling.top_logprobs > kMaxTopLogprobs) {
    problems.Add("parameters.top_logprobs: expected [0, ", kMaxTopLogprobs, "], got ",
                 sampling.top_logprobs);
  }
  return sampling;
}

void ParseStop(const v1::StopConditions& stop, const ModelFacts& model, Query& query,
               Problems& problems) {
  if (stop.strings_size() > kMaxStopStrings) {
    problems.Add("parameters.stop.strings: expected at most ", kMaxStopStrings, ", got ",
                 stop.strings_size());
  }
  for (int i = 0; i < stop.strings_size() && i < kMaxStopStrings; ++i) {
    const size_t bytes = stop.strings(i).size();
    if (bytes < 1 || bytes > static_cast<size_t>(kMaxStopStringBytes)) {
      problems.Add("parameters.stop.strings[", i, "]: expected 1 to ", kMaxStopStringBytes,
                   " bytes, got ", bytes);
    }
  }
  query.stop_strings.assign(stop.strings().begin(), stop.strings().end());

  if (stop.token_ids_size() > kMaxStopTokens) {
    problems.Add("parameters.stop.token_ids: expected at most ", kMaxStopTokens, ", got ",
                 stop.token_ids_size());
  }
  for (int i = 0; i < stop.token_ids_size() && i < kMaxStopTokens; ++i) {
    CheckToken(stop.token_ids(i), absl::StrCat("parameters.stop.token_ids[", i, "]"), model,
               problems);
  }
  std::vector<TokenId>& stop_tokens = query.sequence.stop_tokens;
  if (!stop.ignore_eos()) stop_tokens = model.config.eos_token_ids;
  stop_tokens.insert(stop_tokens.end(), stop.token_ids().begin(), stop.token_ids().end());
}

std::optional<Priority> FromProto(v1::Priority priority) {
  switch (priority) {
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_NORMAL:
      return Priority::kNormal;
    case v1::PRIORITY_LOW:
      return Priority::kLow;
    case v1::PRIORITY_HIGH:
      return Priority::kHigh;
    default:
      return std::nullopt;
  }
}

// `field` is part of the error.
std::optional<AnswerExtractor> ExtractorOr(absl::StatusOr<AnswerExtractor> extractor,
                                           const std::string& field, Problems& problems) {
  if (extractor.ok()) return *std::move(extractor);
  problems.Add(field, ": ", std::string(extractor.status().message()));
  return std::nullopt;
}

std::optional<AnswerExtractor> ParseExtractor(const v1::MajorityVote& vote, Problems& problems) {
  const std::string field = "parameters.integration.majority_vote";
  switch (vote.answer_source()) {
    case v1::ANSWER_SOURCE_LAST_NUMBER:
      return AnswerExtractor::LastNumber();
    case v1::ANSWER_SOURCE_REGULAR_EXPRESSION:
      return ExtractorOr(AnswerExtractor::RegularExpression(vote.regular_expression()),
                         field + ".regular_expression", problems);
    case v1::ANSWER_SOURCE_JSON_POINTER:
      return ExtractorOr(AnswerExtractor::JsonPointer(vote.json_pointer()), field + ".json_pointer",
                         problems);
    case v1::ANSWER_SOURCE_WHOLE_TEXT:
      return AnswerExtractor::WholeText();
    default:
      problems.Add(field, ".answer_source: expected one of AnswerSource, got ",
                   static_cast<int>(vote.answer_source()));
      return std::nullopt;
  }
}

std::shared_ptr<const IntegrationOptions> ParseIntegration(const v1::Integration& integration,
                                                           Problems& problems) {
  auto options = std::make_shared<IntegrationOptions>();
  options->omit_samples = integration.omit_samples();
  switch (integration.method_case()) {
    case v1::Integration::kMajorityVote:
      options->extractor = ParseExtractor(integration.majority_vote(), problems);
      options->run_all_samples = integration.majority_vote().run_all_samples();
      break;
    case v1::Integration::kBestOfN:
      break;
    case v1::Integration::METHOD_NOT_SET:
      problems.Add("parameters.integration: expected majority_vote or best_of_n");
  }
  return options;
}

// A query without a prompt.
Query ParseParameters(const v1::GenerationParameters& parameters, const ModelFacts& model,
                      const RequestLimits& limits, uint64_t seed, Problems& problems) {
  Query query;
  SequenceRequest& sequence = query.sequence;
  sequence.mode = ParseMode(parameters.mode(), model, problems);
  if (parameters.has_max_tokens()) {
    sequence.max_tokens = parameters.max_tokens();
    if (sequence.max_tokens < 1) {
      problems.Add("parameters.max_tokens: expected at least 1, got ", sequence.max_tokens);
    }
  }
  sequence.sampling = ParseSampling(parameters, seed, problems);
  query.logprobs = parameters.logprobs() || sequence.sampling.top_logprobs > 0;
  ParseStop(parameters.stop(), model, query, problems);
  if (parameters.has_n()) {
    query.n = parameters.n();
    if (query.n < 1 || query.n > limits.max_samples) {
      problems.Add("parameters.n: expected 1 to ", limits.max_samples, ", got ", query.n);
    }
  }
  if (const auto priority = FromProto(parameters.priority())) {
    sequence.priority = *priority;
  } else {
    problems.Add("parameters.priority: expected one of Priority, got ",
                 static_cast<int>(parameters.priority()));
  }
  if (parameters.has_integration()) {
    query.integration = ParseIntegration(parameters.integration(), problems);
  }
  return query;
}

// What several queries of a call are made of.
struct Parts {
  const google::protobuf::RepeatedPtrField<v1::Prompt>& prompts;
  const char* field;  // where they are
  int max_prompts;
  const v1::GenerationParameters& parameters;
};

// One query for each prompt, whose tokens `tokens_of` gives.
template <typename TokensOf>
absl::StatusOr<std::vector<absl::StatusOr<Query>>> ParseQueries(const Parts& parts,
                                                                const ModelFacts& model,
                                                                const RequestLimits& limits,
                                                                uint64_t seed,
                                                                const TokensOf& tokens_of) {
  Problems problems;
  const Query common = ParseParameters(parts.parameters, model, limits, seed, problems);
  const int count = parts.prompts.size();
  if (count < 1 || count > parts.max_prompts) {
    problems.Add(parts.field, ": expected 1 to ", parts.max_prompts, ", got ", count);
  } else if (int64_t{count} * common.n > limits.max_sequences) {
    problems.Add(parts.field, ": ", count, " times an n of ", common.n, " are ",
                 int64_t{count} * common.n, " sequences, expected at most ", limits.max_sequences);
  }
  if (absl::Status status = problems.ToStatus(); !status.ok()) return status;

  std::vector<absl::StatusOr<Query>> queries;
  queries.reserve(count);
  for (int i = 0; i < count; ++i) {
    const std::string field = absl::StrCat(parts.field, "[", i, "]");
    Problems own;
    Query query = common;
    query.sequence.sampling.query = static_cast<uint32_t>(i);
    SetPrompt(tokens_of(parts.prompts[i], field, own), field, parts.parameters, model, query, own);
    if (absl::Status status = own.ToStatus(); !status.ok()) {
      queries.emplace_back(std::move(status));
    } else {
      queries.emplace_back(std::move(query));
    }
  }
  return queries;
}

}  // namespace

v1::GenerationMode ToProto(GenerationMode mode) {
  switch (mode) {
    case GenerationMode::kExact:
      return v1::GENERATION_MODE_EXACT;
    case GenerationMode::kHierGen:
      return v1::GENERATION_MODE_HIERGEN;
    case GenerationMode::kRecGen:
      return v1::GENERATION_MODE_RECGEN;
  }
  return v1::GENERATION_MODE_UNSPECIFIED;
}

std::vector<TokenId> EncodeFromBos(std::string_view text, const ModelFacts& model) {
  std::vector<TokenId> tokens = model.tokenizer->Encode(text);
  if (model.config.bos_token_id.has_value()) {
    tokens.insert(tokens.begin(), *model.config.bos_token_id);
  }
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> PromptTokens(const v1::Prompt& prompt,
                                                  const ModelFacts& model) {
  Problems problems;
  std::vector<TokenId> tokens = ParsePrompt(prompt, "prompt", model, problems);
  if (absl::Status status = problems.ToStatus(); !status.ok()) return status;
  return tokens;
}

absl::StatusOr<Query> ParseGenerateRequest(const v1::GenerateRequest& request,
                                           const ModelFacts& model, const RequestLimits& limits,
                                           uint64_t seed) {
  Problems problems;
  const v1::GenerationParameters& parameters = request.parameters();
  Query query = ParseParameters(parameters, model, limits, seed, problems);
  if (query.n <= limits.max_samples && query.n > limits.max_sequences) {
    problems.Add("parameters.n: expected at most ", limits.max_sequences,
                 ", the sequences of a call, got ", query.n);
  }
  SetPrompt(ParsePrompt(request.prompt(), "prompt", model, problems), "prompt", parameters, model,
            query, problems);
  if (absl::Status status = problems.ToStatus(); !status.ok()) return status;
  return query;
}

absl::StatusOr<std::vector<absl::StatusOr<Query>>> ParseGenerateBatchRequest(
    const v1::GenerateBatchRequest& request, const ModelFacts& model, const RequestLimits& limits,
    uint64_t seed) {
  const Parts parts = {request.prompts(), "prompts", limits.max_prompts, request.parameters()};
  return ParseQueries(parts, model, limits, seed,
                      [&](const v1::Prompt& prompt, const std::string& field, Problems& problems) {
                        return ParsePrompt(prompt, field, model, problems);
                      });
}

absl::StatusOr<std::vector<absl::StatusOr<Query>>> ParseAskRequest(
    const v1::AskRequest& request, std::span<const TokenId> document, const ModelFacts& model,
    const RequestLimits& limits, uint64_t seed) {
  const Parts parts = {request.questions(), "questions", limits.max_questions,
                       request.parameters()};
  return ParseQueries(
      parts, model, limits, seed,
      [&](const v1::Prompt& question, const std::string& field, Problems& problems) {
        std::vector<TokenId> tokens(document.begin(), document.end());
        auto ids = ParseTokenIds(question, field, model, problems);
        if (!ids.has_value()) ids = model.tokenizer->EncodeContinuation(question.text());
        tokens.insert(tokens.end(), ids->begin(), ids->end());
        return tokens;
      });
}

}  // namespace photon
