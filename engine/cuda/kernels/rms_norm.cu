#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/rms_norm.h"

namespace photon::cuda {
namespace {

constexpr int kMaxThreads = 512;

// Vectors of four that a thread keeps between their squares and their scale, and of the weight:
// of rows of up to 8,192 all is read once and together, what is beyond twice.
constexpr int kHeld = 4;

// A block owns a row, a thread every blockDim.x-th vector of four.
template <typename Out>
__global__ void __launch_bounds__(kMaxThreads)
    RmsNorm(const float* x, int64_t x_stride, const float* weight, int width, int padded, float eps,
            Out* out, int64_t out_stride) {
  __shared__ float partial[kMaxThreads / kWarp];
  const float* row = x + blockIdx.x * x_stride;
  Out* to = out + blockIdx.x * out_stride;
  const int first = threadIdx.x * 4, stride = blockDim.x * 4;
  float4 held[kHeld], weights[kHeld] = {};
  const auto load = [&](const float* from, float4(&vectors)[kHeld]) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int i = first + j * stride;
      vectors[j] = {0, 0, 0, 0};
      if (i < padded) vectors[j] = Load4(from + i);
    }
  };
  if (weight != nullptr) load(weight, weights);
  AwaitPrevious();
  load(row, held);
  float scale = 1;
  if (weight != nullptr) {
    float squares = 0;
    const auto add = [&](float4 v) { squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) add(held[j]);
    for (int i = first + kHeld * stride; i < padded; i += stride) add(Load4(row + i));
    scale = 1.0f / sqrtf(BlockSum(squares, partial) / width + eps);
  }
  const auto store = [&](int i, float4 v, float4 w) {
    if (weight != nullptr) {
      v = {v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w};
    }
    Store4(to + i, v);
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * stride;
    if (i < padded) store(i, held[j], weights[j]);
  }
  for (int i = first + kHeld * stride; i < padded; i += stride) {
    store(i, Load4(row + i), weight == nullptr ? float4{} : Load4(weight + i));
  }
}

}  // namespace

template <typename Out>
cudaError_t LaunchRmsNorm(const float* x, int64_t x_stride, const float* weight, int width,
                          float eps, Out* out, int64_t out_stride, int rows, cudaStream_t stream) {
  const int padded = static_cast<int>(Padded(width));
  const unsigned threads = DivideUp(padded, 4 * kHeld * kWarp) * kWarp;
  return LaunchKernel(RmsNorm<Out>, rows, threads < kMaxThreads ? threads : kMaxThreads, 0, stream,
                      x, x_stride, weight, width, padded, eps, out, out_stride);
}

template cudaError_t LaunchRmsNorm(const float*, int64_t, const float*, int, float, float*, int64_t,
                                   int, cudaStream_t);
template cudaError_t LaunchRmsNorm(const float*, int64_t, const float*, int, float, __nv_bfloat16*,
                                   int64_t, int, cudaStream_t);

}  // namespace photon::cuda
