#include "engine/cuda/kernels/chunk_units.h"
#include "engine/cuda/kernels/device_common.cuh"

namespace photon::cuda {
namespace {

constexpr int kThreads = 256;

// A block owns a group. First each warp sums the squares of every eighth unit into shared memory
// (chunk_size floats), then a thread writes every kThreads-th element of the concatenation.
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    ChunkUnits(const float* units, int chunk_size, int width, UnitNorm norm, const float* weight,
               float eps, Out* out) {
  AwaitPrevious();
  float* scales = DynamicShared<float>();
  const int64_t stride = Padded(width);
  const float* group = units + blockIdx.x * chunk_size * stride;
  const int concat = chunk_size * width, padded = static_cast<int>(Padded(concat));
  if (norm != UnitNorm::kNone) {
    const int lane = threadIdx.x % kWarp;
    for (int c = threadIdx.x / kWarp; c < chunk_size; c += kThreads / kWarp) {
      float squares = 0;
      for (int i = lane; i < width; i += kWarp) {
        squares += group[c * stride + i] * group[c * stride + i];
      }
      squares = WarpSum(squares);
      if (lane == 0) {
        scales[c] = norm == UnitNorm::kUnit ? 1.0f / sqrtf(squares / width + eps) : squares;
      }
    }
    __syncthreads();  // every unit's sum is there
    if (norm == UnitNorm::kConcat) {
      float squares = 0;
      for (int c = 0; c < chunk_size; ++c) squares += scales[c];
      __syncthreads();  // everybody has read the sums
      if (threadIdx.x == 0) scales[0] = 1.0f / sqrtf(squares / concat + eps);
      __syncthreads();  // the one scale is there
    }
  }
  Out* to = out + int64_t{blockIdx.x} * padded;
  for (int i = threadIdx.x; i < padded; i += kThreads) {
    float value = 0;
    if (i < concat) {
      const int c = i / width, d = i % width;
      value = group[c * stride + d];
      if (norm == UnitNorm::kUnit) value *= scales[c] * weight[d];
      if (norm == UnitNorm::kConcat) value *= scales[0] * weight[i];
    }
    to[i] = FromFloat<Out>(value);
  }
}

}  // namespace

template <typename Out>
cudaError_t LaunchChunkUnits(const float* units, int chunk_size, int width, UnitNorm norm,
                             const float* weight, float eps, Out* out, int groups,
                             cudaStream_t stream) {
  return LaunchKernel(ChunkUnits<Out>, groups, kThreads, chunk_size * sizeof(float), stream, units,
                      chunk_size, width, norm, weight, eps, out);
}

template cudaError_t LaunchChunkUnits(const float*, int, int, UnitNorm, const float*, float, float*,
                                      int, cudaStream_t);
template cudaError_t LaunchChunkUnits(const float*, int, int, UnitNorm, const float*, float,
                                      __nv_bfloat16*, int, cudaStream_t);

}  // namespace photon::cuda
