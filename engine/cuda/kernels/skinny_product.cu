#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/skinny_product.h"

namespace photon::cuda {
namespace {

constexpr int kWarps = 8;      // of a block
constexpr int kTileRows = 16;  // outputs of a block, as the matrix instruction has them
// Steps whose weights are on their way before the first is used.
constexpr int kAhead = 4;
// Of the inputs that a block holds at a time, over all rows.
constexpr int kPanelElements = 16384;

// Sixteen bytes: eight elements of bf16, or sixteen of e4m3.
union Fragment {
  uint4 vector;
  unsigned words[4];
};

enum class Epilogue { kStore, kAdd, kGated };

// A lane of the matrix instruction m16n8k16 holds, for its row, pairs of elements of k. Which
// elements those are does not matter as long as both sides agree, so a lane takes those of sixteen
// bytes of weights, which are next to each other, and one load feeds two instructions or four.
template <typename W>
struct Lanes {
  static constexpr int kElements = sizeof(uint4) / sizeof(W);  // of k, that a lane takes at a time
  static constexpr int kStep = 4 * kElements;                  // and a warp
  // Elements of k after which the weights that are ahead are of the same places in `ahead` again.
  static constexpr int kRound = kStep * kWarps * kAhead;

  int row;  // of weights (and 8 further), and of the input
  int k;    // first element in a step

  __device__ Lanes()
      : row(static_cast<int>(threadIdx.x % kWarp / 4)),
        k(static_cast<int>(threadIdx.x % 4) * kElements) {}
};

// The part of the inputs' k that a block holds at a time, in bf16.
struct Panel {
  int elements;  // of a row
  int stride;    // from a row to the next

