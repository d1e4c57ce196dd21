// Softmax attention of one query over a range of keys, shared by the attention kernels.
//
// A *group* of lanes, a power of two, holds one head: lane `slot` of the group holds elements
// (c * group + slot) * kVec .. + kVec of it, c < kChunks. A warp's groups take keys in turn, so
// short heads (52, 56, 60) still keep most lanes busy: 16 lanes of four elements, two keys at a
// time. Everything stays in registers; softmax is the online one (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018), in base 2.
#pragma once

#include "engine/cuda/kernels/device_common.cuh"

namespace photon::cuda {

// Lanes that hold a head: with four elements per lane where head_dim allows, else one.
inline int GroupLanes(int head_dim, int elements_per_lane) {
  int group = 1;
  while (group < kWarp && group * elements_per_lane < head_dim) group *= 2;
  return group;
}

// Where a row stands in its sequence.
struct RowPlace {
  int pages;  // start of the sequence's page ids
  int position;
};
__device__ inline RowPlace PlaceOf(const RowPositions& rows, int row) {
  const MetaContext meta = rows.metas[row / rows.count];
  return {meta.pages, meta.index * rows.units_per_meta + rows.first + row % rows.count};
}

// Elements from `kv.base` to where a position of a sequence keeps its keys and values.
template <typename T>
__device__ int64_t CellOf(const KvLayer<T>& kv, int pages, int position) {
  const int64_t page = kv.page_ids[pages + position / kv.segment_positions];
  return page * kv.stride + int64_t{position % kv.segment_positions} * 2 * kv.kv_dim;
}

template <typename T, int kVec, int kChunks>
struct HeadSlice {
  float v[kChunks][kVec];

  __device__ static HeadSlice Zero() {
    HeadSlice slice;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) slice.v[c][i] = 0;
    }
    return slice;
  }

  __device__ static HeadSlice Load(const T* head, int head_dim, int slot, int group) {
    HeadSlice slice = Zero();
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = (c * group + slot) * kVec;
      if (at >= head_dim) continue;
      if constexpr (kVec == 4) {
        const float4 four = Load4(head + at);
        slice.v[c][0] = four.x;
        slice.v[c][1] = four.y;
        slice.v[c][2] = four.z;
        slice.v[c][3] = four.w;
      } else {
        slice.v[c][0] = ToFloat(head[at]);
      }
    }
    return slice;
  }

  template <typename To>
  __device__ void Store(To* head, int head_dim, int slot, int group, float scale) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = (c * group + slot) * kVec;
      if (at >= head_dim) continue;
      if constexpr (kVec == 4) {
        Store4(head + at, {v[c][0] * scale, v[c][1] * scale, v[c][2] * scale, v[c][3] * scale});
      } else {
        head[at] = FromFloat<To>(v[c][0] * scale);
      }
    }
  }
};

// What a group has attended to: largest score, sum of the exponentials relative to it, and their
// weighted sum of values.
template <typename T, int kVec, int kChunks>
struct Attended {
  float max = -INFINITY;
  float sum = 0;
  HeadSlice<T, kVec, kChunks> values = HeadSlice<T, kVec, kChunks>::Zero();

  // Exponentials relative to `from`, seen relative to `to`. Nothing attended to yet weighs nothing.
  __device__ static float Rescale(float from, float to) {
    return from == -INFINITY ? 0.0f : exp2f(from - to);
  }

  // Adds keys that are all there, or count for nothing where `valid` is false.
  template <int kKeys>
  __device__ void Add(const float (&scores)[kKeys], const bool (&valid)[kKeys],
                      const HeadSlice<T, kVec, kChunks> (&added)[kKeys]) {
    float new_max = max;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) new_max = valid[k] ? fmaxf(new_max, scores[k]) : new_max;
    const float keep = Rescale(max, new_max);
    max = new_max;
    sum *= keep;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values.v[c][i] *= keep;
    }
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      const float weight = valid[k] ? exp2f(scores[k] - new_max) : 0.0f;
      sum += weight;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) values.v[c][i] += weight * added[k].v[c][i];
      }
    }
  }

  // Merges the warp's groups; every group then holds the whole. All lanes must take part.
  __device__ void MergeGroups(int group) {
    for (int offset = group; offset < kWarp; offset *= 2) {
      const float other_max = __shfl_xor_sync(kAllLanes, max, offset);
      const float other_sum = __shfl_xor_sync(kAllLanes, sum, offset);
      const float new_max = fmaxf(max, other_max);
      const float keep = Rescale(max, new_max), take = Rescale(other_max, new_max);
      max = new_max;
      sum = sum * keep + other_sum * take;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const float other = __shfl_xor_sync(kAllLanes, values.v[c][i], offset);
          values.v[c][i] = values.v[c][i] * keep + other * take;
        }
      }
    }
  }
};

