#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/swiglu.h"

namespace photon::cuda {
namespace {

constexpr int kThreads = 256;

// A thread owns eight elements; blockIdx.y is the row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    SwiGlu(const T* gate_up, int padded, T* out, int first_row) {
  AwaitPrevious();
  const int i = (blockIdx.x * kThreads + threadIdx.x) * 8;
  if (i >= padded) return;
  const int64_t row = first_row + blockIdx.y;
  const T* gates = gate_up + row * 2 * padded;
  const Float8 gate = Load8(gates + i), up = Load8(gates + padded + i);
  Store8(out + row * padded + i, {GatedUp(gate.low, up.low), GatedUp(gate.high, up.high)});
}

}  // namespace

template <typename T>
cudaError_t LaunchSwiGlu(const T* gate_up, int width, T* out, int rows, cudaStream_t stream) {
  constexpr int kMaxGridRows = 65535;
  const int padded = static_cast<int>(Padded(width));
  for (int first = 0; first < rows; first += kMaxGridRows) {
    const unsigned grid_rows = rows - first < kMaxGridRows ? rows - first : kMaxGridRows;
    const dim3 grid(DivideUp(padded / 8, kThreads), grid_rows);
    const cudaError_t error =
        LaunchKernel(SwiGlu<T>, grid, kThreads, 0, stream, gate_up, padded, out, first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template cudaError_t LaunchSwiGlu(const float*, int, float*, int, cudaStream_t);
template cudaError_t LaunchSwiGlu(const __nv_bfloat16*, int, __nv_bfloat16*, int, cudaStream_t);

}  // namespace photon::cuda
