// Draws tokens from logits, as engine/engine.h's Sampling says and engine/cpu/sampler.h does.
//
// The kept tokens' cumulative probabilities are sums of whole numbers (weights relative to the most
// probable token in units of 2^-40), so they do not depend on the order of summation, and the k-th
// largest weight and the end of the nucleus are found by radix selection: nothing is sorted.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

// One decoding row's sampling; the fields of photon::Sampling and where the row stands.
struct RowSampling {
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;
  uint64_t seed = 0;
  uint32_t query = 0;
  uint32_t sample = 0;
  int64_t first_token = 0;  // position of the meta-context's first token in its sequence
  int32_t top_logprobs = 0;
  int32_t num_forced = 0;  // slots whose tokens are given
};

struct TokenAndLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// Which row and slot lane i of a batch is: row = i / per_row, slot = i % per_row * stride + first.
struct SlotMap {
  int per_row = 1;
  int stride = 0;
  int first = 0;
};

// Where sampled tokens go: entry row * meta_tokens + slot of each.
struct SampledOutput {
  int meta_tokens = 0;
  int top_stride = 0;                  // entries of `top` per token
  int32_t* tokens = nullptr;           // on the device
  TokenAndLogprob* sampled = nullptr;  // page-locked host memory
  TokenAndLogprob* top = nullptr;      // page-locked host memory
};

// Samples lanes first_lane .. first_lane + n - 1. Forced slots are left alone.
//   logits [n, vocab], rows `stride` apart, a multiple of four; finite
cudaError_t LaunchSampleTokens(const float* logits, int64_t stride, int vocab,
                               const RowSampling* rows, const SlotMap& slots, int first_lane, int n,
                               const SampledOutput& output, cudaStream_t stream);

}  // namespace photon::cuda
