#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/expand_vectors.h"

namespace photon::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float Convolved(const float* vectors, int num_vectors, int width, const float* conv,
                           int v, int d) {
  const float here = vectors[v * width + d];
  if (conv == nullptr) return here;
  const float before = v > 0 ? vectors[(v - 1) * width + d] : 0.0f;
  const float after = v + 1 < num_vectors ? vectors[(v + 1) * width + d] : 0.0f;
  return here + conv[d * 3] * before + conv[d * 3 + 1] * here + conv[d * 3 + 2] * after;
}

// A block owns one vector, a thread every kThreads-th element.
__global__ void __launch_bounds__(kThreads)
    ExpandVectors(const float* h, int num_vectors, int width, const float* conv, const float* norm,
                  float eps, float* out) {
  AwaitPrevious();
  __shared__ float partial[kThreads / kWarp];
  const int v = blockIdx.x % num_vectors;
  const float* vectors = h + blockIdx.x / num_vectors * Padded(int64_t{num_vectors} * width);
  const int padded = static_cast<int>(Padded(width));
  float scale = 1;
  if (norm != nullptr) {
    float squares = 0;
    for (int d = threadIdx.x; d < width; d += kThreads) {
      const float value = Convolved(vectors, num_vectors, width, conv, v, d);
      squares += value * value;
    }
    scale = 1.0f / sqrtf(BlockSum(squares, partial) / width + eps);
  }
  float* to = out + int64_t{blockIdx.x} * padded;
  for (int d = threadIdx.x; d < padded; d += kThreads) {
    float value = 0;
    if (d < width) {
      value = Convolved(vectors, num_vectors, width, conv, v, d) * scale;
      if (norm != nullptr) value *= norm[d];
    }
    to[d] = value;
  }
}

}  // namespace

cudaError_t LaunchExpandVectors(const float* h, int num_vectors, int width, const float* conv,
                                const float* norm, float eps, float* out, int groups,
                                cudaStream_t stream) {
  return LaunchKernel(ExpandVectors, groups * num_vectors, kThreads, 0, stream, h, num_vectors,
                      width, conv, norm, eps, out);
}

}  // namespace photon::cuda
