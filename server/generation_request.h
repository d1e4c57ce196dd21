// Queries as clients ask for them, checked and with every default filled in.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "photon/v1/document.pb.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/sequence.h"
#include "server/integrator.h"
#include "server/model_facts.h"
#include "server/options.h"

namespace photon {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokens = 64;
inline constexpr float kMaxTemperature = 100.0f;

// A prompt, and the samples that are to continue it.
struct Query {
  SequenceRequest sequence;  // of sample 0; all but deadline and tenant
  std::vector<std::string> stop_strings;
  bool logprobs = false;
  int n = 1;
  std::shared_ptr<const IntegrationOptions> integration;  // null: the samples stay by themselves
};

// The readers of requests. `seed` is for requests that bring none. kInvalidArgument names every
// field that is wrong, with its limit: "parameters.sampling.top_p: expected (0, 1], got 1.5;
// prompt.token_ids.ids[3]: ...".
absl::StatusOr<Query> ParseGenerateRequest(const v1::GenerateRequest& request,
                                           const ModelFacts& model, const RequestLimits& limits,
                                           uint64_t seed);

// A query, or what is wrong with it alone, for each prompt.
absl::StatusOr<std::vector<absl::StatusOr<Query>>> ParseGenerateBatchRequest(
    const v1::GenerateBatchRequest& request, const ModelFacts& model, const RequestLimits& limits,
    uint64_t seed);

// A query, or what is wrong with it alone, for each question about `document`.
absl::StatusOr<std::vector<absl::StatusOr<Query>>> ParseAskRequest(
    const v1::AskRequest& request, std::span<const TokenId> document, const ModelFacts& model,
    const RequestLimits& limits, uint64_t seed);

// The tokens that `prompt` begins a sequence with.
absl::StatusOr<std::vector<TokenId>> PromptTokens(const v1::Prompt& prompt,
                                                  const ModelFacts& model);

// BOS, if the model has one, and the tokens of `text`.
std::vector<TokenId> EncodeFromBos(std::string_view text, const ModelFacts& model);

// Never GENERATION_MODE_UNSPECIFIED.
v1::GenerationMode ToProto(GenerationMode mode);

}  // namespace photon
