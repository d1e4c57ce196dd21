// How the kernels see memory. CUDA headers only: no Abseil, nothing of the engine.
//
// T is the storage type of weights, of inputs of matrix products, and of keys and values: float or
// __nv_bfloat16. The residual stream and every statistic are fp32.
//
// A matrix of activations is row-major, and its rows lie Padded(width) elements apart. What is
// beyond the width is zero, in activations and in parameters alike, so kernels and products work on
// whole vectors and need no tails.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace photon::cuda {

// Elements that rows are padded to a multiple of: 16 bytes of bf16.
inline constexpr int kRowElements = 8;

constexpr int64_t Padded(int64_t width) {
  return (width + kRowElements - 1) / kRowElements * kRowElements;
}

// One meta-context of one sequence.
struct MetaContext {
  int32_t pages = 0;  // where the page ids of its sequence start in the step's list of page ids
  int32_t index = 0;  // its number in the sequence
};

// Which position of which causal context each row of a batch is: row r is position
//   (metas ? metas[c].index * units_per_meta : 0) + first + r % count    of context c = r / count.
struct RowPositions {
  const MetaContext* metas = nullptr;  // one per context, or null: contexts live inside a step
  int units_per_meta = 0;
  int first = 0;
  int count = 1;
  // Neighbours are mostly of one sequence, in order and without gaps, as in a prefill. Changes
  // which kernel computes, not what.
  bool in_runs = false;
};

// Keys and values of one layer. Position p of context c is [kv_dim] keys, then [kv_dim] values, at
//   base + c * stride + p * 2 * kv_dim                                       without page ids, or
//   base + page * stride + (p % segment_positions) * 2 * kv_dim              where
//   page = page_ids[metas[c].pages + p / segment_positions].
template <typename T>
struct KvLayer {
  T* base = nullptr;
  const int32_t* page_ids = nullptr;
  int64_t stride = 0;         // elements from a context, or page, to the next
  int segment_positions = 1;  // positions of a page
  int kv_dim = 0;
};

// Head layout and rotation of one attention. Rotation pairs dimension i with i + rope_dims / 2.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;  // divides num_heads
  int head_dim = 0;      // at most kMaxHeadDim
  int rope_dims = 0;
  const float* q_norm = nullptr;  // [head_dim], or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
  const float* cosines = nullptr;  // [positions, rope_dims / 2]
  const float* sines = nullptr;
};

inline constexpr int kMaxHeadDim = 256;

}  // namespace photon::cuda
