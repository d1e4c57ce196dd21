#include <type_traits>

#include "engine/cuda/kernels/attention_common.cuh"
#include "engine/cuda/kernels/paged_attention.h"
#include "engine/cuda/kernels/tiled_attention.h"

namespace photon::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
// Blocks that fill an H100: four for each of its 132 multiprocessors.
constexpr int kBlocksWanted = 528;
constexpr int kMaxSplits = 32;
// Keys below which another split costs more than it brings.
constexpr int kMinSplitKeys = 32;

// Keys of a split of a context of `length`; the last splits may have none.
__device__ int KeysOfSplit(int length, int splits) {
  const int share = (length + splits - 1) / splits;
  return share > kMinSplitKeys ? share : kMinSplitKeys;
}

// A warp owns one key head of one row.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    StoreKeysValues(AttentionShape shape, const T* qkv, int64_t qkv_stride, KvLayer<T> kv,
                    RowPositions rows, int n) {
  AwaitPrevious();
  float* staging = DynamicShared<float>();
  const int warp = threadIdx.x / kWarp;
  const int64_t unit = int64_t{blockIdx.x} * kWarps + warp;
  const int row = static_cast<int>(unit / shape.num_kv_heads);
  if (row >= n) return;
  const auto [pages, position] = PlaceOf(rows, row);
  T* cell = kv.base + CellOf(kv, pages, position);
  StoreKeyValue(shape, qkv + row * qkv_stride, static_cast<int>(unit % shape.num_kv_heads),
                position, staging + warp * shape.head_dim, cell);
}

// A block owns one split of one head of one row; its warps take the keys in turn. With one split it
// writes the row's output, else [max, sum, values[head_dim]] to `partial`.
template <typename T, int kVec, int kChunks>
__global__ void __launch_bounds__(kWarps* kWarp)
    PagedAttention(AttentionShape shape, const T* qkv, int64_t qkv_stride, KvLayer<T> kv,
                   RowPositions rows, int group, float* partial, T* out, int64_t out_stride) {
  AwaitPrevious();
  // Per warp: the staged query, then what the warp attended to.
  float* staging = DynamicShared<float>();
  __shared__ float maxima[kWarps], sums[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, slot = lane % group;
  const int row = blockIdx.x, head = blockIdx.y, dim = shape.head_dim;
  float* staged = staging + warp * dim;
  const auto [pages, position] = PlaceOf(rows, row);
  const int length = position + 1, splits = gridDim.z;
  const int per_split = KeysOfSplit(length, splits);
  const int begin = blockIdx.z * per_split;
  if (begin >= length) return;  // MergeSplits does not ask for this part

  StageHead(qkv + row * qkv_stride + head * dim, shape.q_norm, shape.norm_eps, dim, staged);
  const auto query = RotatedQuery<T, kVec, kChunks>(staged, shape, position, slot, group);
  __syncwarp();  // `staged` may be written again

  const int end = length < begin + per_split ? length : begin + per_split;
  const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const int groups = kWarp / group;
  Attended<T, kVec, kChunks> attended;
  for (int at = begin; at < end;) {
    const int segment = at / kv.segment_positions, offset = at % kv.segment_positions;
    const int left_in_page = kv.segment_positions - offset;
    const int count = end - at < left_in_page ? end - at : left_in_page;
    const T* keys = kv.base + kv.page_ids[pages + segment] * kv.stride +
                    int64_t{offset} * 2 * kv.kv_dim + kv_head * dim;
    AttendTo(query, keys, kv.kv_dim, warp * groups, kWarps * groups, count, dim, group, attended);
    at += count;
  }
  attended.MergeGroups(group);
  if (lane < group) attended.values.Store(staged, dim, slot, group, 1.0f);
  if (lane == 0) {
    maxima[warp] = attended.max;
    sums[warp] = attended.sum;
  }
  __syncthreads();  // every warp's part is there

  using State = Attended<T, kVec, kChunks>;
  float max = -INFINITY, sum = 0, scales[kWarps];
  for (int w = 0; w < kWarps; ++w) max = fmaxf(max, maxima[w]);
  for (int w = 0; w < kWarps; ++w) {
    scales[w] = State::Rescale(maxima[w], max);
    sum += sums[w] * scales[w];
  }
  const int64_t place = (int64_t{row} * shape.num_heads + head) * splits + blockIdx.z;
  float* part = partial + place * (dim + 2);
  T* to = out + row * out_stride;
  for (int d = threadIdx.x; d < dim; d += kWarps * kWarp) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += staging[w * dim + d] * scales[w];
    if (splits == 1) {
      to[head * dim + d] = FromFloat<T>(value / sum);
    } else {
      part[2 + d] = value;
    }
  }
  if (splits > 1 && threadIdx.x == 0) {
    part[0] = max;
    part[1] = sum;
  }
  if (splits == 1 && warp == 0 && head == shape.num_heads - 1) ZeroPadding(shape, to);
}

