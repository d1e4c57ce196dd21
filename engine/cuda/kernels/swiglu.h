// out[r, i] = silu(gate_up[r, i]) * gate_up[r, Padded(width) + i], silu(x) = x / (1 + exp(-x)).
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

//   gate_up  [rows, 2 * Padded(width)]
//   out      [rows, Padded(width)]
template <typename T>
cudaError_t LaunchSwiGlu(const T* gate_up, int width, T* out, int rows, cudaStream_t stream);

}  // namespace photon::cuda