  template <typename W>
  static Panel For(int rows, int k) {
    using Place = Lanes<W>;
    const int most = kPanelElements / rows / Place::kRound * Place::kRound;
    const int padded = (k + Place::kStep - 1) / Place::kStep * Place::kStep;
    const int elements = padded < most ? padded : most;
    // The eight lanes that read together take two rows, whose bytes lie in different banks: 64 of
    // each row with bf16, and with e4m3 four times 16, as far apart.
    constexpr int kShift = sizeof(W) == 1 ? 8 : Place::kStep;
    return {elements, elements + (elements * 2 % 128 == 0 ? kShift : 0)};
  }
};

// Four elements of e4m3 as two pairs of bf16, exactly. Sign, exponent and mantissa are put where
// bf16 has them, which makes a number 2^-120 of what it was, also a subnormal one; NaN, which
// weights have not, is lost.
__device__ void Expand(unsigned four, unsigned& low, unsigned& high) {
  const auto expand = [](unsigned two) {  // each in the upper byte of its half
    const unsigned bits = (two & 0x80008000u) | (two >> 4 & 0x07f007f0u);
    constexpr unsigned kTwoTo120 = 0x7b807b80u;
    __nv_bfloat162 pair, scale;
    memcpy(&pair, &bits, sizeof(pair));
    memcpy(&scale, &kTwoTo120, sizeof(scale));
    pair = __hmul2(pair, scale);
    unsigned expanded;
    memcpy(&expanded, &pair, sizeof(expanded));
    return expanded;
  };
  low = expand((four & 0xffu) << 8 | (four & 0xff00u) << 16);
  high = expand((four >> 8 & 0xff00u) | (four & 0xff000000u));
}

// acc += a lane's share of weights a, b [2 rows] times inputs.
__device__ void MultiplyAddFragments(float (&acc)[4], const Fragment& a, const Fragment& b,
                                     const Fragment (&inputs)[1]) {
#pragma unroll
  for (int p = 0; p < 4; p += 2) {
    MultiplyAdd(acc, a.words[p], b.words[p], a.words[p + 1], b.words[p + 1], inputs[0].words[p],
                inputs[0].words[p + 1]);
  }
}
__device__ void MultiplyAddFragments(float (&acc)[4], const Fragment& a, const Fragment& b,
                                     const Fragment (&inputs)[2]) {
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    unsigned a_low, a_high, b_low, b_high;
    Expand(a.words[p], a_low, a_high);
    Expand(b.words[p], b_low, b_high);
    const Fragment& four = inputs[p / 2];
    MultiplyAdd(acc, a_low, b_low, a_high, b_high, four.words[p % 2 * 2],
                four.words[p % 2 * 2 + 1]);
  }
}

// A thread's share of a row of the panel: every step-th chunk of eight elements, from the first.
struct PanelShare {
  int first, step;
  int chunks;    // of the panel's row
  int elements;  // of the input that are left for it; the rest is zero
};

// Puts a share of a row of inputs into the panel.
__device__ void StageRounded(const __nv_bfloat16* from, const PanelShare& share,
                             __nv_bfloat16* to) {
  constexpr int kTogether = 4;  // chunks that are on their way together
  for (int base = share.first; base < share.chunks; base += kTogether * share.step) {
    uint4 chunks[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = (base + i * share.step) * 8;
      chunks[i] = {0, 0, 0, 0};
      if (at < share.elements) chunks[i] = *reinterpret_cast<const uint4*>(from + at);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int chunk = base + i * share.step;
      if (chunk < share.chunks) *reinterpret_cast<uint4*>(to + chunk * 8) = chunks[i];
    }
  }
}

// Likewise of fp32, which is rounded. With a norm it still lacks the row's scale; returns the sum
// of its squares.
__device__ float StageFloats(const float* from, const float* norm, const PanelShare& share,
                             __nv_bfloat16* to) {
  constexpr int kTogether = 4;  // halves of chunks
  float squares = 0;
  for (int base = share.first; base < 2 * share.chunks; base += kTogether * share.step) {
    float4 halves[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = (base + i * share.step) * 4;
      halves[i] = {0, 0, 0, 0};
      if (at < share.elements) halves[i] = Load4(from + at);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int half = base + i * share.step, at = half * 4;
      float4 v = halves[i];
      if (norm != nullptr && at < share.elements) {
        const float4 w = Load4(norm + at);
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        v = {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
      }
      if (half < 2 * share.chunks) Store4(to + at, v);
    }
  }
  return squares;
}

// A block owns sixteen outputs (with kGated eight gates and their eight ups) for all rows; its
// warps take the steps of k in turn and add up at the end. Two blocks share a multiprocessor.
template <typename W, typename Out, Epilogue kEpilogue>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    SkinnyProduct(SkinnyWeights<W> weights, SkinnyInput input, int rows, Panel panel, Out* y) {
  constexpr int kStep = Lanes<W>::kStep;
  const int n = weights.n, k = weights.k;
  __nv_bfloat16* staged = DynamicShared<__nv_bfloat16>();
  __shared__ float squares[kWarps];
  __shared__ float sums[kWarps][kMaxSkinnyRows][kTileRows];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Lanes<W> place;
  const int steps = (k + kStep - 1) / kStep;

  // Outputs of the two weight rows of this lane.
  int first = static_cast<int>(blockIdx.x) * kTileRows + place.row, second = first + kTileRows / 2;
  if (kEpilogue == Epilogue::kGated) {
    first = static_cast<int>(blockIdx.x) * kTileRows / 2 + place.row;
    second = n / 2 + first;
  }
  const bool has_first = first < (kEpilogue == Epilogue::kGated ? n / 2 : n);
  const bool has_second = kEpilogue == Epilogue::kGated ? has_first : second < n;
  const auto load_weights = [&](int step, Fragment& a, Fragment& b) {
    const int at = step * kStep + place.k;
    a.vector = b.vector = {0, 0, 0, 0};
    if (at >= k) return;
    const W* from = weights.data + at;
    if (has_first) a.vector = *reinterpret_cast<const uint4*>(from + int64_t{first} * k);
    if (has_second) b.vector = *reinterpret_cast<const uint4*>(from + int64_t{second} * k);
  };

  // The first weights are on their way while the work before ends and the inputs are prepared.
  Fragment ahead[kAhead][2];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    load_weights(warp + i * kWarps, ahead[i][0], ahead[i][1]);
  }
  if (input.norm != nullptr) PrefetchBlock(input.norm, k);
  AwaitPrevious();
  float acc[4] = {};
  // Each row's inputs are prepared by some of the warps, the same number for all.
  static_assert(kMaxSkinnyRows <= kWarps);
  const int warps_per_row = rows == 1   ? kWarps
                            : rows == 2 ? kWarps / 2
                            : rows <= 4 ? kWarps / 4
                                        : 1;
  const int my_row = warp / warps_per_row, my_part = warp % warps_per_row;
  float my_squares = 0;
  for (int begin = 0; begin < k; begin += panel.elements) {
    if (begin > 0) __syncthreads();  // the panel before has been read
    if (my_row < rows) {
      const int64_t from = int64_t{my_row} * k + begin;
      __nv_bfloat16* to = staged + my_row * panel.stride;
      const PanelShare share{.first = my_part * kWarp + lane,
                             .step = warps_per_row * kWarp,
                             .chunks = panel.elements / 8,
                             .elements = k - begin < panel.elements ? k - begin : panel.elements};
      if (input.act != nullptr) {
        StageRounded(input.act + from, share, to);
      } else {
        my_squares += StageFloats(input.x + from,
                                  input.norm == nullptr ? nullptr : input.norm + begin, share, to);
      }
    }
    __syncthreads();  // the panel is there

    const int end = begin + panel.elements < k ? begin + panel.elements : k;
    const int last_step = (end + kStep - 1) / kStep;
    for (int base = begin / kStep + warp; base < last_step; base += kAhead * kWarps) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int step = base + i * kWarps;
        const Fragment a = ahead[i][0], b = ahead[i][1];
        load_weights(step + kAhead * kWarps, ahead[i][0], ahead[i][1]);
        if (step >= steps) continue;  // the same for the whole warp
        Fragment c[Lanes<W>::kElements / 8] = {};
        if (place.row < rows) {
          const int in_panel = step * kStep - begin + place.k;
          const auto* from =
              reinterpret_cast<const uint4*>(staged + place.row * panel.stride + in_panel);
#pragma unroll
          for (int f = 0; f < Lanes<W>::kElements / 8; ++f) c[f].vector = from[f];
        }
        MultiplyAddFragments(acc, a, b, c);
      }
    }
  }

  if (input.norm != nullptr) {
    const float sum = WarpSum(my_squares);
    if (lane == 0) squares[warp] = sum;
  }
  // A lane's results are of weight rows lane / 4 and 8 further, input rows lane % 4 * 2 and the
  // next.
  const int column = lane % 4 * 2;
  sums[warp][column][place.row] = acc[0];
  sums[warp][column + 1][place.row] = acc[1];
  sums[warp][column][place.row + 8] = acc[2];
  sums[warp][column + 1][place.row + 8] = acc[3];
  __syncthreads();  // every warp's share is there
  // Without the bias; the norm's scale is the same for all of a row.
  const auto total = [&](int row, int output) {
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += sums[i][row][output];
    if (input.norm == nullptr) return sum;
    float square = 0;
    for (int i = 0; i < warps_per_row; ++i) square += squares[row * warps_per_row + i];
    return sum / sqrtf(square / input.width + input.eps);
  };
  const auto scaled = [&](float value, int at) {
    return sizeof(W) == 1 ? value * weights.scales[at] : value;
  };
  if constexpr (kEpilogue == Epilogue::kGated) {
    for (int i = threadIdx.x; i < rows * kTileRows / 2; i += kWarps * kWarp) {
      const int row = i / (kTileRows / 2), output = i % (kTileRows / 2);
      const int at = static_cast<int>(blockIdx.x) * kTileRows / 2 + output;
      if (at >= n / 2) continue;
      const float gate = scaled(total(row, output), at);
      const float up = scaled(total(row, output + kTileRows / 2), n / 2 + at);
      y[int64_t{row} * (n / 2) + at] = FromFloat<Out>(GatedUp(gate, up));
    }
  } else {
    for (int i = threadIdx.x; i < rows * kTileRows; i += kWarps * kWarp) {
      const int row = i / kTileRows, output = i % kTileRows;
      const int at = static_cast<int>(blockIdx.x) * kTileRows + output;
      if (at >= n) continue;
      float value = scaled(total(row, output), at);
      if (weights.bias != nullptr) value += weights.bias[at];
      Out* to = y + int64_t{row} * n + at;
      if (kEpilogue == Epilogue::kAdd) value += ToFloat(*to);
      *to = FromFloat<Out>(value);
    }
  }
}

