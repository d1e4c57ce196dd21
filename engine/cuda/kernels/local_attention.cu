#include "engine/cuda/kernels/attention_common.cuh"
#include "engine/cuda/kernels/local_attention.h"

namespace photon::cuda {
namespace {

constexpr int kThreads = 128;  // of a block
// Keys that are on their way together.
constexpr int kTogether = 4;

// kPairs elements that are next to each other.
template <int kPairs>
struct Elements {
  float v[kPairs];
};
template <int kPairs>
__device__ Elements<kPairs> LoadElements(const float* from) {
  if constexpr (kPairs == 1) {
    return {{*from}};
  } else {
    const float2 two = *reinterpret_cast<const float2*>(from);
    return {{two.x, two.y}};
  }
}
template <int kPairs>
__device__ Elements<kPairs> LoadElements(const __nv_bfloat16* from) {
  if constexpr (kPairs == 1) {
    return {{ToFloat(*from)}};
  } else {
    const unsigned bits = *reinterpret_cast<const unsigned*>(from);
    return {{__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)}};
  }
}
template <int kPairs>
__device__ void StoreElements(float* to, Elements<kPairs> e) {
  if constexpr (kPairs == 1) {
    *to = e.v[0];
  } else {
    *reinterpret_cast<float2*>(to) = {e.v[0], e.v[1]};
  }
}
template <int kPairs>
__device__ void StoreElements(__nv_bfloat16* to, Elements<kPairs> e) {
  if constexpr (kPairs == 1) {
    *to = FromFloat<__nv_bfloat16>(e.v[0]);
  } else {
    *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(e.v[0], e.v[1]);
  }
}

// Pairs of a head's elements: what rotates together, (i, half + i), then what does not, halved
// likewise.
struct PairCount {
  int rotated, rest;
  __host__ __device__ explicit PairCount(const AttentionShape& shape)
      : rotated(shape.rope_dims / 2), rest((shape.head_dim - shape.rope_dims + 1) / 2) {}
};

// Where a lane's elements of any head are: kChunks times kPairs pairs (a, b).
template <int kPairs, int kChunks>
struct LanePlaces {
  int a[kChunks], b[kChunks];  // of the first pair
  bool has_a[kChunks], has_b[kChunks];
  int angle[kChunks];  // of the first pair, or -1

  // Without a unit of work, none.
  __device__ LanePlaces(const AttentionShape& shape, int slot, int group, bool has_unit) {
    const PairCount pairs(shape);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int pair = (c * group + slot) * kPairs;
      const bool rotates = pair < pairs.rotated;
      a[c] = rotates ? pair : pair + pairs.rotated;
      b[c] = a[c] + (rotates ? pairs.rotated : pairs.rest);
      has_a[c] = has_unit && pair < pairs.rotated + pairs.rest;
      has_b[c] = has_a[c] && b[c] < shape.head_dim;
      angle[c] = has_a[c] && rotates ? pair : -1;
    }
  }
};

// A lane's elements of one head.
template <int kPairs, int kChunks>
struct HeadPairs {
  Elements<kPairs> a[kChunks] = {}, b[kChunks] = {};
  using Places = LanePlaces<kPairs, kChunks>;

  template <typename T>
  __device__ static HeadPairs Load(const T* head, const Places& places) {
    HeadPairs pairs;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (places.has_a[c]) pairs.a[c] = LoadElements<kPairs>(head + places.a[c]);
      if (places.has_b[c]) pairs.b[c] = LoadElements<kPairs>(head + places.b[c]);
    }
    return pairs;
  }

  template <typename T>
  __device__ void Store(T* head, const Places& places) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (places.has_a[c]) StoreElements<kPairs>(head + places.a[c], a[c]);
      if (places.has_b[c]) StoreElements<kPairs>(head + places.b[c], b[c]);
    }
  }

  // f(element, of_the_other) for all pairs of elements of two heads.
  template <typename Function>
  __device__ void ForEach(const HeadPairs& other, const Function& f) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        f(a[c].v[i], other.a[c].v[i]);
        f(b[c].v[i], other.b[c].v[i]);
      }
    }
  }

  __device__ float Dot(const HeadPairs& other) {
    float sum = 0;
    ForEach(other, [&](float& mine, float its) { sum += mine * its; });
    return sum;
  }

  __device__ void Scale(float by) {
    ForEach(*this, [&](float& mine, float) { mine *= by; });
  }
};

