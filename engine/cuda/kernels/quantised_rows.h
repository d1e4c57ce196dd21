// Inputs of e4m3 matrix products: each row of activations scaled so that its largest element is the
// format's largest, and rounded to e4m3 ("dynamic, per token"), as the last act of the operation
// that makes the row. And the way back: adding what such a product yields to the fp32 stream.
//
// Element i of row r stands for data[r, i] * scales[r], scales[r] = max_i |value| / kE4M3Max.
// Conversion saturates and rounds to nearest, ties to even; NaN stays NaN. Widths are multiples of
// kRowElements; rows lie `width` apart.
#pragma once

#include <cuda_fp8.h>

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

inline constexpr float kE4M3Max = 448;

struct QuantisedRows {
  __nv_fp8_e4m3* data = nullptr;  // [rows, width]
  float* scales = nullptr;        // [rows]
};

// Rows of the fp32 stream, and what is added to them on the way.
struct StreamRows {
  const float* x = nullptr;              // [rows, width]
  const __nv_bfloat16* delta = nullptr;  // [rows, width], or null
  float* sum = nullptr;                  // x + delta, with `delta`; may be x
};

// out = RMSNorm(x + delta), statistics in fp32; without a weight, x + delta.
//   norm   [padded], or null
//   width  elements of a row that are not padding; rows lie Padded(width) apart
cudaError_t LaunchQuantisedRmsNorm(const StreamRows& in, const float* norm, int width, float eps,
                                   const QuantisedRows& out, int rows, cudaStream_t stream);

// out = act.   act [rows, width]
cudaError_t LaunchQuantiseRows(const __nv_bfloat16* act, int width, const QuantisedRows& out,
                               int rows, cudaStream_t stream);

// out = silu(gate) * up.   gate_up [rows, 2 * width], gates first
cudaError_t LaunchQuantisedSwiGlu(const __nv_bfloat16* gate_up, int width, const QuantisedRows& out,
                                  int rows, cudaStream_t stream);

// y = delta (+ bias) (+ y with `add`).   delta, y [rows, width]; bias [width], or null
cudaError_t LaunchAddRows(const __nv_bfloat16* delta, const float* bias, bool add, int width,
                          float* y, int rows, cudaStream_t stream);

}  // namespace photon::cuda
