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

std::vector<TokenId> ParsePrompt(const v1::Prompt& prompt, const ModelFacts& model,
                                 Problems& problems) {
  std::vector<TokenId> tokens;
  if (prompt.has_token_ids() && !prompt.token_ids().ids().empty()) {
    const auto& ids = prompt.token_ids().ids();
    for (int i = 0; i < ids.size(); ++i) {
      if (!CheckToken(ids[i], absl::StrCat("prompt.token_ids.ids[", i, "]"), model, problems)) {
        break;
      }
    }
    tokens.assign(ids.begin(), ids.end());
  } else {
    tokens = model.tokenizer->Encode(prompt.text());
    if (model.config.bos_token_id.has_value()) {
      tokens.insert(tokens.begin(), *model.config.bos_token_id);
    }
  }
  const int limit = MaxSequenceTokens(model.shape);
  if (static_cast<int64_t>(tokens.size()) >= limit) {
    problems.Add("prompt: has ", tokens.size(), " tokens, expected at most ", limit - 1,
                 ": the context has ", limit, " and the output needs one");
  }
  return tokens;
}

int ParseMaxTokens(const v1::GenerationParameters& parameters, int64_t prompt_tokens,
                   const ModelFacts& model, Problems& problems) {
  const int64_t limit = MaxSequenceTokens(model.shape);
  const int64_t room = limit - prompt_tokens;
  if (!parameters.has_max_tokens()) {
    return static_cast<int>(
        std::clamp<int64_t>(model.default_max_tokens, 1, std::max<int64_t>(room, 1)));
  }
  const int max_tokens = parameters.max_tokens();
  if (max_tokens < 1) {
    problems.Add("parameters.max_tokens: expected at least 1, got ", max_tokens);
  } else if (room >= 1 && max_tokens > room) {
    problems.Add("parameters.max_tokens: expected at most ", room, ", got ", max_tokens,
                 ": the prompt has ", prompt_tokens, " tokens and the context ", limit);
  }
  return max_tokens;
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

void ParseStop(const v1::StopConditions& stop, const ModelFacts& model, Generation& generation,
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
  generation.stop_strings.assign(stop.strings().begin(), stop.strings().end());

  if (stop.token_ids_size() > kMaxStopTokens) {
    problems.Add("parameters.stop.token_ids: expected at most ", kMaxStopTokens, ", got ",
                 stop.token_ids_size());
  }
  for (int i = 0; i < stop.token_ids_size() && i < kMaxStopTokens; ++i) {
    CheckToken(stop.token_ids(i), absl::StrCat("parameters.stop.token_ids[", i, "]"), model,
               problems);
  }
  if (!stop.ignore_eos()) generation.stop_tokens = model.config.eos_token_ids;
  generation.stop_tokens.insert(generation.stop_tokens.end(), stop.token_ids().begin(),
                                stop.token_ids().end());
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

absl::StatusOr<Generation> ParseGenerateRequest(const v1::GenerateRequest& request,
                                                const ModelFacts& model, uint64_t seed) {
  Problems problems;
  const v1::GenerationParameters& parameters = request.parameters();
  Generation generation;
  SequenceRequest& sequence = generation.sequence;
  sequence.mode = ParseMode(parameters.mode(), model, problems);
  sequence.prompt = ParsePrompt(request.prompt(), model, problems);
  sequence.max_tokens =
      ParseMaxTokens(parameters, static_cast<int64_t>(sequence.prompt.size()), model, problems);
  sequence.sampling = ParseSampling(parameters, seed, problems);
  generation.logprobs = parameters.logprobs() || sequence.sampling.top_logprobs > 0;
  ParseStop(parameters.stop(), model, generation, problems);
  if (absl::Status status = problems.ToStatus(); !status.ok()) return status;
  return generation;
}

}  // namespace photon
