// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, statistics in fp32; without a weight, x[r]
// rounded to Out.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

//   x       [rows, width], rows x_stride apart
//   weight  [Padded(width)], or null
//   out     [rows, width], rows out_stride apart; may be x where Out is float and the strides agree
// Strides are multiples of kRowElements.
template <typename Out>
cudaError_t LaunchRmsNorm(const float* x, int64_t x_stride, const float* weight, int width,
                          float eps, Out* out, int64_t out_stride, int rows, cudaStream_t stream);

}  // namespace photon::cuda
