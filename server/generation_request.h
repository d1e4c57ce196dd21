// A generation as clients ask for it, checked and with every default filled in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/sequence.h"
#include "server/model_facts.h"

namespace photon {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokens = 64;
inline constexpr float kMaxTemperature = 100.0f;

struct Generation {
  SequenceRequest sequence;  // all but the deadline
  std::vector<std::string> stop_strings;
  std::vector<TokenId> stop_tokens;  // the model's own among them, unless they are ignored
  bool logprobs = false;
};

// Reads `request`. `seed` is for requests that bring none.
//
// kInvalidArgument names every field that is wrong, with its limit:
// "parameters.sampling.top_p: expected (0, 1], got 1.5; prompt.token_ids.ids[3]: ...".
absl::StatusOr<Generation> ParseGenerateRequest(const v1::GenerateRequest& request,
                                                const ModelFacts& model, uint64_t seed);

// Never GENERATION_MODE_UNSPECIFIED.
v1::GenerationMode ToProto(GenerationMode mode);

}  // namespace photon
