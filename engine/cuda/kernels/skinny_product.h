// y = a W^T for at most kMaxSkinnyRows rows: a lone sequence, or a few. Bound by reading W once, so
// that everything around it is folded in: the norm of the input, bias, residual and SwiGLU.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

inline constexpr int kMaxSkinnyRows = 8;

// Rows of the product's left side, k apart: bf16 as they are, or fp32 that is normalised (or, with
// `norm` null, rounded) on the way in.
struct SkinnyInput {
  const __nv_bfloat16* act = nullptr;  // [rows, k]; null: x
  const float* x = nullptr;            // [rows, k]
  const float* norm = nullptr;         // [k]
  int width = 0;                       // elements of a row that are not padding
  float eps = 0;
};

// y[rows, n] = input W^T (+ bias) (+ y with `add`).   w [n, k], bias [n] or null
template <typename Out>
cudaError_t LaunchSkinnyProduct(const __nv_bfloat16* w, int n, int k, const float* bias,
                                const SkinnyInput& input, int rows, bool add, Out* y,
                                cudaStream_t stream);

// out[rows, n / 2] = silu(input W_gate^T) * (input W_up^T), W_gate the first n / 2 rows of `w`.
cudaError_t LaunchSkinnyGatedProduct(const __nv_bfloat16* w, int n, int k, const SkinnyInput& input,
                                     int rows, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace photon::cuda
