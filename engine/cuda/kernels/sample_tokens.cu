#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/sample_tokens.h"
#include "engine/philox.h"

namespace photon::cuda {
namespace {

using Mass = unsigned long long;  // weights in units of 2^-40

// A block owns one lane's logits, which stay in the second-level cache from pass to pass.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
// Vectors of a thread that are on their way together: what they cost is the wait for them.
constexpr int kAhead = 8;
// Where each of them takes many instructions.
constexpr int kFewAhead = 4;

// Weights are in [0, 1], so their bits as floats are below 2^30 and in the order of the weights:
// three digits of ten bits.
constexpr int kDigitBits = 10;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerLane = kBins / kWarp;

struct Shared {
  Mass bins[kBins];  // items, or mass, of each digit
  Mass selected_above;
  Mass warp_mass[kWarps];
  unsigned warp_ties[kWarps];
  float warp_value[kWarps];
  float warp_sum[kWarps];
  int warp_id[kWarps];
  unsigned selected_digit;
  int token;
};

// Four logits from id on. Those beyond `end` weigh nothing.
__device__ float4 LoadLogits(const float* logits, int id, int end) {
  if (id >= end) return {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float4 four = Load4(logits + id);
  if (id + 1 >= end) four.y = -INFINITY;
  if (id + 2 >= end) four.z = -INFINITY;
  if (id + 3 >= end) four.w = -INFINITY;
  return four;
}

// Calls f(id, vectors) for this thread's logits of begin .. end - 1, in order of ids: vector k has
// those of ids id + k * 4 * kTogether .. + 3. kTogether threads share the logits, and all of them
// make the same number of calls.
template <int kTogether, int kVectors, typename F>
__device__ void ForEachVectors(const float* logits, int begin, int end, int thread, F f) {
  for (int at = begin; at < end; at += kTogether * kVectors * 4) {
    const int id = at + thread * 4;
    float4 vectors[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      vectors[k] = LoadLogits(logits, id + k * kTogether * 4, end);
    }
    f(id, vectors);
  }
}

// Calls f(id, logit) for this thread's logits, and for some of -infinity, in order of ids.
template <typename F>
__device__ void ForEachLogit(const float* logits, int vocab, F f) {
  const auto each = [&](int id, const float4(&vectors)[kFewAhead]) {
#pragma unroll
    for (int k = 0; k < kFewAhead; ++k, id += kThreads * 4) {
      f(id, vectors[k].x);
      f(id + 1, vectors[k].y);
      f(id + 2, vectors[k].z);
      f(id + 3, vectors[k].w);
    }
  };
  ForEachVectors<kThreads, kFewAhead>(logits, 0, vocab, threadIdx.x, each);
}

// A token's probability relative to the most probable one, after the temperature.
struct Weigher {
  float largest, inverse_temperature;

  __device__ float operator()(float logit) const {
    return expf((logit - largest) * inverse_temperature);
  }
};

__device__ unsigned KeyOf(float weight) {
  return __float_as_uint(weight);
}

__device__ Mass MassOf(float weight) {
  return __float2ull_rn(weight * 0x1p40f);
}

__device__ bool Precedes(float value, int id, float other_value, int other_id) {
  return value > other_value || (value == other_value && id < other_id);
}

struct Best {
  float value;
  int id;
};

// The largest value, lowest id on a tie, over the warp.
__device__ Best WarpBest(Best best) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(kAllLanes, best.value, offset);
    const int id = __shfl_xor_sync(kAllLanes, best.id, offset);
    if (Precedes(value, id, best.value, best.id)) best = {value, id};
  }
  return best;
}

// The best token of some, and their sum of exponentials relative to that one's logit, in one walk
// over the logits (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
struct BestAndSum {
  Best best{-INFINITY, INT_MAX};
  float sum = 0;

  __device__ static float Exp(float difference) { return exp2f(difference * 1.44269504f); }

