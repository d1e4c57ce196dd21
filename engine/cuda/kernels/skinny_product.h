// y = a W^T for at most kMaxSkinnyRows rows: a lone sequence, or a few. Bound by reading W once, so
// that everything around it is folded in: the norm of the input, bias, residual and SwiGLU.
#pragma once

#include <cuda_fp8.h>

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

inline constexpr int kMaxSkinnyRows = 8;

// W [n, k] in bf16; or in e4m3, row i of it times scales[i], and k a multiple of 16. e4m3 is exact
// in bf16, so the inputs are what they are for bf16.
template <typename W>
struct SkinnyWeights {
  const W* data = nullptr;
  int n = 0;
  int k = 0;
  const float* scales = nullptr;  // [n], of e4m3
  const float* bias = nullptr;    // [n], or null
};

// Rows of the product's left side, k apart: bf16 as they are, or fp32 that is normalised (or, with
// `norm` null, rounded) on the way in.
struct SkinnyInput {
  const __nv_bfloat16* act = nullptr;  // [rows, k]; null: x
  const float* x = nullptr;            // [rows, k]
  const float* norm = nullptr;         // [k]
  int width = 0;                       // elements of a row that are not padding
  float eps = 0;
};

// y[rows, n] = input W^T (+ bias) (+ y with `add`).
template <typename W, typename Out>
cudaError_t LaunchSkinnyProduct(const SkinnyWeights<W>& w, const SkinnyInput& input, int rows,
                                bool add, Out* y, cudaStream_t stream);

// out[rows, n / 2] = silu(input W_gate^T) * (input W_up^T), W_gate the first n / 2 rows of W.
template <typename W>
cudaError_t LaunchSkinnyGatedProduct(const SkinnyWeights<W>& w, const SkinnyInput& input, int rows,
                                     __nv_bfloat16* out, cudaStream_t stream);

}  // namespace photon::cuda
