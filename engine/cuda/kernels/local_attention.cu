#include <cmath>

#include "engine/cuda/kernels/attention_common.cuh"
#include "engine/cuda/kernels/local_attention.h"

namespace photon::cuda {
namespace {

constexpr int kThreads = 128;  // of a block
// Keys that are on their way together.
constexpr int kTogether = 4;
// Of one multiprocessor: so many wait for memory together.
template <int kChunks>
constexpr int kMinBlocks = kChunks == 1 ? 7 : 1;

// kPairs elements that are next to each other, as memory has them.
template <typename T, int kPairs>
struct Packed;
template <>
struct Packed<float, 1> {
  using Type = float;
};
template <>
struct Packed<float, 2> {
  using Type = float2;
};
template <>
struct Packed<__nv_bfloat16, 1> {
  using Type = unsigned short;
};
template <>
struct Packed<__nv_bfloat16, 2> {
  using Type = unsigned;
};

// Likewise, to compute with.
template <int kPairs>
struct Elements {
  float v[kPairs];
};
__device__ Elements<1> Unpack(float packed) {
  return {{packed}};
}
__device__ Elements<2> Unpack(float2 packed) {
  return {{packed.x, packed.y}};
}
__device__ Elements<1> Unpack(unsigned short packed) {
  return {{__uint_as_float(unsigned{packed} << 16)}};
}
__device__ Elements<2> Unpack(unsigned packed) {
  return {{__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)}};
}
template <int kPairs, typename T>
__device__ typename Packed<T, kPairs>::Type LoadPacked(const T* from) {
  return *reinterpret_cast<const typename Packed<T, kPairs>::Type*>(from);
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

// Where a lane's elements of any head are: kChunks times kPairs pairs (a, b). With two pairs, both
// or none of a chunk are there.
template <int kPairs, int kChunks>
struct LanePlaces {
  int a[kChunks], b[kChunks];  // of the first pair
  bool has_a[kChunks], has_b[kChunks];
  int angle[kChunks];  // of the first pair, or -1
  int cell[kChunks];   // with two pairs: where the window keeps all four

  // Of lane `slot` of `group`; without a unit of work, none.
  __device__ LanePlaces(const AttentionShape& shape, int slot, int group, bool has_unit) {
    const PairCount pairs(shape);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int pair = (c * group + slot) * kPairs;
      const bool rotates = pair < pairs.rotated;
      a[c] = rotates ? pair : pair + pairs.rotated;
      b[c] = a[c] + (rotates ? pairs.rotated : pairs.rest);
      has_a[c] = has_unit && pair < pairs.rotated + pairs.rest;
      has_b[c] = has_a[c] && (kPairs == 2 || b[c] < shape.head_dim);
      angle[c] = has_a[c] && rotates ? pair : -1;
      cell[c] = 2 * pair;
    }
  }
};

// A lane's elements of one head, on their way: few registers, so that many can be.
template <typename T, int kPairs, int kChunks>
struct PackedPairs {
  typename Packed<T, kPairs>::Type a[kChunks] = {}, b[kChunks] = {};

  __device__ static PackedPairs Load(const T* head, const LanePlaces<kPairs, kChunks>& places) {
    PackedPairs pairs;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (places.has_a[c]) pairs.a[c] = LoadPacked<kPairs>(head + places.a[c]);
      if (places.has_b[c]) pairs.b[c] = LoadPacked<kPairs>(head + places.b[c]);
    }
    return pairs;
  }

  // Of a head in the window, which keeps the elements of a lane together: nobody else reads them.
  __device__ static PackedPairs LoadCell(const T* head, const LanePlaces<kPairs, kChunks>& places) {
    if constexpr (kPairs == 1) {
      return Load(head, places);
    } else {
      struct alignas(4 * sizeof(T)) Four {
        typename Packed<T, kPairs>::Type a, b;
      };
      PackedPairs pairs;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (!places.has_a[c]) continue;
        const Four four = *reinterpret_cast<const Four*>(head + places.cell[c]);
        pairs.a[c] = four.a;
        pairs.b[c] = four.b;
      }
      return pairs;
    }
  }
};

// A lane's elements of one head.
template <int kPairs, int kChunks>
struct HeadPairs {
  Elements<kPairs> a[kChunks] = {}, b[kChunks] = {};
  using Places = LanePlaces<kPairs, kChunks>;

