// Turns the tokens of a sequence into response messages.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/model/detokenizer.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/sequence.h"
#include "server/generation_request.h"
#include "server/stop_matcher.h"

namespace photon {

// Of one sample; samples of a query start as copies of one another. For one thread at a time.
class GenerationOutput {
 public:
  // Borrows the tokenizer.
  GenerationOutput(const Query& query, const Tokenizer& tokenizer);

  // Adds `tokens`, and the text that they make certain, to `message`. Returns how many of them
  // belong to the output, if it ends with one of them: a stop token, or the one that completes a
  // stop string.
  std::optional<size_t> Append(std::span<const SampledToken> tokens, v1::GenerateResponse& message);

  // Adds the text that was held back and the result.
  void Finish(SequenceEnd end, const SequenceStats& stats, v1::GenerateResponse& message);

 private:
  std::vector<std::string> stop_strings_;
  std::vector<TokenId> stop_tokens_;
  bool logprobs_;
  uint64_t seed_;
  GenerationMode mode_;
  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  std::optional<TokenId> stop_token_;  // that ended the output
};

}  // namespace photon
