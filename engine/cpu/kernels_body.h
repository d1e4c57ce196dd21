// The kernels' source, written once in compiler vectors and compiled once per instruction set.
//
// The including file defines PHOTON_KERNELS_NAMESPACE and is compiled with the flags of its set.
// Nothing here may use an inline function of another header that the linker could share with code
// compiled for a plainer processor: only built-ins and what this file defines.
//
// A "vector" is kLanes floats. GEMM tiles hold kTileRows x kTileVectors accumulators in registers.
#include <cstdint>

#include "engine/cpu/kernels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace photon::PHOTON_KERNELS_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileVectors = 4;
constexpr int kTileRows = 6;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileVectors = 2;
constexpr int kTileRows = 4;
#else
constexpr int kLanes = 4;
constexpr int kTileVectors = 2;
constexpr int kTileRows = 4;
#endif
constexpr int kTileColumns = kTileVectors * kLanes;
static_assert(kPanelColumns % kTileColumns == 0);

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

inline Floats Splat(float value) {
  return Floats{} + value;
}

inline Floats Load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline Floats Load(const BFloat16* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof(h));
  return (Floats)(__builtin_convertvector(h, Words) << 16);
}

inline void Store(float* p, Floats v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

inline void Store(BFloat16* p, Floats v) {
  const Words w = (Words)v;
  const Halves h = __builtin_convertvector((w + 0x7fff + ((w >> 16) & 1)) >> 16, Halves);
  __builtin_memcpy(&p->bits, &h, sizeof(h));
}

inline float LoadOne(const float* p) {
  return *p;
}

inline float LoadOne(const BFloat16* p) {
  const uint32_t bits = uint32_t{p->bits} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void StoreOne(float* p, float value) {
  *p = value;
}

inline void StoreOne(BFloat16* p, float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  p->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float Sum(Floats v) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// exp(x), relative error below 3e-7; x is clamped to the range of normal results.
inline Floats Exp(Floats x) {
  const Floats low = Splat(-87.0f), high = Splat(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats n = (x * 1.44269504f + kRound) - kRound;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = Splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * (Floats)exponent;
}

inline float ExpOne(float x) {
  const Floats v = Exp(Splat(x));
  return v[0];
}

// BFloat16 rows that enter a matrix product are whole pairs.
inline void ZeroFill(float*, int) {}
inline void ZeroFill(BFloat16* out, int n) {
  if (n % 2 != 0) out[n].bits = 0;
}

// ---- Matrix product
// -------------------------------------------------------------------------------

// One k step of a panel holds kPanelColumns columns; for BFloat16 two k values of each,
// interleaved.
inline int KSteps(const float*, int k) {
  return k;
}
inline int KSteps(const BFloat16*, int k) {
  return (k + 1) / 2;
}
constexpr int KPerStep(const float*) {
  return 1;
}
constexpr int KPerStep(const BFloat16*) {
  return 2;
}

template <int kRows>
inline void Accumulate(const float* a, int64_t lda, const float* w,
                       Floats (&acc)[kRows][kTileVectors]) {
  Floats column[kTileVectors];
  for (int j = 0; j < kTileVectors; ++j) column[j] = Load(w + j * kLanes);
  for (int r = 0; r < kRows; ++r) {
    const Floats value = Splat(a[r * lda]);
    for (int j = 0; j < kTileVectors; ++j) acc[r][j] += value * column[j];
  }
}

#if defined(__AVX512BF16__)
template <int kRows>
inline void Accumulate(const BFloat16* a, int64_t lda, const BFloat16* w,
                       Floats (&acc)[kRows][kTileVectors]) {
  __m512bh column[kTileVectors];
  for (int j = 0; j < kTileVectors; ++j) {
    column[j] = (__m512bh)_mm512_loadu_si512(w + j * kLanes * 2);
  }
  for (int r = 0; r < kRows; ++r) {
    int32_t pair;
    __builtin_memcpy(&pair, a + r * lda, sizeof(pair));
    const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
    for (int j = 0; j < kTileVectors; ++j) {
      acc[r][j] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][j], column[j], value);
    }
  }
}
#else
template <int kRows>
inline void Accumulate(const BFloat16* a, int64_t lda, const BFloat16* w,
                       Floats (&acc)[kRows][kTileVectors]) {
  Floats even[kTileVectors], odd[kTileVectors];
  for (int j = 0; j < kTileVectors; ++j) {
    Words pairs;
    __builtin_memcpy(&pairs, w + j * kLanes * 2, sizeof(pairs));
    even[j] = (Floats)(pairs << 16);
    odd[j] = (Floats)(pairs & 0xffff0000u);
  }
  for (int r = 0; r < kRows; ++r) {
    const Floats first = Splat(LoadOne(a + r * lda)), second = Splat(LoadOne(a + r * lda + 1));
    for (int j = 0; j < kTileVectors; ++j) acc[r][j] += first * even[j];
    for (int j = 0; j < kTileVectors; ++j) acc[r][j] += second * odd[j];
  }
}
#endif

// Rows a[0 .. kRows) against columns [column, column + kTileColumns) of one panel.
template <int kRows, typename T>
inline void Tile(const T* a, int64_t lda, const T* panel, int k, int columns, const float* bias,
                 bool add, float* y, int64_t ldy) {
  Floats acc[kRows][kTileVectors] = {};
  const int steps = KSteps(panel, k);
  constexpr int kStep = KPerStep(static_cast<const T*>(nullptr));
  for (int s = 0; s < steps; ++s) {
    Accumulate<kRows>(a + s * kStep, lda, panel + int64_t{s} * kPanelColumns * kStep, acc);
  }
  if (columns >= kTileColumns) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kTileVectors; ++j) {
        Floats value = acc[r][j];
        if (bias != nullptr) value += Load(bias + j * kLanes);
        float* out = y + r * ldy + j * kLanes;
        if (add) value += Load(out);
        Store(out, value);
      }
    }
    return;
  }
  for (int r = 0; r < kRows; ++r) {
    float values[kTileColumns];
    for (int j = 0; j < kTileVectors; ++j) Store(values + j * kLanes, acc[r][j]);
    for (int c = 0; c < columns; ++c) {
      float value = values[c];
      if (bias != nullptr) value += bias[c];
      if (add) value += y[r * ldy + c];
      y[r * ldy + c] = value;
    }
  }
}

