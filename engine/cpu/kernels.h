// The arithmetic of the CPU engine, once per instruction set, chosen at run time.
//
// T is the storage type of weights, of activations that enter a matrix product, and of the cache:
// BFloat16 (products of bf16 pairs, fp32 accumulation) or float. The residual stream and every
// statistic are fp32.
//
// Each result row depends on its own input row alone, in one fixed order of operations. So a row's
// numbers are the same bits in a batch of one and in a batch of many, on the same instruction set.
#pragma once

#include <cstdint>

#include "engine/cpu/bfloat16.h"
#include "engine/types.h"

namespace photon {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// "portable", "avx2", "avx512", "avx512_bf16".
const char* IsaName(Isa isa);
// The best that this processor runs.
Isa BestIsa();
bool IsaSupported(Isa isa);

// Columns (output features) of one packed panel; see PackedMatrix.
inline constexpr int kPanelColumns = 64;

// A causal context's keys and values in one layer: position p is at
//   base + pages[p / segment_positions] * page_stride + (p % segment_positions) * 2 * kv_dim
// as [kv_dim] keys, then [kv_dim] values, kv_dim = num_kv_heads * head_dim.
template <typename T>
struct KvLayer {
  T* base = nullptr;
  const PageId* pages = nullptr;  // null: one segment at `base`
  int64_t page_stride = 0;        // elements
  int segment_positions = 1;
  int kv_dim = 0;

  // Always inlined: it must not be shared between instruction sets.
  [[gnu::always_inline]] T* at(int position) const {
    const int segment = position / segment_positions;
    const int64_t offset =
        pages == nullptr ? 0 : static_cast<int32_t>(pages[segment]) * page_stride;
    return base + offset + int64_t{position - segment * segment_positions} * 2 * kv_dim;
  }
};

// Head layout and rotation of one attention.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int rope_dims = 0;              // even; rotated dimensions at the front of each head
  const float* q_norm = nullptr;  // [head_dim], or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
};

// Function table of one instruction set.
template <typename T>
struct Kernels {
  // y[m, n] = a[m, k] * W^T (+ bias), or y += with `add`; columns of panels [panel_begin,
  // panel_end).
  //   a      rows `lda` elements apart; for BFloat16 an odd k is followed by one zero
  //   panels see PackedMatrix; bias [n] or null
  void (*gemm)(const T* a, int64_t lda, int m, const T* panels, int k, int n, int panel_begin,
               int panel_end, const float* bias, bool add, float* y, int64_t ldy);
  // The three below prepare inputs of gemm: BFloat16 outputs of odd n are followed by one zero.
  // out = x / sqrt(mean(x^2) + eps) * weight. With T = float, out may be x.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, T* out);
  // out[i] = silu(gate_up[i]) * gate_up[n + i].
  void (*swiglu)(const float* gate_up, int n, T* out);
  // Rounds to T.
  void (*convert)(const float* x, int n, T* out);
  // qkv [q heads | k heads | v heads]: normalises q and k if asked, rotates them by the angles
  // whose cosines and sines are given ([rope_dims / 2] each), leaves q in place and stores k and v.
  void (*rotate_and_store)(const AttentionShape& shape, const float* cosines, const float* sines,
                           float* qkv, T* key_value);
  // out [num_heads * head_dim] = softmax(q K^T / sqrt(head_dim)) V over positions 0 .. position;
  // an input of gemm too.
  // scores: scratch of position + 1 floats.
  void (*attend)(const AttentionShape& shape, const float* q, const KvLayer<T>& kv, int position,
                 float* scores, T* out);
  // Largest element, and the logarithm of sum(exp(x)).
  void (*log_sum_exp)(const float* x, int n, float* max, float* log_sum);
};

// `isa` must be supported by this processor.
template <typename T>
const Kernels<T>& KernelsFor(Isa isa);

}  // namespace photon