  HeadPairs() = default;
  template <typename T>
  __device__ explicit HeadPairs(const PackedPairs<T, kPairs, kChunks>& packed) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      a[c] = Unpack(packed.a[c]);
      b[c] = Unpack(packed.b[c]);
    }
  }

  template <typename T>
  __device__ static HeadPairs Load(const T* head, const Places& places) {
    return HeadPairs(PackedPairs<T, kPairs, kChunks>::Load(head, places));
  }

  template <typename T>
  __device__ void Store(T* head, const Places& places) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (places.has_a[c]) StoreElements<kPairs>(head + places.a[c], a[c]);
      if (places.has_b[c]) StoreElements<kPairs>(head + places.b[c], b[c]);
    }
  }

  template <typename T>
  __device__ void StoreCell(T* head, const Places& places) const {
    if constexpr (kPairs == 1) {
      Store(head, places);
    } else {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (!places.has_a[c]) continue;
        Store4(head + places.cell[c], {a[c].v[0], a[c].v[1], b[c].v[0], b[c].v[1]});
      }
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

  // As memory would give them back.
  template <typename T>
  __device__ void RoundTo() {
    ForEach(*this, [](float& mine, float) { mine = ToFloat(FromFloat<T>(mine)); });
  }
};

// Sums over the lanes of a group, in all of them. All lanes of the warp must take part.
template <int kGroup, int kCount>
__device__ void GroupSums(float (&values)[kCount]) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
    }
  }
}

template <int kGroup, int kPairs, int kChunks>
__device__ void Normalise(const AttentionShape& shape, const float* norm,
                          const LanePlaces<kPairs, kChunks>& places,
                          HeadPairs<kPairs, kChunks>& pairs) {
  using Pairs = HeadPairs<kPairs, kChunks>;
  if (norm == nullptr) return;
  float squares[1] = {pairs.Dot(pairs)};
  GroupSums<kGroup>(squares);
  pairs.Scale(1.0f / sqrtf(squares[0] / shape.head_dim + shape.norm_eps));
  pairs.ForEach(Pairs::Load(norm, places), [](float& mine, float weight) { mine *= weight; });
}

// By what a lane's pairs rotate at a position.
template <int kPairs, int kChunks>
struct LaneAngles {
  Elements<kPairs> cosines[kChunks], sines[kChunks];

  __device__ LaneAngles(const AttentionShape& shape, int position,
                        const LanePlaces<kPairs, kChunks>& places) {
    const int64_t first = int64_t{position} * (shape.rope_dims / 2);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) cosines[c].v[i] = 1, sines[c].v[i] = 0;
      if (places.angle[c] < 0) continue;
      cosines[c] = Unpack(LoadPacked<kPairs>(shape.cosines + first + places.angle[c]));
      sines[c] = Unpack(LoadPacked<kPairs>(shape.sines + first + places.angle[c]));
    }
  }

  __device__ void Rotate(HeadPairs<kPairs, kChunks>& pairs) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float a = pairs.a[c].v[i], b = pairs.b[c].v[i];
        pairs.a[c].v[i] = a * cosines[c].v[i] - b * sines[c].v[i];
        pairs.b[c].v[i] = b * cosines[c].v[i] + a * sines[c].v[i];
      }
    }
  }
};

// The same number, of which the compiler forgets what it was: or else it keeps the address of every
// key in registers that there are not enough of.
__device__ int Forgotten(int number) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

template <typename T>
struct LocalContexts {
  const T* qkv;
  int64_t qkv_stride;
  KvLayer<T> kv;
  int first;  // position of a context's first row
  int count;  // of its rows
  int queries_per_kv;
  float query_scale;  // makes softmax one of base 2
  T* out;
  int64_t out_stride;
};