template <int kRows, typename T>
inline void TileOfRows(int rows, const T* a, int64_t lda, const T* panel, int k, int columns,
                       const float* bias, bool add, float* y, int64_t ldy) {
  if (rows >= kRows) return Tile<kRows>(a, lda, panel, k, columns, bias, add, y, ldy);
  if constexpr (kRows > 1) {
    TileOfRows<kRows - 1>(rows, a, lda, panel, k, columns, bias, add, y, ldy);
  }
}

template <typename T>
void Gemm(const T* a, int64_t lda, int m, const T* panels, int k, int n, int panel_begin,
          int panel_end, const float* bias, bool add, float* y, int64_t ldy) {
  constexpr int kStep = KPerStep(static_cast<const T*>(nullptr));
  const int64_t panel_size = int64_t{KSteps(panels, k)} * kStep * kPanelColumns;
  for (int p = panel_begin; p < panel_end; ++p) {
    for (int c = 0; c < kPanelColumns; c += kTileColumns) {
      const int column = p * kPanelColumns + c;
      if (column >= n) break;
      const T* panel = panels + p * panel_size + c * kStep;
      const float* tile_bias = bias == nullptr ? nullptr : bias + column;
      for (int r = 0; r < m; r += kTileRows) {
        TileOfRows<kTileRows>(m - r, a + r * lda, lda, panel, k, n - column, tile_bias, add,
                              y + r * ldy + column, ldy);
      }
    }
  }
}

// ---- Element-wise
// ---------------------------------------------------------------------------------

inline float InverseRms(const float* x, int n, float eps) {
  Floats squares = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats v = Load(x + i);
    squares += v * v;
  }
  float sum = Sum(squares);
  for (; i < n; ++i) sum += x[i] * x[i];
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

template <typename T>
void RmsNorm(const float* x, const float* weight, int n, float eps, T* out) {
  const float scale = InverseRms(x, n, eps);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, Load(x + i) * scale * Load(weight + i));
  for (; i < n; ++i) StoreOne(out + i, x[i] * scale * weight[i]);
  ZeroFill(out, n);
}

template <typename T>
void SwiGlu(const float* gate_up, int n, T* out) {
  const float* up = gate_up + n;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats gate = Load(gate_up + i);
    Store(out + i, gate / (1.0f + Exp(-gate)) * Load(up + i));
  }
  for (; i < n; ++i) StoreOne(out + i, gate_up[i] / (1.0f + ExpOne(-gate_up[i])) * up[i]);
  ZeroFill(out, n);
}

template <typename T>
void Convert(const float* x, int n, T* out) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, Load(x + i));
  for (; i < n; ++i) StoreOne(out + i, x[i]);
  ZeroFill(out, n);
}

void LogSumExp(const float* x, int n, float* max, float* log_sum) {
  float largest = x[0];
  int i = 0;
  if (n >= kLanes) {
    Floats best = Load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      const Floats v = Load(x + i);
      best = v > best ? v : best;
    }
    for (int lane = 0; lane < kLanes; ++lane) largest = best[lane] > largest ? best[lane] : largest;
  }
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  Floats sums = {};
  for (i = 0; i + kLanes <= n; i += kLanes) sums += Exp(Load(x + i) - largest);
  float sum = Sum(sums);
  for (; i < n; ++i) sum += ExpOne(x[i] - largest);
  *max = largest;
  *log_sum = largest + __builtin_logf(sum);
}