// Sum over the lanes of a group, in all of them. All lanes of the warp must take part.
__device__ float GroupSum(float value, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// A query or key head, normalised and rotated for its position.
template <int kPairs, int kChunks, typename T>
__device__ HeadPairs<kPairs, kChunks> Prepare(const AttentionShape& shape, const T* head,
                                              const float* norm, int position,
                                              const LanePlaces<kPairs, kChunks>& places,
                                              int group) {
  using Pairs = HeadPairs<kPairs, kChunks>;
  Pairs pairs = Pairs::Load(head, places);
  if (norm != nullptr) {
    const float squares = GroupSum(pairs.Dot(pairs), group);
    pairs.Scale(1.0f / sqrtf(squares / shape.head_dim + shape.norm_eps));
    pairs.ForEach(Pairs::Load(norm, places), [](float& mine, float weight) { mine *= weight; });
  }
  const int64_t angles = int64_t{position} * (shape.rope_dims / 2);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (places.angle[c] < 0) continue;
    const auto cosine = LoadElements<kPairs>(shape.cosines + angles + places.angle[c]);
    const auto sine = LoadElements<kPairs>(shape.sines + angles + places.angle[c]);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float a = pairs.a[c].v[i], b = pairs.b[c].v[i];
      pairs.a[c].v[i] = a * cosine.v[i] - b * sine.v[i];
      pairs.b[c].v[i] = b * cosine.v[i] + a * sine.v[i];
    }
  }
  return pairs;
}