  // Vectors of ids that are larger than those before.
  __device__ void Add(int id, const float4 (&vectors)[kAhead]) {
    float largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const float4 v = vectors[k];
      largest = fmaxf(largest, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
    if (largest == -INFINITY) return;
    if (largest > best.value) {
      sum *= Exp(best.value - largest);
      best.value = largest;
#pragma unroll
      for (int k = kAhead - 1; k >= 0; --k) {
        const float4 v = vectors[k];
        const int first = id + k * kThreads * 4;
        if (v.w == largest) best.id = first + 3;
        if (v.z == largest) best.id = first + 2;
        if (v.y == largest) best.id = first + 1;
        if (v.x == largest) best.id = first;
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const float4 v = vectors[k];
      sum += (Exp(v.x - best.value) + Exp(v.y - best.value)) +
             (Exp(v.z - best.value) + Exp(v.w - best.value));
    }
  }

  // Those of all lanes, in every lane.
  __device__ void MergeLanes() {
    const float own = best.value;
    best = WarpBest(best);
    // Lanes without logits have none to compare.
    sum = WarpSum(own == -INFINITY ? 0.0f : sum * Exp(own - best.value));
  }
};

// Those of all threads, in every thread.
__device__ BestAndSum BlockBestAndSum(BestAndSum mine, Shared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  mine.MergeLanes();
  __syncthreads();  // earlier results have been read
  if (lane == 0) {
    shared.warp_value[warp] = mine.best.value;
    shared.warp_id[warp] = mine.best.id;
    shared.warp_sum[warp] = mine.sum;
  }
  __syncthreads();  // every warp's are there
  BestAndSum all;
  if (lane < kWarps) {
    all.best = {shared.warp_value[lane], shared.warp_id[lane]};
    all.sum = shared.warp_sum[lane];
  }
  all.MergeLanes();
  return all;
}

// The tokens that the filters keep: weights above `floor`, the first `ties` tokens whose weight is
// just `floor`, and of these the ones that reach `minimum`. Floor zero keeps all that weigh
// anything.
struct Kept {
  unsigned floor = 0;  // keys
  unsigned minimum = 0;
  unsigned ties = 0;
};

// Finds, from the largest key down, the first one at which the sum of `amount` over it and all
// larger keys reaches `target`; returns it and the sum over the larger ones. The sum over all keys
// does reach it.
//   for_each  calls its argument with (key, amount) for this thread's share of the items
struct Selected {
  unsigned key;
  Mass above;
};
template <typename ForEach>
__device__ Selected Select(Mass target, ForEach for_each, Shared& shared) {
  unsigned prefix = 0;
  Mass above = 0;
  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();  // the previous digit has been read
    for (int b = threadIdx.x; b < kBins; b += kThreads) shared.bins[b] = 0;
    __syncthreads();  // the bins are empty
    for_each([&](unsigned key, Mass amount) {
      if (key >> (shift + kDigitBits) == prefix) {
        atomicAdd(&shared.bins[key >> shift & (kBins - 1)], amount);
      }
    });
    __syncthreads();  // the bins are full
    if (threadIdx.x < kWarp) {
      // Lane 0 has the largest keys, so that a prefix sum over lanes goes downwards.
      const int first_bin = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerLane;
      Mass mine = 0;
      for (int b = 0; b < kBinsPerLane; ++b) mine += shared.bins[first_bin - b];
      Mass through = mine;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const Mass other = __shfl_up_sync(kAllLanes, through, offset);
        if (threadIdx.x >= static_cast<unsigned>(offset)) through += other;
      }
      Mass reached = above + through - mine;
      if (reached < target && above + through >= target) {
        int bin = first_bin;
        while (reached + shared.bins[bin] < target) reached += shared.bins[bin--];
        shared.selected_digit = bin;
        shared.selected_above = reached;
      }
    }
    __syncthreads();  // the digit is known
    prefix = prefix << kDigitBits | shared.selected_digit;
    above = shared.selected_above;
  }
  return {prefix, above};
}

// Sum over the block, in every thread.
__device__ Mass BlockMass(Mass mass, Shared& shared) {
  mass = WarpSum(mass);
  __syncthreads();  // earlier results have been read
  if (threadIdx.x % kWarp == 0) shared.warp_mass[threadIdx.x / kWarp] = mass;
  __syncthreads();  // every warp's sum is there
  const int lane = threadIdx.x % kWarp;
  return WarpSum(lane < kWarps ? shared.warp_mass[lane] : Mass{0});
}

__device__ void KeepTopK(const float* logits, int vocab, const Weigher& weight, int top_k,
                         Kept& kept, Shared& shared) {
  const auto for_each = [&](auto f) {
    ForEachLogit(logits, vocab, [&](int, float logit) {
      const unsigned key = KeyOf(weight(logit));
      if (key > 0) f(key, Mass{1});
    });
  };
  Mass mine = 0;
  for_each([&](unsigned, Mass one) { mine += one; });
  if (BlockMass(mine, shared) <= static_cast<Mass>(top_k)) return;
  const Selected selected = Select(top_k, for_each, shared);
  kept.floor = selected.key;
  kept.ties = static_cast<unsigned>(top_k - selected.above);
}

// Of the tokens kept so far, the fewest whose mass reaches top_p of theirs.
__device__ void KeepTopP(const float* logits, int vocab, const Weigher& weight, float top_p,
                         Kept& kept, Shared& shared) {
  const auto for_each = [&](auto f) {
    ForEachLogit(logits, vocab, [&](int, float logit) {
      const float w = weight(logit);
      if (KeyOf(w) > kept.floor) f(KeyOf(w), MassOf(w));
    });
    if (threadIdx.x == 0 && kept.ties > 0) {
      f(kept.floor, kept.ties * MassOf(__uint_as_float(kept.floor)));
    }
  };
  Mass mine = 0;
  for_each([&](unsigned, Mass mass) { mine += mass; });
  const Mass total = BlockMass(mine, shared);
  const Mass wanted = static_cast<Mass>(ceil(static_cast<double>(top_p) * total));
  const Mass target = wanted < 1 ? 1 : wanted < total ? wanted : total;
  const Selected selected = Select(target, for_each, shared);
  const Mass each = MassOf(__uint_as_float(selected.key));
  const Mass ties = (target - selected.above + each - 1) / each;
  kept.ties =
      static_cast<unsigned>(selected.key == kept.floor && ties > kept.ties ? kept.ties : ties);
  kept.floor = selected.key;
}

// This warp's share of the vocabulary, walked kWarpStep ids at a time in order, four to a lane.
constexpr int kWarpStep = kWarp * 4;
struct WarpRange {
  int begin, end;
};
__device__ WarpRange RangeOfWarp(int vocab) {
  const int per_warp = static_cast<int>(DivideUp(DivideUp(vocab, kWarps), kWarpStep)) * kWarpStep;
  const int begin = threadIdx.x / kWarp * per_warp;
  return {begin, begin + per_warp < vocab ? begin + per_warp : vocab};
}

// The masses of a lane's four tokens, zero for those that are not kept.
struct FourMasses {
  Mass of[4];
  __device__ Mass Sum() const { return (of[0] + of[1]) + (of[2] + of[3]); }
};

// `ties_before` counts the tokens before this step of the warp whose key is the floor, and is
// advanced by this step. All lanes take part.
__device__ FourMasses KeptMasses(float4 logits, const Weigher& weight, const Kept& kept,
                                 unsigned& ties_before) {
  const float weights[4] = {weight(logits.x), weight(logits.y), weight(logits.z), weight(logits.w)};
  FourMasses masses;
  if (kept.floor == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      masses.of[i] = KeyOf(weights[i]) >= kept.minimum ? MassOf(weights[i]) : 0;
    }
    return masses;
  }
  const unsigned lower_lanes = (1u << threadIdx.x % kWarp) - 1;
  unsigned rank = ties_before;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned tied = __ballot_sync(kAllLanes, KeyOf(weights[i]) == kept.floor);
    rank += __popc(tied & lower_lanes);
    ties_before += __popc(tied);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned key = KeyOf(weights[i]);
    const bool is_tie = key == kept.floor;
    const bool is_kept = key >= kept.minimum && (key > kept.floor || (is_tie && rank < kept.ties));
    if (is_tie) ++rank;
    masses.of[i] = is_kept ? MassOf(weights[i]) : 0;
  }
  return masses;
}

