#include "engine/cuda/kernels/attention_common.cuh"
#include "engine/cuda/kernels/tiled_attention.h"

namespace photon::cuda {
namespace {

using BF16 = __nv_bfloat16;

constexpr int kWarps = 4;                    // of a block
constexpr int kTileRows = 16;                // as the matrix instruction has them
constexpr int kStepKeys = 16;                // that a warp takes at a time
constexpr int kChunkDims = 32;               // of a head, whose values a lane takes in one load
constexpr int kChunkQuads = kChunkDims / 4;  // quad: four elements that lie together
constexpr int kRowThreads = kWarps * kWarp / kTileRows;  // that prepare a row's query

// The keys that a warp takes of those that a tile attends to, the same in all lanes.
//
// Rows of the tile that are of one sequence, a run, attend to keys of their own: the run's steps of
// kStepKeys keys up to the position of its last row. The steps of all runs stand in a line, and the
// warps take them in turn.
class KeyWalk {
 public:
  // place  of tile row lane % kTileRows;  num_rows  of the tile
  __device__ KeyWalk(RowPlace place, int num_rows, int warp)
      : place_(place), num_rows_(num_rows), key_(warp * kStepKeys) {
    const int lane = threadIdx.x % kWarp;
    const int before = __shfl_up_sync(kAllLanes, place.pages, 1);
    later_runs_ = __ballot_sync(kAllLanes, lane < num_rows && (lane == 0 || place.pages != before));
    NextRun();
    FindRun();
  }

  __device__ bool done() const { return done_; }
  // First key of the step.
  __device__ int key() const { return key_; }
  // The run: start of its sequence's page ids, how many keys it attends to, whether it has a row.
  __device__ int pages() const { return pages_; }
  __device__ int num_keys() const { return num_keys_; }
  __device__ bool HasRow(int row) const { return row >= first_row_ && row <= last_row_; }

  __device__ void Advance() {
    key_ += kWarps * kStepKeys;
    FindRun();
  }

 private:
  __device__ void NextRun() {
    first_row_ = __ffs(static_cast<int>(later_runs_)) - 1;
    later_runs_ &= later_runs_ - 1;
    last_row_ = later_runs_ != 0 ? __ffs(static_cast<int>(later_runs_)) - 2 : num_rows_ - 1;
    pages_ = __shfl_sync(kAllLanes, place_.pages, first_row_);
    num_keys_ = __shfl_sync(kAllLanes, place_.position, last_row_) + 1;
  }

  __device__ void FindRun() {
    while (key_ >= num_keys_) {
      if (later_runs_ == 0) {
        done_ = true;
        return;
      }
      key_ -= (num_keys_ + kStepKeys - 1) / kStepKeys * kStepKeys;
      NextRun();
    }
  }

  RowPlace place_;
  int num_rows_;
  unsigned later_runs_;  // a bit for the first row of each
  int first_row_ = 0, last_row_ = 0, pages_ = 0, num_keys_ = 0;
  int key_;
  bool done_ = false;
};

__device__ unsigned LowHalves(unsigned first, unsigned second) {
  return (first & 0xffffu) | second << 16;
}
__device__ unsigned HighHalves(unsigned first, unsigned second) {
  return first >> 16 | (second & 0xffff0000u);
}
__device__ unsigned RoundedPair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// What the block's warps attended to. Rows are a quad longer than a head, so that lanes which write
// together meet different banks.
template <int kChunks>
struct TileParts {
  static constexpr int kStride = kChunks * kChunkDims + 4;
  float values[kWarps][kTileRows][kStride];
};

// Normalises, rotates, scales and rounds the queries of a tile, kRowThreads threads a row. Quads
// beyond the head are zero.
//   staged  scratch of kTileRows * head_dim floats
template <int kChunks, int kStride>
__device__ void PrepareQueries(const AttentionShape& shape, const BF16* qkv, int64_t qkv_stride,
                               int first_row, int num_rows, int head, RowPlace place, float* staged,
                               uint2 (&queries)[kTileRows][kStride]) {
  const int dim = shape.head_dim, half = shape.rope_dims / 2;
  const int row = static_cast<int>(threadIdx.x) / kRowThreads, mine = threadIdx.x % kRowThreads * 4;
  const int position = __shfl_sync(kAllLanes, place.position, row);
  // Rows beyond the last one repeat it: nothing reads what they get.
  const int64_t from = first_row + (row < num_rows ? row : num_rows - 1);
  const BF16* query = qkv + from * qkv_stride + head * dim;
  float* own = staged + row * dim;
  float squares = 0;
  for (int d = mine; d < dim; d += kRowThreads * 4) {
    const float4 v = Load4(query + d);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    Store4(own + d, v);
  }
  if (shape.q_norm != nullptr) {
    for (int offset = kRowThreads / 2; offset > 0; offset /= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, offset);
    }
    const float scale = 1.0f / sqrtf(squares / dim + shape.norm_eps);
    for (int d = mine; d < dim; d += kRowThreads * 4) {
      for (int i = d; i < d + 4; ++i) own[i] *= scale * shape.q_norm[i];
    }
  }
  __syncwarp();  // the row is staged, by threads of this warp
  const float* cosines = shape.cosines + int64_t{position} * half;
  const float* sines = shape.sines + int64_t{position} * half;
  const float scale = 1.44269504f / sqrtf(static_cast<float>(dim));
  for (int d = mine; d < kChunks * kChunkDims; d += kRowThreads * 4) {
    float v[4] = {};
    if (d < dim) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = Rotated(own, d + i, half, cosines, sines) * scale;
    }
    queries[row][d / 4] = {RoundedPair(v[0], v[1]), RoundedPair(v[2], v[3])};
  }
}