// A group of lanes owns one key head of one context, and each lane the same elements of every key,
// value and query of it: what a lane reads back it has written itself, and what rotates together it
// holds together. So lanes meet only in sums.
template <typename T, int kPairs, int kChunks>
__global__ void __launch_bounds__(kThreads)
    LocalAttention(AttentionShape shape, const T* qkv, int64_t qkv_stride, KvLayer<T> kv, int first,
                   int count, int contexts, int group, T* out, int64_t out_stride) {
  using Pairs = HeadPairs<kPairs, kChunks>;
  const int half = shape.rope_dims / 2;
  PrefetchBlock(shape.cosines + int64_t{first} * half, count * half);
  PrefetchBlock(shape.sines + int64_t{first} * half, count * half);
  AwaitPrevious();
  const int slot = static_cast<int>(threadIdx.x) % group;
  const int64_t unit = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / group;
  const int64_t context = unit / shape.num_kv_heads;
  const int kv_head = static_cast<int>(unit % shape.num_kv_heads);
  const bool has_unit = context < contexts;
  const LanePlaces<kPairs, kChunks> places(shape, slot, group, has_unit);
  // Of this head: key p is at cells + p * 2 * kv_dim, its value kv_dim further.
  T* cells = kv.base + context * kv.stride + kv_head * shape.head_dim;
  const int64_t cell = int64_t{2} * kv.kv_dim;

  // What the context has already is on its way while its next keys are prepared: first and last
  // byte of each key and value, a lane each.
  for (int i = slot; has_unit && i < 4 * first; i += group) {
    Prefetch(cells + int64_t{i / 2} * kv.kv_dim + (i % 2 == 0 ? 0 : shape.head_dim - 1));
  }
  for (int t = 0; t < count; ++t) {
    const T* row = qkv + (context * count + t) * qkv_stride;
    const T* key = row + (shape.num_heads + kv_head) * shape.head_dim;
    T* to = cells + (first + t) * cell;
    Prepare(shape, key, shape.k_norm, first + t, places, group).Store(to, places);
    Pairs::Load(key + kv.kv_dim, places).Store(to + kv.kv_dim, places);
  }

  const int queries_per_kv = shape.num_heads / shape.num_kv_heads;
  for (int q = 0; q < queries_per_kv; ++q) {
    const int head = kv_head * queries_per_kv + q;
    for (int t = 0; t < count; ++t) {
      const int position = first + t;
      const int64_t row = context * count + t;
      Pairs query = Prepare(shape, qkv + row * qkv_stride + head * shape.head_dim, shape.q_norm,
                            position, places, group);
      query.Scale(1.44269504f / sqrtf(static_cast<float>(shape.head_dim)));  // softmax in base 2

      float max = -INFINITY, sum = 0;
      Pairs attended;
      for (int base = 0; base <= position; base += kTogether) {
        Pairs keys[kTogether], values[kTogether];
        float scores[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (base + k > position) continue;
          const T* at = cells + (base + k) * cell;
          keys[k] = Pairs::Load(at, places);
          values[k] = Pairs::Load(at + kv.kv_dim, places);
        }
        float new_max = max;
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          scores[k] = GroupSum(query.Dot(keys[k]), group);
          if (base + k > position) scores[k] = -INFINITY;
          new_max = fmaxf(new_max, scores[k]);
        }
        const float keep = exp2f(max - new_max);  // nothing attended to yet weighs nothing
        max = new_max;
        sum *= keep;
        attended.Scale(keep);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const float weight = exp2f(scores[k] - max);
          sum += weight;
          attended.ForEach(values[k], [&](float& mine, float its) { mine += weight * its; });
        }
      }
      attended.Scale(1.0f / sum);
      T* to = out + row * out_stride;
      attended.Store(to + head * shape.head_dim, places);
      if (has_unit && head == shape.num_heads - 1) {
        for (int i = shape.num_heads * shape.head_dim + slot; i < out_stride; i += group) {
          to[i] = FromFloat<T>(0.0f);
        }
      }
    }
  }
}

template <typename T, int kPairs, int kChunks>
cudaError_t Launch(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                   const RowPositions& rows, int contexts, T* out, cudaStream_t stream) {
  const int64_t q_dim = int64_t{shape.num_heads} * shape.head_dim;
  const int64_t units = int64_t{contexts} * shape.num_kv_heads;
  const PairCount pairs(shape);
  const int group = GroupLanes(pairs.rotated + pairs.rest, kPairs);
  return LaunchKernel(LocalAttention<T, kPairs, kChunks>, DivideUp(units * group, kThreads),
                      kThreads, 0, stream, shape, qkv, Padded(q_dim + 2 * kv.kv_dim), kv,
                      rows.first, rows.count, contexts, group, out, Padded(q_dim));
}

}  // namespace

template <typename T>
cudaError_t LaunchLocalAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int contexts, T* out,
                                 cudaStream_t stream) {
  if (shape.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  // Two pairs at a time where both halves of what rotates, and of the rest, are even.
  const auto launch = shape.head_dim % 4 != 0 || shape.rope_dims % 4 != 0
                          ? Launch<T, 1, kMaxHeadDim / (2 * kWarp)>
                      : shape.head_dim <= 4 * kWarp ? Launch<T, 2, 1>
                                                    : Launch<T, 2, kMaxHeadDim / (4 * kWarp)>;
  return launch(shape, qkv, kv, rows, contexts, out, stream);
}

template cudaError_t LaunchLocalAttention(const AttentionShape&, const float*,
                                          const KvLayer<float>&, const RowPositions&, int, float*,
                                          cudaStream_t);
template cudaError_t LaunchLocalAttention(const AttentionShape&, const __nv_bfloat16*,
                                          const KvLayer<__nv_bfloat16>&, const RowPositions&, int,
                                          __nv_bfloat16*, cudaStream_t);

}  // namespace photon::cuda
