#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/rms_norm.h"

namespace photon::cuda {
namespace {

constexpr int kMaxThreads = 512;

// A block owns a row, a thread every blockDim.x-th vector of four. The second read of x comes from
// the first-level cache.
template <typename Out>
__global__ void __launch_bounds__(kMaxThreads)
    RmsNorm(const float* x, int64_t x_stride, const float* weight, int width, int padded, float eps,
            Out* out, int64_t out_stride) {
  if (weight != nullptr) PrefetchBlock(weight, padded);
  AwaitPrevious();
  __shared__ float partial[kMaxThreads / kWarp];
  const float* row = x + blockIdx.x * x_stride;
  Out* to = out + blockIdx.x * out_stride;
  if (weight == nullptr) {
    for (int i = threadIdx.x * 4; i < padded; i += blockDim.x * 4) Store4(to + i, Load4(row + i));
    return;
  }
  float squares = 0;
  for (int i = threadIdx.x * 4; i < padded; i += blockDim.x * 4) {
    const float4 v = Load4(row + i);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares, partial) / width + eps);
  for (int i = threadIdx.x * 4; i < padded; i += blockDim.x * 4) {
    const float4 v = Load4(row + i), w = Load4(weight + i);
    Store4(to + i, {v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w});
  }
}

}  // namespace

template <typename Out>
cudaError_t LaunchRmsNorm(const float* x, int64_t x_stride, const float* weight, int width,
                          float eps, Out* out, int64_t out_stride, int rows, cudaStream_t stream) {
  const int padded = static_cast<int>(Padded(width));
  const unsigned warps = DivideUp(padded / 4, kWarp);
  const unsigned threads = warps * kWarp < kMaxThreads ? warps * kWarp : kMaxThreads;
  return LaunchKernel(RmsNorm<Out>, rows, threads, 0, stream, x, x_stride, weight, width, padded,
                      eps, out, out_stride);
}

template cudaError_t LaunchRmsNorm(const float*, int64_t, const float*, int, float, float*, int64_t,
                                   int, cudaStream_t);
template cudaError_t LaunchRmsNorm(const float*, int64_t, const float*, int, float, __nv_bfloat16*,
                                   int64_t, int, cudaStream_t);

}  // namespace photon::cuda