// A warp owns one head of one row.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    MergeSplits(AttentionShape shape, const float* partial, int splits, RowPositions rows, int n,
                T* out, int64_t out_stride) {
  AwaitPrevious();
  const int lane = threadIdx.x % kWarp, dim = shape.head_dim;
  const int64_t unit = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (unit >= int64_t{n} * shape.num_heads) return;
  const int head = static_cast<int>(unit % shape.num_heads);
  const float* parts = partial + unit * splits * (dim + 2);
  const int row = static_cast<int>(unit / shape.num_heads);
  const int length = PlaceOf(rows, row).position + 1;
  const int per_split = KeysOfSplit(length, splits);
  const int used = (length + per_split - 1) / per_split;
  float max = -INFINITY, sum = 0;
  for (int s = 0; s < used; ++s) max = fmaxf(max, parts[s * (dim + 2)]);
  for (int s = 0; s < used; ++s) {
    sum += parts[s * (dim + 2) + 1] * exp2f(parts[s * (dim + 2)] - max);
  }
  T* to = out + row * out_stride;
  for (int d = lane; d < dim; d += kWarp) {
    float value = 0;
    for (int s = 0; s < used; ++s) {
      value += parts[s * (dim + 2) + 2 + d] * exp2f(parts[s * (dim + 2)] - max);
    }
    to[head * dim + d] = FromFloat<T>(value / sum);
  }
  if (head == shape.num_heads - 1) ZeroPadding(shape, to);
}

int StagingBytes(const AttentionShape& shape) {
  return kWarps * shape.head_dim * static_cast<int>(sizeof(float));
}

int64_t QkvStride(const AttentionShape& shape) {
  return Padded((int64_t{shape.num_heads} + 2 * shape.num_kv_heads) * shape.head_dim);
}

template <typename T, int kVec, int kChunks>
cudaError_t Launch(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                   const RowPositions& rows, int n, float* partial, T* out, cudaStream_t stream) {
  const int64_t out_stride = Padded(int64_t{shape.num_heads} * shape.head_dim);
  const int splits = PagedAttentionSplits(n, shape.num_heads);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const bool fits = shape.head_dim <= kMaxTiledHeadDim && shape.head_dim % 4 == 0;
    if (rows.in_runs && splits == 1 && fits) {
      return LaunchTiledAttention(shape, qkv, QkvStride(shape), kv, rows, n, out, out_stride,
                                  stream);
    }
  }
  const dim3 grid(n, shape.num_heads, splits);
  const cudaError_t error = LaunchKernel(
      PagedAttention<T, kVec, kChunks>, grid, kWarps * kWarp, StagingBytes(shape), stream, shape,
      qkv, QkvStride(shape), kv, rows, GroupLanes(shape.head_dim, kVec), partial, out, out_stride);
  if (error != cudaSuccess || splits == 1) return error;
  return LaunchKernel(MergeSplits<T>, DivideUp(int64_t{n} * shape.num_heads, kWarps),
                      kWarps * kWarp, 0, stream, shape, partial, splits, rows, n, out, out_stride);
}

}  // namespace

int PagedAttentionSplits(int rows, int num_heads) {
  const int64_t blocks = int64_t{rows} * num_heads;
  if (blocks >= kBlocksWanted) return 1;
  const int splits = static_cast<int>((kBlocksWanted + blocks - 1) / blocks);
  return splits < kMaxSplits ? splits : kMaxSplits;
}

int64_t PagedAttentionPartialElements(int num_heads, int head_dim) {
  // rows * num_heads * splits < kBlocksWanted + rows * num_heads where there are splits at all.
  const int64_t parts = 2 * int64_t{kBlocksWanted} + num_heads;
  return parts * (head_dim + 2);
}

template <typename T>
cudaError_t LaunchStoreKeysValues(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                  const RowPositions& rows, int n, cudaStream_t stream) {
  const int64_t units = int64_t{n} * shape.num_kv_heads;
  return LaunchKernel(StoreKeysValues<T>, DivideUp(units, kWarps), kWarps * kWarp,
                      StagingBytes(shape), stream, shape, qkv, QkvStride(shape), kv, rows, n);
}

template <typename T>
cudaError_t LaunchPagedAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int n, float* partial, T* out,
                                 cudaStream_t stream) {
  if (shape.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  const auto launch = shape.head_dim % 4 != 0       ? Launch<T, 1, kMaxHeadDim / kWarp>
                      : shape.head_dim <= 4 * kWarp ? Launch<T, 4, 1>
                                                    : Launch<T, 4, kMaxHeadDim / (4 * kWarp)>;
  return launch(shape, qkv, kv, rows, n, partial, out, stream);
}

#define PHOTON_INSTANTIATE(T)                                                                    \
  template cudaError_t LaunchStoreKeysValues(const AttentionShape&, const T*, const KvLayer<T>&, \
                                             const RowPositions&, int, cudaStream_t);            \
  template cudaError_t LaunchPagedAttention(const AttentionShape&, const T*, const KvLayer<T>&,  \
                                            const RowPositions&, int, float*, T*, cudaStream_t);
PHOTON_INSTANTIATE(float)
PHOTON_INSTANTIATE(__nv_bfloat16)
#undef PHOTON_INSTANTIATE

}  // namespace photon::cuda
