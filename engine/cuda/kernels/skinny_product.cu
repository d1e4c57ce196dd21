#include "engine/cuda/kernels/device_common.cuh"
#include "engine/cuda/kernels/skinny_product.h"

namespace photon::cuda {
namespace {

constexpr int kWarps = 8;          // of a block
constexpr int kStepElements = 32;  // of k, that a warp takes at a time
constexpr int kTileRows = 16;      // outputs of a block, as the matrix instruction has them
// Steps whose weights are on their way before the first is used.
constexpr int kAhead = 4;
// Elements of k after which the weights that are ahead are of the same places in `ahead` again.
constexpr int kRoundElements = kStepElements * kWarps * kAhead;
// Of the inputs that a block holds at a time, over all rows.
constexpr int kPanelElements = 16 * kRoundElements;

// Sixteen bytes of bf16 along k.
union Fragment {
  uint4 vector;
  unsigned pairs[4];
};

enum class Epilogue { kStore, kAdd, kGated };

// A lane of the matrix instruction m16n8k16 holds, for its row, pairs of elements of k. Which
// elements those are does not matter as long as both sides agree, so a lane takes eight that are
// next to each other, and one load of sixteen bytes feeds two instructions.
struct LanePlace {
  int row;  // of weights (and 8 further), and of the input
  int k;    // first element in a step
};
__device__ LanePlace PlaceOfLane() {
  const int lane = threadIdx.x % kWarp;
  return {lane / 4, lane % 4 * 8};
}

// The part of the inputs' k that a block holds at a time, in bf16.
struct Panel {
  int elements;  // of a row
  int stride;    // from a row to the next