// ---- Attention
// ------------------------------------------------------------------------------------

inline void NormaliseAndRotate(const AttentionShape& shape, const float* norm, const float* cosines,
                               const float* sines, float* head) {
  if (norm != nullptr) {
    const float scale = InverseRms(head, shape.head_dim, shape.norm_eps);
    for (int i = 0; i < shape.head_dim; ++i) head[i] *= scale * norm[i];
  }
  const int half = shape.rope_dims / 2;
  for (int i = 0; i < half; ++i) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cosines[i] - second * sines[i];
    head[half + i] = second * cosines[i] + first * sines[i];
  }
}

template <typename T>
void RotateAndStore(const AttentionShape& shape, const float* cosines, const float* sines,
                    float* qkv, T* key_value) {
  const int dim = shape.head_dim, kv_dim = shape.num_kv_heads * dim;
  float* k = qkv + shape.num_heads * dim;
  for (int h = 0; h < shape.num_heads; ++h) {
    NormaliseAndRotate(shape, shape.q_norm, cosines, sines, qkv + h * dim);
  }
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    NormaliseAndRotate(shape, shape.k_norm, cosines, sines, k + h * dim);
  }
  int i = 0;
  for (; i + kLanes <= 2 * kv_dim; i += kLanes) Store(key_value + i, Load(k + i));
  for (; i < 2 * kv_dim; ++i) StoreOne(key_value + i, k[i]);
}

template <typename T>
inline float Dot(const float* q, const T* k, int n) {
  Floats sum = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) sum += Load(q + i) * Load(k + i);
  float total = Sum(sum);
  for (; i < n; ++i) total += q[i] * LoadOne(k + i);
  return total;
}

// out = sum over positions of weights[p] * values(p)[0 .. n), in blocks of kBlock vectors.
template <int kBlock, typename T>
inline void WeightedSum(const KvLayer<T>& kv, int64_t offset, int position, const float* weights,
                        float scale, T* out) {
  Floats acc[kBlock] = {};
  for (int p = 0; p <= position; ++p) {
    const T* value = kv.at(p) + offset;
    for (int j = 0; j < kBlock; ++j) acc[j] += weights[p] * Load(value + j * kLanes);
  }
  for (int j = 0; j < kBlock; ++j) Store(out + j * kLanes, acc[j] * scale);
}

template <typename T>
void Attend(const AttentionShape& shape, const float* q, const KvLayer<T>& kv, int position,
            float* scores, T* out) {
  const int dim = shape.head_dim;
  const int queries_per_kv = shape.num_heads / shape.num_kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  const int count = position + 1;
  for (int h = 0; h < shape.num_heads; ++h) {
    const float* query = q + h * dim;
    const int64_t k_offset = int64_t{h / queries_per_kv} * dim, v_offset = k_offset + kv.kv_dim;
    float largest = 0;
    for (int p = 0; p < count; ++p) {
      scores[p] = Dot(query, kv.at(p) + k_offset, dim) * scale;
      if (p == 0 || scores[p] > largest) largest = scores[p];
    }
    Floats sums = {};
    int p = 0;
    for (; p + kLanes <= count; p += kLanes) {
      const Floats e = Exp(Load(scores + p) - largest);
      Store(scores + p, e);
      sums += e;
    }
    float sum = Sum(sums);
    for (; p < count; ++p) sum += scores[p] = ExpOne(scores[p] - largest);

    T* head_out = out + h * dim;
    int i = 0;
    for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
      WeightedSum<4>(kv, v_offset + i, position, scores, 1.0f / sum, head_out + i);
    }
    for (; i + kLanes <= dim; i += kLanes) {
      WeightedSum<1>(kv, v_offset + i, position, scores, 1.0f / sum, head_out + i);
    }
    for (; i < dim; ++i) {
      float total = 0;
      for (p = 0; p < count; ++p) total += scores[p] * LoadOne(kv.at(p) + v_offset + i);
      StoreOne(head_out + i, total / sum);
    }
  }
  ZeroFill(out, shape.num_heads * dim);
}

template <typename T>
constexpr Kernels<T> kTable = {
    .gemm = Gemm<T>,
    .rms_norm = RmsNorm<T>,
    .swiglu = SwiGlu<T>,
    .convert = Convert<T>,
    .rotate_and_store = RotateAndStore<T>,
    .attend = Attend<T>,
    .log_sum_exp = LogSumExp,
};

}  // namespace

const Kernels<float>& FloatKernels() {
  return kTable<float>;
}
const Kernels<BFloat16>& BFloat16Kernels() {
  return kTable<BFloat16>;
}

}  // namespace photon::PHOTON_KERNELS_NAMESPACE