// The first kept token, in order of ids, at which the cumulative mass exceeds draw * 2^-32 of all.
__device__ int Draw(const float* logits, int vocab, const Weigher& weight, const Kept& kept,
                    uint32_t draw, Shared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto [begin, end] = RangeOfWarp(vocab);
  unsigned ties_before = 0;
  if (kept.floor > 0) {
    unsigned ties = 0;
    const auto count = [&](int, const float4(&vectors)[kFewAhead]) {
#pragma unroll
      for (const float4& v : vectors) {
        ties += (KeyOf(weight(v.x)) == kept.floor) + (KeyOf(weight(v.y)) == kept.floor) +
                (KeyOf(weight(v.z)) == kept.floor) + (KeyOf(weight(v.w)) == kept.floor);
      }
    };
    ForEachVectors<kWarp, kFewAhead>(logits, begin, end, lane, count);
    ties = WarpSum(ties);
    if (lane == 0) shared.warp_ties[warp] = ties;
    __syncthreads();  // every warp's ties are counted
    for (int w = 0; w < warp; ++w) ties_before += shared.warp_ties[w];
  }

  Mass mine = 0;
  unsigned ties_so_far = ties_before;
  const auto add = [&](int, const float4(&vectors)[kFewAhead]) {
#pragma unroll
    for (const float4& v : vectors) mine += KeptMasses(v, weight, kept, ties_so_far).Sum();
  };
  ForEachVectors<kWarp, kFewAhead>(logits, begin, end, lane, add);
  mine = WarpSum(mine);
  __syncthreads();  // earlier results have been read
  if (lane == 0) shared.warp_mass[warp] = mine;
  __syncthreads();  // every warp's mass is there
  Mass before = 0, total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.warp_mass[w];
    total += shared.warp_mass[w];
  }
  // Whole part of total * draw / 2^32.
  const Mass target = __umul64hi(total, draw) << 32 | (total * draw) >> 32;
  if (before <= target && target < before + mine) {  // true for one warp
    ties_so_far = ties_before;
    for (int at = begin; at < end; at += kWarpStep) {
      const int id = at + lane * 4;
      const FourMasses here = KeptMasses(LoadLogits(logits, id, end), weight, kept, ties_so_far);
      Mass through = here.Sum();
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const Mass other = __shfl_up_sync(kAllLanes, through, offset);
        if (lane >= offset) through += other;
      }
      const unsigned beyond = __ballot_sync(kAllLanes, before + through > target);
      if (beyond != 0) {
        if (lane == __ffs(static_cast<int>(beyond)) - 1) {
          Mass reached = before + through - here.Sum();
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (reached <= target && target < reached + here.of[i]) shared.token = id + i;
            reached += here.of[i];
          }
        }
        break;
      }
      before += __shfl_sync(kAllLanes, through, kWarp - 1);
    }
  }
  __syncthreads();  // the token is known
  return shared.token;
}