template <Epilogue kEpilogue, typename W, typename Out>
cudaError_t Launch(const SkinnyWeights<W>& w, const SkinnyInput& input, int rows, Out* y,
                   cudaStream_t stream) {
  if (rows > kMaxSkinnyRows || w.k % Lanes<W>::kElements != 0) return cudaErrorInvalidValue;
  const unsigned blocks = DivideUp(w.n, kTileRows), threads = kWarps * kWarp;
  const Panel panel = Panel::For<W>(rows, w.k);
  const size_t shared_bytes = size_t{sizeof(__nv_bfloat16)} * rows * panel.stride;
  return LaunchKernel(SkinnyProduct<W, Out, kEpilogue>, blocks, threads, shared_bytes, stream, w,
                      input, rows, panel, y);
}

}  // namespace

template <typename W, typename Out>
cudaError_t LaunchSkinnyProduct(const SkinnyWeights<W>& w, const SkinnyInput& input, int rows,
                                bool add, Out* y, cudaStream_t stream) {
  return add ? Launch<Epilogue::kAdd>(w, input, rows, y, stream)
             : Launch<Epilogue::kStore>(w, input, rows, y, stream);
}

template <typename W>
cudaError_t LaunchSkinnyGatedProduct(const SkinnyWeights<W>& w, const SkinnyInput& input, int rows,
                                     __nv_bfloat16* out, cudaStream_t stream) {
  return Launch<Epilogue::kGated>(w, input, rows, out, stream);
}

#define PHOTON_INSTANTIATE(W)                                                                      \
  template cudaError_t LaunchSkinnyProduct(const SkinnyWeights<W>&, const SkinnyInput&, int, bool, \
                                           float*, cudaStream_t);                                  \
  template cudaError_t LaunchSkinnyProduct(const SkinnyWeights<W>&, const SkinnyInput&, int, bool, \
                                           __nv_bfloat16*, cudaStream_t);                          \
  template cudaError_t LaunchSkinnyGatedProduct(const SkinnyWeights<W>&, const SkinnyInput&, int,  \
                                                __nv_bfloat16*, cudaStream_t);
PHOTON_INSTANTIATE(__nv_bfloat16)
PHOTON_INSTANTIATE(__nv_fp8_e4m3)
#undef PHOTON_INSTANTIATE

}  // namespace photon::cuda
