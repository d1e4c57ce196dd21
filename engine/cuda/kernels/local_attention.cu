#include "engine/cuda/kernels/attention_common.cuh"
#include "engine/cuda/kernels/local_attention.h"

namespace photon::cuda {
namespace {

constexpr int kWarps = 4;  // of a block

// A warp owns one key head of one context: it alone writes these keys and reads them back, so that
// rotation, store and attention need no barrier wider than the warp.
template <typename T, int kVec, int kChunks>
__global__ void __launch_bounds__(kWarps* kWarp)
    LocalAttention(AttentionShape shape, const T* qkv, int64_t qkv_stride, KvLayer<T> kv, int first,
                   int count, int contexts, int group, T* out, int64_t out_stride) {
  const int half = shape.rope_dims / 2;
  PrefetchBlock(shape.cosines + int64_t{first} * half, count * half);
  PrefetchBlock(shape.sines + int64_t{first} * half, count * half);
  AwaitPrevious();
  float* staging = DynamicShared<float>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t unit = int64_t{blockIdx.x} * kWarps + warp;
  const int64_t context = unit / shape.num_kv_heads;
  const int kv_head = static_cast<int>(unit % shape.num_kv_heads);
  if (context >= contexts) return;
  float* staged = staging + warp * shape.head_dim;
  T* cells = kv.base + context * kv.stride;

  // What the context has already is on its way while its next keys are prepared: first and last
  // byte of each key and value, a lane each.
  for (int p = lane / 4; p < first; p += kWarp / 4) {
    const T* head = cells + (int64_t{p} * 2 + lane % 2) * kv.kv_dim + kv_head * shape.head_dim;
    Prefetch(head + (lane % 4 < 2 ? 0 : shape.head_dim - 1));
  }
  for (int t = 0; t < count; ++t) {
    const int position = first + t;
    StoreKeyValue(shape, qkv + (context * count + t) * qkv_stride, kv_head, position, staged,
                  cells + int64_t{position} * 2 * kv.kv_dim);
  }
  // StoreKeyValue ends with a barrier: the warp's lanes see each other's keys and values.

  const int slot = lane % group, groups = kWarp / group;
  const int queries_per_kv = shape.num_heads / shape.num_kv_heads;
  for (int q = 0; q < queries_per_kv; ++q) {
    const int head = kv_head * queries_per_kv + q;
    for (int t = 0; t < count; ++t) {
      const int position = first + t;
      const int64_t row = context * count + t;
      StageHead(qkv + row * qkv_stride + head * shape.head_dim, shape.q_norm, shape.norm_eps,
                shape.head_dim, staged);
      const auto query = RotatedQuery<T, kVec, kChunks>(staged, shape, position, slot, group);
      __syncwarp();  // `staged` may be written again
      Attended<T, kVec, kChunks> attended;
      AttendTo(query, static_cast<const T*>(cells) + kv_head * shape.head_dim, kv.kv_dim, 0, groups,
               position + 1, shape.head_dim, group, attended);
      attended.MergeGroups(group);
      T* to = out + row * out_stride;
      if (lane < group) {
        attended.values.Store(to + head * shape.head_dim, shape.head_dim, slot, group,
                              1.0f / attended.sum);
      }
      if (head == shape.num_heads - 1) ZeroPadding(shape, to);
    }
  }
}

template <typename T, int kVec, int kChunks>
cudaError_t Launch(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                   const RowPositions& rows, int contexts, T* out, cudaStream_t stream) {
  const int64_t q_dim = int64_t{shape.num_heads} * shape.head_dim;
  const int64_t units = int64_t{contexts} * shape.num_kv_heads;
  const int shared_bytes = kWarps * shape.head_dim * static_cast<int>(sizeof(float));
  return LaunchKernel(LocalAttention<T, kVec, kChunks>, DivideUp(units, kWarps), kWarps * kWarp,
                      shared_bytes, stream, shape, qkv, Padded(q_dim + 2 * kv.kv_dim), kv,
                      rows.first, rows.count, contexts, GroupLanes(shape.head_dim, kVec), out,
                      Padded(q_dim));
}

}  // namespace

template <typename T>
cudaError_t LaunchLocalAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int contexts, T* out,
                                 cudaStream_t stream) {
  if (shape.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  const auto launch = shape.head_dim % 4 != 0       ? Launch<T, 1, kMaxHeadDim / kWarp>
                      : shape.head_dim <= 4 * kWarp ? Launch<T, 4, 1>
                                                    : Launch<T, 4, kMaxHeadDim / (4 * kWarp)>;
  return launch(shape, qkv, kv, rows, contexts, out, stream);
}

template cudaError_t LaunchLocalAttention(const AttentionShape&, const float*,
                                          const KvLayer<float>&, const RowPositions&, int, float*,
                                          cudaStream_t);
template cudaError_t LaunchLocalAttention(const AttentionShape&, const __nv_bfloat16*,
                                          const KvLayer<__nv_bfloat16>&, const RowPositions&, int,
                                          __nv_bfloat16*, cudaStream_t);

}  // namespace photon::cuda
