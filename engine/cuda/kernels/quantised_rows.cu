#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/quantised_rows.h"

namespace photon::cuda {
namespace {

constexpr int kMaxThreads = 512;
// Vectors of four that a thread keeps between finding the largest element and rounding: rows of up
// to 8,192 are computed once, what is beyond twice.
constexpr int kHeld = 4;
// Rows whose largest element is less are zero: the inverse of their scale would overflow.
constexpr float kLeastMax = 1e-30f;

__device__ float Largest(float4 v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

__device__ void StoreE4M3(__nv_fp8_e4m3* to, float4 v, float scale) {
  const unsigned low = __nv_cvt_float2_to_fp8x2(float2{v.x * scale, v.y * scale}, __NV_SATFINITE,
                                                __NV_E4M3),
                 high = __nv_cvt_float2_to_fp8x2(float2{v.z * scale, v.w * scale}, __NV_SATFINITE,
                                                 __NV_E4M3);
  *reinterpret_cast<unsigned*>(to) = low | high << 16;
}

// What multiplies a row whose largest element is `largest`; its inverse goes to `scale`.
__device__ float ScaleRow(float largest, float* scale) {
  if (threadIdx.x == 0) *scale = largest / kE4M3Max;
  return largest < kLeastMax ? 0.0f : kE4M3Max / largest;
}

// Quantises a row whose elements [i, i + 4) are at(i), with all threads of a block.
template <typename At>
__device__ void QuantiseRow(int width, At at, __nv_fp8_e4m3* to, float* scale, float* partial) {
  const int first = threadIdx.x * 4, stride = blockDim.x * 4;
  float4 held[kHeld];
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * stride;
    if (i >= width) continue;
    held[j] = at(i);
    largest = fmaxf(largest, Largest(held[j]));
  }
  for (int i = first + kHeld * stride; i < width; i += stride) {
    largest = fmaxf(largest, Largest(at(i)));
  }
  const float factor = ScaleRow(BlockMax(largest, partial), scale);
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * stride;
    if (i < width) StoreE4M3(to + i, held[j], factor);
  }
  for (int i = first + kHeld * stride; i < width; i += stride) StoreE4M3(to + i, at(i), factor);
}

// In the kernels up to here a block owns a row, and a thread every blockDim.x-th vector of four.

__global__ void __launch_bounds__(kMaxThreads)
    QuantiseRows(const __nv_bfloat16* act, int width, QuantisedRows out) {
  AwaitPrevious();
  __shared__ float partial[kMaxThreads / kWarp];
  const int64_t row = blockIdx.x;
  QuantiseRow(
      width, [&](int i) { return Load4(act + row * width + i); }, out.data + row * width,
      out.scales + row, partial);
}

__global__ void __launch_bounds__(kMaxThreads)
    QuantisedSwiGlu(const __nv_bfloat16* gate_up, int width, QuantisedRows out) {
  AwaitPrevious();
  __shared__ float partial[kMaxThreads / kWarp];
  const int64_t row = blockIdx.x;
  const __nv_bfloat16* gates = gate_up + row * 2 * width;
  const auto at = [&](int i) -> float4 {
    return GatedUp(Load4(gates + i), Load4(gates + width + i));
  };
  QuantiseRow(width, at, out.data + row * width, out.scales + row, partial);
}

// The scale of the norm is the same for a whole row, so the largest element is found along with the
// sum of squares. A thread reads again what it has read, or written, itself.
__global__ void __launch_bounds__(kMaxThreads)
    QuantisedRmsNorm(StreamRows in, const float* norm, int width, int padded, float eps,
                     QuantisedRows out) {
  if (norm != nullptr) PrefetchBlock(norm, padded);
  AwaitPrevious();
  __shared__ float partial_sums[kMaxThreads / kWarp], partial_maxima[kMaxThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* x = in.x + row * padded;
  const auto weighted = [&](float4 v, int i) -> float4 {
    if (norm == nullptr) return v;
    const float4 w = Load4(norm + i);
    return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
  };
  float squares = 0, largest = 0;
  for (int i = threadIdx.x * 4; i < padded; i += blockDim.x * 4) {
    float4 v = Load4(x + i);
    if (in.delta != nullptr) {
      const float4 added = Load4(in.delta + row * padded + i);
      v = {v.x + added.x, v.y + added.y, v.z + added.z, v.w + added.w};
      Store4(in.sum + row * padded + i, v);
    }
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    largest = fmaxf(largest, Largest(weighted(v, i)));
  }
  if (in.delta != nullptr) x = in.sum + row * padded;
  float scale = 1;
  if (norm != nullptr) scale = 1.0f / sqrtf(BlockSum(squares, partial_sums) / width + eps);
  largest = BlockMax(largest, partial_maxima) * scale;
  const float factor = ScaleRow(largest, out.scales + row) * scale;
  for (int i = threadIdx.x * 4; i < padded; i += blockDim.x * 4) {
    StoreE4M3(out.data + row * padded + i, weighted(Load4(x + i), i), factor);
  }
}

// A thread owns four elements; blockIdx.y is the row.
constexpr int kAddThreads = 256;
__global__ void __launch_bounds__(kAddThreads)
    AddRows(const __nv_bfloat16* delta, const float* bias, bool add, int width, float* y,
            int first_row) {
  AwaitPrevious();
  const int i = static_cast<int>(blockIdx.x * kAddThreads + threadIdx.x) * 4;
  if (i >= width) return;
  const int64_t at = (first_row + int64_t{blockIdx.y}) * width + i;
  float4 v = Load4(delta + at);
  const auto plus = [&](float4 more) {
    v = {v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w};
  };
  if (bias != nullptr) plus(Load4(bias + i));
  if (add) plus(Load4(y + at));
  Store4(y + at, v);
}

unsigned ThreadsFor(int width) {
  const unsigned threads = DivideUp(width / 4, kWarp) * kWarp;
  return threads < kMaxThreads ? threads : kMaxThreads;
}

}  // namespace

cudaError_t LaunchQuantisedRmsNorm(const StreamRows& in, const float* norm, int width, float eps,
                                   const QuantisedRows& out, int rows, cudaStream_t stream) {
  const int padded = static_cast<int>(Padded(width));
  return LaunchKernel(QuantisedRmsNorm, rows, ThreadsFor(padded), 0, stream, in, norm, width,
                      padded, eps, out);
}

cudaError_t LaunchQuantiseRows(const __nv_bfloat16* act, int width, const QuantisedRows& out,
                               int rows, cudaStream_t stream) {
  return LaunchKernel(QuantiseRows, rows, ThreadsFor(width), 0, stream, act, width, out);
}

cudaError_t LaunchQuantisedSwiGlu(const __nv_bfloat16* gate_up, int width, const QuantisedRows& out,
                                  int rows, cudaStream_t stream) {
  return LaunchKernel(QuantisedSwiGlu, rows, ThreadsFor(width), 0, stream, gate_up, width, out);
}

cudaError_t LaunchAddRows(const __nv_bfloat16* delta, const float* bias, bool add, int width,
                          float* y, int rows, cudaStream_t stream) {
  constexpr int kMaxGridRows = 65535;
  for (int first = 0; first < rows; first += kMaxGridRows) {
    const unsigned grid_rows = rows - first < kMaxGridRows ? rows - first : kMaxGridRows;
    const dim3 grid(DivideUp(width / 4, kAddThreads), grid_rows);
    const cudaError_t error =
        LaunchKernel(AddRows, grid, kAddThreads, 0, stream, delta, bias, add, width, y, first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace photon::cuda