  Panel(int rows, int k) {
    const int most = kPanelElements / rows / kRoundElements * kRoundElements;
    const int padded = (k + kStepElements - 1) / kStepElements * kStepElements;
    elements = padded < most ? padded : most;
    // The eight lanes that read together take two rows: their 64 bytes each lie in different banks.
    stride = elements + (elements * 2 % 128 == 0 ? kStepElements : 0);
  }
};

// Eight elements of the inputs, rounded. With a norm they still lack the row's scale, and their
// squares are added to `squares`.
__device__ Fragment LoadInput(const SkinnyInput& input, int64_t from, int at, float& squares) {
  Fragment fragment;
  if (input.act != nullptr) {
    fragment.vector = *reinterpret_cast<const uint4*>(input.act + from);
    return fragment;
  }
  alignas(16) __nv_bfloat16 rounded[8];
#pragma unroll
  for (int half = 0; half < 8; half += 4) {
    float4 v = Load4(input.x + from + half);
    if (input.norm != nullptr) {
      const float4 w = Load4(input.norm + at + half);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      v = {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
    }
    Store4(rounded + half, v);
  }
  fragment.vector = *reinterpret_cast<const uint4*>(rounded);
  return fragment;
}

// A block owns sixteen outputs (with kGated eight gates and their eight ups) for all rows; its
// warps take the steps of k in turn and add up at the end.
template <typename Out, Epilogue kEpilogue>
__global__ void __launch_bounds__(kWarps* kWarp)
    SkinnyProduct(const __nv_bfloat16* w, int n, int k, const float* bias, SkinnyInput input,
                  int rows, Panel panel, Out* y) {
  constexpr int kThreads = kWarps * kWarp;
  __nv_bfloat16* staged = DynamicShared<__nv_bfloat16>();
  __shared__ float squares[kMaxSkinnyRows][kWarps];
  __shared__ float sums[kWarps][kMaxSkinnyRows][kTileRows];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const LanePlace place = PlaceOfLane();
  const int steps = (k + kStepElements - 1) / kStepElements;

  // Outputs of the two weight rows of this lane.
  int first = static_cast<int>(blockIdx.x) * kTileRows + place.row, second = first + kTileRows / 2;
  if (kEpilogue == Epilogue::kGated) {
    first = static_cast<int>(blockIdx.x) * kTileRows / 2 + place.row;
    second = n / 2 + first;
  }
  const bool has_first = first < (kEpilogue == Epilogue::kGated ? n / 2 : n);
  const bool has_second = kEpilogue == Epilogue::kGated ? has_first : second < n;
  const auto load_weights = [&](int step, Fragment& a, Fragment& b) {
    const int at = step * kStepElements + place.k;
    a.vector = b.vector = {0, 0, 0, 0};
    if (at >= k) return;
    if (has_first) a.vector = *reinterpret_cast<const uint4*>(w + int64_t{first} * k + at);
    if (has_second) b.vector = *reinterpret_cast<const uint4*>(w + int64_t{second} * k + at);
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
  const int chunks = panel.elements / 8;
  for (int begin = 0; begin < k; begin += panel.elements) {
    if (begin > 0) __syncthreads();  // the panel before has been read
    for (int row = 0; row < rows; ++row) {
      float sum = 0;
      for (int i = threadIdx.x; i < chunks; i += kThreads) {
        const int at = begin + i * 8;
        Fragment fragment{};
        if (at < k) fragment = LoadInput(input, int64_t{row} * k + at, at, sum);
        *reinterpret_cast<uint4*>(staged + row * panel.stride + i * 8) = fragment.vector;
      }
      if (input.norm == nullptr) continue;
      sum = WarpSum(sum);
      if (lane == 0) squares[row][warp] = begin == 0 ? sum : squares[row][warp] + sum;
    }
    __syncthreads();  // the panel is there

    const int end = begin + panel.elements < k ? begin + panel.elements : k;
    const int last_step = (end + kStepElements - 1) / kStepElements;
    for (int base = begin / kStepElements + warp; base < last_step; base += kAhead * kWarps) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int step = base + i * kWarps;
        const Fragment a = ahead[i][0], b = ahead[i][1];
        load_weights(step + kAhead * kWarps, ahead[i][0], ahead[i][1]);
        if (step >= steps) continue;  // the same for the whole warp
        Fragment c{};
        if (place.row < rows) {
          const int in_panel = step * kStepElements - begin + place.k;
          c.vector = *reinterpret_cast<const uint4*>(staged + place.row * panel.stride + in_panel);
        }
#pragma unroll
        for (int p = 0; p < 4; p += 2) {
          MultiplyAdd(acc, a.pairs[p], b.pairs[p], a.pairs[p + 1], b.pairs[p + 1], c.pairs[p],
                      c.pairs[p + 1]);
        }
      }
    }
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
    for (int i = 0; i < kWarps; ++i) square += squares[row][i];
    return sum / sqrtf(square / input.width + input.eps);
  };
  if constexpr (kEpilogue == Epilogue::kGated) {
    for (int i = threadIdx.x; i < rows * kTileRows / 2; i += kWarps * kWarp) {
      const int row = i / (kTileRows / 2), output = i % (kTileRows / 2);
      const int at = static_cast<int>(blockIdx.x) * kTileRows / 2 + output;
      if (at >= n / 2) continue;
      const float gate = total(row, output), up = total(row, output + kTileRows / 2);
      y[int64_t{row} * (n / 2) + at] = FromFloat<Out>(gate / (1.0f + expf(-gate)) * up);
    }
  } else {
    for (int i = threadIdx.x; i < rows * kTileRows; i += kWarps * kWarp) {
      const int row = i / kTileRows, output = i % kTileRows;
      const int at = static_cast<int>(blockIdx.x) * kTileRows + output;
      if (at >= n) continue;
      float value = total(row, output);
      if (bias != nullptr) value += bias[at];
      Out* to = y + int64_t{row} * n + at;
      if (kEpilogue == Epilogue::kAdd) value += ToFloat(*to);
      *to = FromFloat<Out>(value);
    }
  }
}

template <typename Out, Epilogue kEpilogue>
cudaError_t Launch(const __nv_bfloat16* w, int n, int k, const float* bias,
                   const SkinnyInput& input, int rows, Out* y, cudaStream_t stream) {
  if (rows > kMaxSkinnyRows) return cudaErrorInvalidValue;
  const unsigned blocks = DivideUp(n, kTileRows), threads = kWarps * kWarp;
  const Panel panel(rows, k);
  const size_t shared_bytes = size_t{sizeof(__nv_bfloat16)} * rows * panel.stride;
  return LaunchKernel(SkinnyProduct<Out, kEpilogue>, blocks, threads, shared_bytes, stream, w, n, k,
                      bias, input, rows, panel, y);
}

}  // namespace

template <typename Out>
cudaError_t LaunchSkinnyProduct(const __nv_bfloat16* w, int n, int k, const float* bias,
                                const SkinnyInput& input, int rows, bool add, Out* y,
                                cudaStream_t stream) {
  return add ? Launch<Out, Epilogue::kAdd>(w, n, k, bias, input, rows, y, stream)
             : Launch<Out, Epilogue::kStore>(w, n, k, bias, input, rows, y, stream);
}

template cudaError_t LaunchSkinnyProduct(const __nv_bfloat16*, int, int, const float*,
                                         const SkinnyInput&, int, bool, float*, cudaStream_t);
template cudaError_t LaunchSkinnyProduct(const __nv_bfloat16*, int, int, const float*,
                                         const SkinnyInput&, int, bool, __nv_bfloat16*,
                                         cudaStream_t);

cudaError_t LaunchSkinnyGatedProduct(const __nv_bfloat16* w, int n, int k, const SkinnyInput& input,
                                     int rows, __nv_bfloat16* out, cudaStream_t stream) {
  return Launch<__nv_bfloat16, Epilogue::kGated>(w, n, k, nullptr, input, rows, out, stream);
}

}  // namespace photon::cuda
