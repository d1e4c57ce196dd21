#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/rows.h"

namespace photon::cuda {
namespace {

// In every kernel here a block owns a row, and a thread every blockDim.x-th vector of four.
constexpr int kThreads = 128;

template <typename T>
__global__ void Embed(const int32_t* tokens, int group, int64_t stride, const T* table, int width,
                      float scale, float* out) {
  AwaitPrevious();
  const int row = blockIdx.x;
  const int64_t token = tokens[row / group * stride + row % group];
  const T* from = table + token * width;
  for (int i = threadIdx.x * 4; i < width; i += kThreads * 4) {
    const float4 v = Load4(from + i);
    Store4(out + int64_t{row} * width + i, {v.x * scale, v.y * scale, v.z * scale, v.w * scale});
  }
}

__device__ void CopyRow(const float* from, float* to, int width) {
  for (int i = threadIdx.x * 4; i < width; i += kThreads * 4) Store4(to + i, Load4(from + i));
}

__global__ void CopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                         int width) {
  AwaitPrevious();
  CopyRow(from + blockIdx.x * from_stride, to + blockIdx.x * to_stride, width);
}

__global__ void LoadLatents(const int32_t* pages, const float* latents, int64_t page_stride,
                            const float* start, int width, float* out) {
  AwaitPrevious();
  const int page = pages[blockIdx.x];
  CopyRow(page < 0 ? start : latents + page * page_stride, out + int64_t{blockIdx.x} * width,
          width);
}

__global__ void StoreLatents(const float* states, const int32_t* pages, float* latents,
                             int64_t page_stride, int width) {
  AwaitPrevious();
  const int page = pages[blockIdx.x];
  if (page < 0) return;
  CopyRow(states + int64_t{blockIdx.x} * width, latents + page * page_stride, width);
}

}  // namespace

template <typename T>
cudaError_t LaunchEmbed(const int32_t* tokens, int group, int64_t stride, const T* table, int width,
                        float scale, float* out, int rows, cudaStream_t stream) {
  return LaunchKernel(Embed<T>, rows, kThreads, 0, stream, tokens, group, stride, table, width,
                      scale, out);
}

template cudaError_t LaunchEmbed(const int32_t*, int, int64_t, const float*, int, float, float*,
                                 int, cudaStream_t);
template cudaError_t LaunchEmbed(const int32_t*, int, int64_t, const __nv_bfloat16*, int, float,
                                 float*, int, cudaStream_t);

cudaError_t LaunchCopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                           int width, int rows, cudaStream_t stream) {
  return LaunchKernel(CopyRows, rows, kThreads, 0, stream, from, from_stride, to, to_stride, width);
}

cudaError_t LaunchLoadLatents(const int32_t* pages, const float* latents, int64_t page_stride,
                              const float* start, int width, float* out, int rows,
                              cudaStream_t stream) {
  return LaunchKernel(LoadLatents, rows, kThreads, 0, stream, pages, latents, page_stride, start,
                      width, out);
}

cudaError_t LaunchStoreLatents(const float* states, const int32_t* pages, float* latents,
                               int64_t page_stride, int width, int rows, cudaStream_t stream) {
  return LaunchKernel(StoreLatents, rows, kThreads, 0, stream, states, pages, latents, page_stride,
                      width);
}

}  // namespace photon::cuda