// A group of lanes owns one key head of one context, and each lane the same elements of every key,
// value and query of it: what a lane reads back it has written itself, and what rotates together it
// holds together. So lanes meet only in sums. All that a position reads is on its way together, and
// its own key and value stay in registers.
template <typename T, int kPairs, int kChunks, int kGroup>
__global__ void __launch_bounds__(kThreads, kMinBlocks<kChunks>)
    LocalAttention(AttentionShape shape, LocalContexts<T> in) {
  using Pairs = HeadPairs<kPairs, kChunks>;
  using Packs = PackedPairs<T, kPairs, kChunks>;
  const int slot = static_cast<int>(threadIdx.x % kGroup);
  const int64_t context = blockIdx.x;
  const int kv_head = static_cast<int>((blockIdx.y * kThreads + threadIdx.x) / kGroup);
  const bool has_unit = kv_head < shape.num_kv_heads;
  const LanePlaces<kPairs, kChunks> places(shape, slot, kGroup, has_unit);
  // Of this head: key p is at cells + p * 2 * kv_dim, its value kv_dim further.
  T* cells = in.kv.base + context * in.kv.stride + kv_head * shape.head_dim;
  const int cell = 2 * in.kv.kv_dim;
  LaneAngles<kPairs, kChunks> angles(shape, in.first, places);
  AwaitPrevious();

  for (int t = 0; t < in.count; ++t) {
    const int position = in.first + t;
    const int64_t row = context * in.count + t;
    const T* queries = in.qkv + row * in.qkv_stride + kv_head * in.queries_per_kv * shape.head_dim;
    const T* new_key = in.qkv + row * in.qkv_stride + (shape.num_heads + kv_head) * shape.head_dim;
    Packs packed_query = Packs::Load(queries, places);
    const Packs packed_key = Packs::Load(new_key, places);
    const Packs packed_value = Packs::Load(new_key + in.kv.kv_dim, places);
    Packs keys[kTogether], values[kTogether];
    const auto load_keys = [&](int base) {
      const T* at = cells + Forgotten(base * cell);
#pragma unroll
      for (int k = 0; k < kTogether; ++k, at += cell) {
        keys[k] = values[k] = {};
        if (base + k >= position) continue;
        keys[k] = Packs::LoadCell(at, places);
        values[k] = Packs::LoadCell(at + in.kv.kv_dim, places);
      }
    };
    load_keys(0);

    Pairs key(packed_key);
    const Pairs value(packed_value);
    Normalise<kGroup>(shape, shape.k_norm, places, key);
    angles.Rotate(key);
    key.template RoundTo<T>();
    T* to = cells + position * cell;
    key.StoreCell(to, places);
    value.StoreCell(to + in.kv.kv_dim, places);

    T* out = in.out + row * in.out_stride;
    for (int q = 0; q < in.queries_per_kv; ++q) {
      if (q > 0) packed_query = Packs::Load(queries + q * shape.head_dim, places);
      Pairs query(packed_query);
      Normalise<kGroup>(shape, shape.q_norm, places, query);
      angles.Rotate(query);
      query.Scale(in.query_scale);
      // The online softmax of attention_common.cuh, from its own key on.
      float own_score[1] = {query.Dot(key)};
      GroupSums<kGroup>(own_score);
      float max = own_score[0], sum = 1;
      Pairs attended = value;
      for (int base = 0; base < position; base += kTogether) {
        // The first ones are there, unless others have taken their place.
        if (base > 0 || (q > 0 && position > kTogether)) load_keys(base);
        float scores[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) scores[k] = query.Dot(Pairs(keys[k]));
        GroupSums<kGroup>(scores);
        float new_max = max;
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (base + k >= position) scores[k] = -INFINITY;
          new_max = fmaxf(new_max, scores[k]);
        }
        const float keep = exp2f(max - new_max);
        max = new_max;
        sum *= keep;
        attended.Scale(keep);
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const float weight = exp2f(scores[k] - max);
          sum += weight;
          attended.ForEach(Pairs(values[k]), [&](float& mine, float its) { mine += weight * its; });
        }
      }
      attended.Scale(__fdividef(1.0f, sum));
      const int head = kv_head * in.queries_per_kv + q;
      attended.Store(out + head * shape.head_dim, places);
      if (!has_unit || head != shape.num_heads - 1) continue;
      for (int i = shape.num_heads * shape.head_dim + slot; i < in.out_stride; i += kGroup) {
        out[i] = FromFloat<T>(0.0f);
      }
    }
    if (t + 1 < in.count) angles = LaneAngles<kPairs, kChunks>(shape, position + 1, places);
  }
}

template <typename T, int kPairs, int kChunks, int kGroup>
cudaError_t Launch(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                   const RowPositions& rows, int contexts, T* out, cudaStream_t stream) {
  const int64_t q_dim = int64_t{shape.num_heads} * shape.head_dim;
  const LocalContexts<T> in{
      .qkv = qkv,
      .qkv_stride = Padded(q_dim + 2 * kv.kv_dim),
      .kv = kv,
      .first = rows.first,
      .count = rows.count,
      .queries_per_kv = shape.num_heads / shape.num_kv_heads,
      .query_scale = 1.44269504f / std::sqrt(static_cast<float>(shape.head_dim)),
      .out = out,
      .out_stride = Padded(q_dim)};
  const dim3 grid(contexts, DivideUp(shape.num_kv_heads, kThreads / kGroup));
  return LaunchKernel(LocalAttention<T, kPairs, kChunks, kGroup>, grid, kThreads, 0, stream, shape,
                      in);
}

}  // namespace

template <typename T>
cudaError_t LaunchLocalAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int contexts, T* out,
                                 cudaStream_t stream) {
  if (shape.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  // Two pairs at a time where both halves of what rotates, and of the rest, are even.
  const auto launch = shape.head_dim % 4 != 0 || shape.rope_dims % 4 != 0
                          ? Launch<T, 1, kMaxHeadDim / (2 * kWarp), kWarp>
                      : shape.head_dim <= 2 * kWarp ? Launch<T, 2, 1, kWarp / 2>
                      : shape.head_dim <= 4 * kWarp
                          ? Launch<T, 2, 1, kWarp>
                          : Launch<T, 2, kMaxHeadDim / (4 * kWarp), kWarp>;
  return launch(shape, qkv, kv, rows, contexts, out, stream);
}

template cudaError_t LaunchLocalAttention(const AttentionShape&, const float*,
                                          const KvLayer<float>&, const RowPositions&, int, float*,
                                          cudaStream_t);
template cudaError_t LaunchLocalAttention(const AttentionShape&, const __nv_bfloat16*,
                                          const KvLayer<__nv_bfloat16>&, const RowPositions&, int,
                                          __nv_bfloat16*, cudaStream_t);

}  // namespace photon::cuda
