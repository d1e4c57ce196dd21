// Choosing a token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cpu/kernels.h"
#include "engine/engine.h"

namespace photon {

struct SampledLogits {
  TokenId token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // top_logprobs of them, the most probable first
};

// Draws one token as `sampling` says for the token at `position`. The draw u in [0, 1) takes the
// first token, in order of ids, at which the kept tokens' cumulative probability exceeds u.
//   logits  [vocab_size], finite
template <typename T>
SampledLogits SampleToken(const Kernels<T>& kernels, std::span<const float> logits,
                          const Sampling& sampling, int64_t position);

}  // namespace photon