// Attends to keys first, first + step, ... below `count`; the warp's groups take them in turn.
//   query  scaled by log2(e) / sqrt(head_dim)
//   keys   key p of this head is at keys + p * 2 * kv_dim, its value kv_dim further
// All lanes must take part, with the same arguments but for `query`.
template <typename T, int kVec, int kChunks>
__device__ void AttendTo(const HeadSlice<T, kVec, kChunks>& query, const T* keys, int kv_dim,
                         int first, int step, int count, int head_dim, int group,
                         Attended<T, kVec, kChunks>& attended) {
  using Slice = HeadSlice<T, kVec, kChunks>;
  // Keys of a group that are on their way together: what a key costs is the wait for it.
  constexpr int kTogether = kChunks == 1 ? 4 : 2;
  const int lane = threadIdx.x % kWarp, slot = lane % group, mine = lane / group;
  for (int base = first; base < count; base += kTogether * step) {
    Slice keys_here[kTogether], values_here[kTogether];
    bool valid[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const int p = base + k * step + mine;
      valid[k] = p < count;
      keys_here[k] = values_here[k] = Slice::Zero();
      if (!valid[k]) continue;
      const T* at = keys + int64_t{p} * 2 * kv_dim;
      keys_here[k] = Slice::Load(at, head_dim, slot, group);
      values_here[k] = Slice::Load(at + kv_dim, head_dim, slot, group);
    }
    float scores[kTogether] = {};
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) scores[k] += query.v[c][i] * keys_here[k].v[c][i];
      }
    }
    for (int offset = group / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        scores[k] += __shfl_xor_sync(kAllLanes, scores[k], offset);
      }
    }
    attended.Add(scores, valid, values_here);
  }
}

// Copies a head into `staged` (shared memory of the warp, head_dim floats), normalised if `norm` is
// given. Ends with a barrier of the warp, after which Rotated() may read it; call it again only
// after another.
template <typename T>
__device__ void StageHead(const T* head, const float* norm, float eps, int head_dim,
                          float* staged) {
  const int lane = threadIdx.x % kWarp;
  float squares = 0;
  for (int d = lane; d < head_dim; d += kWarp) {
    const float value = ToFloat(head[d]);
    squares += value * value;
    staged[d] = value;
  }
  if (norm != nullptr) {
    const float scale = 1.0f / sqrtf(WarpSum(squares) / head_dim + eps);
    for (int d = lane; d < head_dim; d += kWarp) staged[d] *= scale * norm[d];
  }
  __syncwarp();
}

// Element d of a staged head, rotated for its position.
//   cosines, sines  of the position, [half]
__device__ inline float Rotated(const float* staged, int d, int half, const float* cosines,
                                const float* sines) {
  if (d < half) return staged[d] * cosines[d] - staged[d + half] * sines[d];
  if (d < 2 * half) return staged[d] * cosines[d - half] + staged[d - half] * sines[d - half];
  return staged[d];
}

// The lanes' slices of a staged query, rotated and scaled as AttendTo() wants it.
template <typename T, int kVec, int kChunks>
__device__ HeadSlice<T, kVec, kChunks> RotatedQuery(const float* staged,
                                                    const AttentionShape& shape, int position,
                                                    int slot, int group) {
  const int half = shape.rope_dims / 2;
  const float* cosines = shape.cosines + int64_t{position} * half;
  const float* sines = shape.sines + int64_t{position} * half;
  const float scale = 1.44269504f / sqrtf(static_cast<float>(shape.head_dim));
  auto query = HeadSlice<T, kVec, kChunks>::Zero();
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int d = (c * group + slot) * kVec + i;
      if (d < shape.head_dim) query.v[c][i] = Rotated(staged, d, half, cosines, sines) * scale;
    }
  }
  return query;
}

// Normalises and rotates key head `kv_head` of a qkv row, and writes it and its value to `cell`,
// the position's place in the cache.
template <typename T>
__device__ void StoreKeyValue(const AttentionShape& shape, const T* qkv, int kv_head, int position,
                              float* staged, T* cell) {
  const int dim = shape.head_dim, kv_dim = shape.num_kv_heads * dim, half = shape.rope_dims / 2;
  const T* key = qkv + (shape.num_heads + kv_head) * dim;
  StageHead(key, shape.k_norm, shape.norm_eps, dim, staged);
  const float* cosines = shape.cosines + int64_t{position} * half;
  const float* sines = shape.sines + int64_t{position} * half;
  for (int d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    cell[kv_head * dim + d] = FromFloat<T>(Rotated(staged, d, half, cosines, sines));
    cell[kv_dim + kv_head * dim + d] = key[kv_dim + d];
  }
  __syncwarp();  // `staged` may be written again
}

// Zeroes what the heads leave of an output row.
template <typename T>
__device__ void ZeroPadding(const AttentionShape& shape, T* row) {
  const int width = shape.num_heads * shape.head_dim, lane = threadIdx.x % kWarp;
  const int padding = (width + kRowElements - 1) / kRowElements * kRowElements - width;
  if (lane < padding) row[width + lane] = FromFloat<T>(0.0f);
}

}  // namespace photon::cuda
