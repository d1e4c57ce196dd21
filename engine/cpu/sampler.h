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

// A token and its probability relative to the most probable one.
struct Candidate {
  TokenId token = 0;
  float weight = 0;
};

// Lists that sampling fills; kept by a thread, so that it does not allocate them for each token.
struct SamplerScratch {
  std::vector<Candidate> candidates;
  std::vector<TokenLogprob> logprobs;
};

// Draws one token as `sampling` says for the token at `position`. The draw u in [0, 1) takes the
// first token, in order of ids, at which the kept tokens' cumulative probability exceeds u.
//   logits  [vocab_size], finite
template <typename T>
SampledLogits SampleToken(const Kernels<T>& kernels, std::span<const float> logits,
                          const Sampling& sampling, int64_t position, SamplerScratch& scratch);
// With lists of its own.
template <typename T>
SampledLogits SampleToken(const Kernels<T>& kernels, std::span<const float> logits,
                          const Sampling& sampling, int64_t position) {
  SamplerScratch scratch;
  return SampleToken(kernels, logits, sampling, position, scratch);
}

}  // namespace photon