// A block owns one head of kTileRows rows. Its warps share the keys and merge what they got.
//
// Keys and values go from memory to the registers that the matrix instruction m16n8k16 wants them
// in, since a warp reads each only once. In the instruction's terms a lane is (g, t) = (lane / 4,
// lane % 4), and holds
//   A [16, 16]  rows g and g + 8, columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9
//   B [16, 8]   the same of its rows, column g
//   C [16, 8]   rows g and g + 8, columns 2 t and 2 t + 1.
// Which element of k each of a lane's four is does not matter as long as A and B agree, nor which
// column of the whole a column of B is. So a lane's four are
//   of a query and a key      quad t of each sixteen elements
//   of weights and values     keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of the step, as the scores have
//                             them; column g of instruction j is element j of a chunk's quad g.
template <int kChunks>
__global__ void __launch_bounds__(kWarps* kWarp)
    TiledAttention(AttentionShape shape, const BF16* qkv, int64_t qkv_stride, KvLayer<BF16> kv,
                   RowPositions rows, int n, BF16* out, int64_t out_stride) {
  constexpr int kSlices = kChunks * kChunkDims / 16;  // sixteen elements of a head
  AwaitPrevious();
  auto& parts = *DynamicShared<TileParts<kChunks>>();
  // Four quads more than a head: the rows that lanes read together meet different banks.
  __shared__ uint2 queries[kTileRows][kChunks * kChunkQuads + 4];
  __shared__ float maxima[kWarps][kTileRows], sums[kWarps][kTileRows];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int head = blockIdx.y, dim = shape.head_dim;
  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  const int num_rows = n - first_row < kTileRows ? n - first_row : kTileRows;
  const int own_row = lane % kTileRows < num_rows ? lane % kTileRows : num_rows - 1;
  const RowPlace place = PlaceOf(rows, first_row + own_row);
  const BF16* cells = kv.base + head / (shape.num_heads / shape.num_kv_heads) * dim;

  KeyWalk walk(place, num_rows, warp);
  int64_t cell = 0;  // of key lane % kStepKeys of the step
  uint2 keys[2][kSlices];
  const auto load_keys = [&] {
    const int key = walk.key() + lane % kStepKeys;
    // Keys beyond the last one repeat it, and count for nothing.
    cell = CellOf(kv, walk.pages(), key < walk.num_keys() ? key : walk.num_keys() - 1);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const BF16* from = cells + __shfl_sync(kAllLanes, cell, j * 8 + g);
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        const int d = s * 16 + t * 4;
        keys[j][s] = d < dim ? *reinterpret_cast<const uint2*>(from + d) : uint2{0, 0};
      }
    }
  };
  // The first keys are on their way while the queries are prepared.
  if (!walk.done()) load_keys();
  PrepareQueries<kChunks>(shape, qkv, qkv_stride, first_row, num_rows, head, place,
                          &parts.values[0][0][0], queries);
  __syncthreads();  // the queries are there, and their scratch may be written again
  uint2 query[2][kSlices];
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
    query[0][s] = queries[g][s * 4 + t];
    query[1][s] = queries[g + 8][s * 4 + t];
  }
  const int positions[2] = {__shfl_sync(kAllLanes, place.position, g),
                            __shfl_sync(kAllLanes, place.position, g + 8)};

  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows g and g + 8; this lane's sums
  float values[kChunks][4][4] = {};
  while (!walk.done()) {
    uint2 added[4][kChunks];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = t * 2 + i % 2 + i / 2 * 8;
      const BF16* from = cells + kv.kv_dim + __shfl_sync(kAllLanes, cell, key);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int d = c * kChunkDims + g * 4;
        added[i][c] = d < dim ? *reinterpret_cast<const uint2*>(from + d) : uint2{0, 0};
      }
    }
    float scores[2][4] = {};
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        MultiplyAdd(scores[j], query[0][s].x, query[1][s].x, query[0][s].y, query[1][s].y,
                    keys[j][s].x, keys[j][s].y);
      }
    }
    // Of score i of instruction j: row g + i / 2 * 8, key j * 8 + t * 2 + i % 2.
    const int limits[2] = {walk.HasRow(g) ? positions[0] : -1,
                           walk.HasRow(g + 8) ? positions[1] : -1};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = walk.key() + j * 8 + t * 2 + i % 2;
        if (key > limits[i / 2]) scores[j][i] = -INFINITY;
      }
    }
    walk.Advance();
    if (!walk.done()) load_keys();

    unsigned weights[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float new_max = fmaxf(fmaxf(scores[0][r * 2], scores[0][r * 2 + 1]),
                            fmaxf(scores[1][r * 2], scores[1][r * 2 + 1]));
      new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 1));
      new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 2));
      new_max = fmaxf(new_max, max[r]);
      // A row that has no key yet keeps its zeros.
      const float shift = new_max == -INFINITY ? 0.0f : new_max;
      const float keep = exp2f(max[r] - shift);
      max[r] = new_max;
      sum[r] *= keep;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float first = exp2f(scores[j][r * 2] - shift);
        const float second = exp2f(scores[j][r * 2 + 1] - shift);
        sum[r] += first + second;
        weights[j][r] = RoundedPair(first, second);
      }
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          values[c][j][r * 2] *= keep;
          values[c][j][r * 2 + 1] *= keep;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const auto add = [&](int j, unsigned b0, unsigned b1) {
        MultiplyAdd(values[c][j], weights[0][0], weights[0][1], weights[1][0], weights[1][1], b0,
                    b1);
      };
      add(0, LowHalves(added[0][c].x, added[1][c].x), LowHalves(added[2][c].x, added[3][c].x));
      add(1, HighHalves(added[0][c].x, added[1][c].x), HighHalves(added[2][c].x, added[3][c].x));
      add(2, LowHalves(added[0][c].y, added[1][c].y), LowHalves(added[2][c].y, added[3][c].y));
      add(3, HighHalves(added[0][c].y, added[1][c].y), HighHalves(added[2][c].y, added[3][c].y));
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = g + r * 8;
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    if (t == 0) {
      maxima[warp][row] = max[r];
      sums[warp][row] = sum[r];
    }
    // Columns 2 t and 2 t + 1 of the four instructions are quads 2 t and 2 t + 1 of the chunk.
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int e = r * 2 + i;
        Store4(&parts.values[warp][row][c * kChunkDims + (t * 2 + i) * 4],
               {values[c][0][e], values[c][1][e], values[c][2][e], values[c][3][e]});
      }
    }
  }
  __syncthreads();  // every warp's part is there

  BF16* to = out + int64_t{first_row} * out_stride;
  for (int i = threadIdx.x; i < num_rows * (dim / 4); i += kWarps * kWarp) {
    const int row = i / (dim / 4), d = i % (dim / 4) * 4;
    float largest = -INFINITY, total = 0;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, maxima[w][row]);
    float4 merged{0, 0, 0, 0};
    for (int w = 0; w < kWarps; ++w) {
      const float scale = exp2f(maxima[w][row] - largest);
      const float4 part = Load4(&parts.values[w][row][d]);
      total += sums[w][row] * scale;
      merged.x += part.x * scale;
      merged.y += part.y * scale;
      merged.z += part.z * scale;
      merged.w += part.w * scale;
    }
    Store4(to + row * out_stride + head * dim + d,
           {merged.x / total, merged.y / total, merged.z / total, merged.w / total});
  }
  if (head != shape.num_heads - 1) return;
  for (int row = warp; row < num_rows; row += kWarps) ZeroPadding(shape, to + row * out_stride);
}

}  // namespace

cudaError_t LaunchTiledAttention(const AttentionShape& shape, const BF16* qkv, int64_t qkv_stride,
                                 const KvLayer<BF16>& kv, const RowPositions& rows, int n,
                                 BF16* out, int64_t out_stride, cudaStream_t stream) {
  if (shape.head_dim > kMaxTiledHeadDim || shape.head_dim % 4 != 0) return cudaErrorInvalidValue;
  const dim3 grid(DivideUp(n, kTileRows), shape.num_heads);
  const auto launch = [&](auto kernel, size_t shared_bytes) {
    return LaunchKernel(kernel, grid, kWarps * kWarp, shared_bytes, stream, shape, qkv, qkv_stride,
                        kv, rows, n, out, out_stride);
  };
  switch ((shape.head_dim + kChunkDims - 1) / kChunkDims) {
    case 1:
      return launch(TiledAttention<1>, sizeof(TileParts<1>));
    case 2:
      return launch(TiledAttention<2>, sizeof(TileParts<2>));
    case 3:
      return launch(TiledAttention<3>, sizeof(TileParts<3>));
    default:
      return launch(TiledAttention<4>, sizeof(TileParts<4>));
  }
}

}  // namespace photon::cuda
