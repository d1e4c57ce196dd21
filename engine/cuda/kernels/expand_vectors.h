// The converter's way out: h += depthwise convolution of h along the vectors (kernel 3, zero
// padding 1), then RMSNorm of each vector.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

//   h     [groups, Padded(num_vectors * width)], the vectors of a group without gaps
//   conv  [width, 3], or null: no convolution;  norm [width], or null: no norm
//   out   [groups * num_vectors, Padded(width)]
cudaError_t LaunchExpandVectors(const float* h, int num_vectors, int width, const float* conv,
                                const float* norm, float eps, float* out, int groups,
                                cudaStream_t stream);

}  // namespace photon::cuda