// Two blocks share a multiprocessor: one reads while the other waits at its barriers.
__global__ void __launch_bounds__(kThreads, 2)
    SampleTokens(const float* all_logits, int64_t stride, int vocab, const RowSampling* rows,
                 SlotMap slots, int first_lane, SampledOutput output) {
  AwaitPrevious();
  __shared__ Shared shared;
  const float* logits = all_logits + blockIdx.x * stride;
  const int lane = first_lane + static_cast<int>(blockIdx.x), row = lane / slots.per_row;
  const int slot = lane % slots.per_row * slots.stride + slots.first;
  const RowSampling& sampling = rows[row];
  const int num_forced = sampling.num_forced;

  BestAndSum all;
  ForEachVectors<kThreads, kAhead>(
      logits, 0, vocab, threadIdx.x,
      [&](int id, const float4(&vectors)[kAhead]) { all.Add(id, vectors); });
  // Few slots are forced: the others' logits do not wait to know.
  if (slot < num_forced) return;
  all = BlockBestAndSum(all, shared);
  const Best best = all.best;
  const float log_sum = best.value + logf(all.sum);

  int token = best.id;
  // A temperature so small that its inverse overflows means greedy too.
  if (sampling.temperature >= 1e-30f) {
    const Weigher weight{best.value, 1.0f / sampling.temperature};
    Kept kept;
    if (sampling.top_k > 0 && sampling.top_k < vocab) {
      KeepTopK(logits, vocab, weight, sampling.top_k, kept, shared);
    }
    if (sampling.top_p < 1.0f) KeepTopP(logits, vocab, weight, sampling.top_p, kept, shared);
    if (sampling.min_p > 0.0f) kept.minimum = KeyOf(sampling.min_p);
    const auto words = Philox4x32(
        {static_cast<uint32_t>(sampling.first_token + slot), sampling.sample, sampling.query, 0},
        {static_cast<uint32_t>(sampling.seed), static_cast<uint32_t>(sampling.seed >> 32)});
    token = Draw(logits, vocab, weight, kept, words[0], shared);
  }

  const int64_t place = int64_t{row} * output.meta_tokens + slot;
  if (threadIdx.x == 0) {
    const float logit = token == best.id ? best.value : logits[token];
    output.tokens[place] = token;
    output.sampled[place] = {token, logit - log_sum};
  }
  const int count = sampling.top_logprobs < vocab ? sampling.top_logprobs : vocab;
  Best last{INFINITY, -1};
  for (int n = 0; n < count; ++n) {
    Best next{-INFINITY, INT_MAX};
    ForEachLogit(logits, vocab, [&](int id, float logit) {
      if (Precedes(last.value, last.id, logit, id) && logit > next.value) next = {logit, id};
    });
    last = BlockBestAndSum({next}, shared).best;
    if (threadIdx.x == 0) {
      output.top[place * output.top_stride + n] = {last.id, last.value - log_sum};
    }
  }
}

}  // namespace

cudaError_t LaunchSampleTokens(const float* logits, int64_t stride, int vocab,
                               const RowSampling* rows, const SlotMap& slots, int first_lane, int n,
                               const SampledOutput& output, cudaStream_t stream) {
  return LaunchKernel(SampleTokens, n, kThreads, 0, stream, logits, stride, vocab, rows, slots,
                      first_lane, output);
}

}  // namespace photon::cuda
