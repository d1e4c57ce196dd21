// Bodies of POST /v1/completions, checked. docs/http.md lists every field.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "photon/v1/generation.pb.h"
#include "server/generation_request.h"
#include "server/model_facts.h"
#include "server/options.h"

namespace photon {

inline constexpr int kMaxCompletionLogprobs = 5;
inline constexpr int kDefaultCompletionTokens = 16;

struct CompletionRequest {
  // Every prompt and the parameters that they share; n is how many samples of each are generated.
  v1::GenerateBatchRequest generation;
  bool is_prompt_list = false;  // the client sent several prompts, or a list of one
  int n = 1;                    // choices of each prompt
  bool best_of = false;         // of more samples the n most probable are the choices
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
  std::optional<int> logprobs;
  std::optional<std::chrono::milliseconds> timeout;
};

// kInvalidArgument names the fields at fault and what is expected; fields that are unknown, or that
// this server does not offer, are at fault unless they ask for nothing. kNotFound: another model's.
absl::StatusOr<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                         const std::string& model_name,
                                                         const RequestLimits& limits);

// What the request asks the scheduler for. kInvalidArgument in the words of the request's fields.
absl::StatusOr<std::vector<absl::StatusOr<Query>>> CompletionQueries(
    const CompletionRequest& request, const ModelFacts& model, const RequestLimits& limits,
    uint64_t seed);

}  // namespace photon
