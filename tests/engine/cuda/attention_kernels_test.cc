// Attention in windows and over pages against the plain formula in double precision, over awkward
// shapes and fresh random inputs, in fp32 and bf16. Outputs are poisoned beforehand.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cuda/kernels/local_attention.h"
#include "engine/cuda/kernels/paged_attention.h"
#include "tests/engine/cuda/kernel_formulas.h"

namespace photon::cuda {
namespace {

template <typename T>
using AttentionKernels = Kernels<T>;
TYPED_TEST_SUITE(AttentionKernels, StorageTypes);

// One attention, its parameters on the device, and the formula.
template <typename T>
struct Attention {
  Attention(int heads, int kv_heads, int dim, int rope_dims, bool qk_norm, int positions,
            const std::vector<float>& norms)
      : half(rope_dims / 2),
        cosines(int64_t{positions} * half),
        sines(cosines.size()),
        norm(norms),
        device_cosines(Angles(positions, true)),
        device_sines(Angles(positions, false)),
        device_norm(norms) {
    shape = {.num_heads = heads,
             .num_kv_heads = kv_heads,
             .head_dim = dim,
             .rope_dims = rope_dims,
             .q_norm = qk_norm ? device_norm.data() : nullptr,
             .k_norm = qk_norm ? device_norm.data() + dim : nullptr,
             .norm_eps = 1e-4f,
             .cosines = device_cosines.data(),
             .sines = device_sines.data()};
  }

  int q_dim() const { return shape.num_heads * shape.head_dim; }
  int kv_dim() const { return shape.num_kv_heads * shape.head_dim; }
  int qkv_dim() const { return q_dim() + 2 * kv_dim(); }
  std::string Name() const {
    return absl::StrCat(shape.num_heads, "/", shape.num_kv_heads, " heads of ", shape.head_dim);
  }

  // A head as it enters the products.
  Doubles Prepared(const T* head, bool is_key, int position) const {
    Doubles out;
    for (int d = 0; d < shape.head_dim; ++d) out.push_back(ToDouble(head[d]));
    if (shape.q_norm != nullptr) {
      const double scale = InverseRms(out.data(), shape.head_dim, shape.norm_eps);
      for (int d = 0; d < shape.head_dim; ++d) {
        out[d] *= scale * norm[(is_key ? shape.head_dim : 0) + d];
      }
    }
    for (int i = 0; i < half; ++i) {
      const double c = cosines[position * half + i], s = sines[position * half + i];
      const double a = out[i], b = out[half + i];
      out[i] = a * c - b * s;
      out[half + i] = b * c + a * s;
    }
    return out;
  }

  // Appends what a row [q | k | v] stores to a context: keys, then values.
  void Store(const T* row, int position, std::vector<Doubles>& context) const {
    Doubles cell;
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      const T* key = row + q_dim() + h * shape.head_dim;
      for (double v : Prepared(key, true, position)) {
        cell.push_back(ToDouble(Rounded<T>(static_cast<float>(v))));
      }
    }
    for (int i = 0; i < kv_dim(); ++i) cell.push_back(ToDouble(row[q_dim() + kv_dim() + i]));
    context.push_back(cell);
  }

  Doubles Attend(const T* row, int position, const std::vector<Doubles>& context) const {
    Doubles out;
    const int dim = shape.head_dim;
    for (int h = 0; h < shape.num_heads; ++h) {
      const int kv = h / (shape.num_heads / shape.num_kv_heads);
      const Doubles q = Prepared(row + h * dim, false, position);
      Doubles weights;
      double total = 0;
      for (int p = 0; p <= position; ++p) {
        double dot = 0;
        for (int d = 0; d < dim; ++d) dot += q[d] * context[p][kv * dim + d];
        total += weights.emplace_back(std::exp(dot / std::sqrt(dim)));
      }
      for (int d = 0; d < dim; ++d) {
        double sum = 0;
        for (int p = 0; p <= position; ++p) {
          sum += weights[p] / total * context[p][kv_dim() + kv * dim + d];
        }
        out.push_back(sum);
      }
    }
    return out;
  }

  std::vector<float> Angles(int positions, bool cosine) {
    for (int p = 0; p < positions; ++p) {
      for (int i = 0; i < half; ++i) {
        const double angle = p * std::pow(100.0, -static_cast<double>(i) / half);
        cosines[p * half + i] = static_cast<float>(std::cos(angle));
        sines[p * half + i] = static_cast<float>(std::sin(angle));
      }
    }
    return cosine ? cosines : sines;
  }

  int half;
  std::vector<float> cosines, sines, norm;
  DeviceArray<float> device_cosines, device_sines, device_norm;
  AttentionShape shape;
};

struct HeadShape {
  int heads, kv_heads, dim, rope_dims;
  bool qk_norm;
};
// The paper's head sizes, the usual ones, odd ones, and the largest.
const std::vector<HeadShape> kHeadShapes = {
    {1, 1, 4, 4, false},    {3, 3, 6, 4, true},      {4, 2, 10, 4, true},    {5, 5, 7, 2, false},
    {2, 1, 8, 8, true},     {6, 2, 12, 12, false},   {4, 4, 32, 32, true},   {3, 1, 33, 8, true},
    {8, 8, 52, 52, false},  {4, 4, 56, 28, true},    {6, 3, 60, 60, false},  {4, 4, 64, 64, true},
    {2, 2, 96, 96, false},  {3, 1, 128, 128, true},  {2, 2, 130, 64, false}, {2, 1, 132, 132, true},
    {1, 1, 254, 100, true}, {2, 2, 256, 256, false},
};

// Attention sums weighted values that partly cancel, which the norm of a row does not see.
template <typename T>
constexpr double kAttentionTolerance = 1e-5;
template <>
constexpr double kAttentionTolerance<__nv_bfloat16> = 0x1p-7;

TYPED_TEST(AttentionKernels, LocalAttentionPrimesWindowsAndAdvancesThem) {
  using T = TypeParam;
  for (const HeadShape& h : kHeadShapes) {
    for (const int contexts : {1, 5}) {
      const int window = 7;
      Attention<T> attention(h.heads, h.kv_heads, h.dim, h.rope_dims, h.qk_norm, window,
                             this->Random(2 * h.dim));
      const int64_t stride = 2 * window * 2 * attention.kv_dim();  // another layer lies between
      const auto cache = DeviceArray<T>::Unwritten(contexts * stride);
      const KvLayer<T> kv{.base = cache.data(), .stride = stride, .kv_dim = attention.kv_dim()};
      std::vector<std::vector<Doubles>> stored(contexts);
      // Three positions at once, then one by one.
      for (int first = 0; first < window;) {
        const int count = first == 0 ? 3 : 1, rows = contexts * count;
        const auto qkv = RoundedTo<T>(this->Random(rows * attention.qkv_dim()));
        const DeviceArray<T> device_qkv(PaddedRows(qkv, attention.qkv_dim()));
        const auto out = DeviceArray<T>::Unwritten(rows * Padded(attention.q_dim()));
        ASSERT_EQ(
            LaunchLocalAttention(attention.shape, device_qkv.data(), kv,
                                 {.first = first, .count = count}, contexts, out.data(), nullptr),
            cudaSuccess);
        Doubles expected;
        for (int r = 0; r < rows; ++r) {
          const T* row = qkv.data() + r * attention.qkv_dim();
          const int position = first + r % count;
          attention.Store(row, position, stored[r / count]);
          const Doubles one = attention.Attend(row, position, stored[r / count]);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        ExpectRows(out.Values(), expected, attention.q_dim(), kAttentionTolerance<T>,
                   absl::StrCat(attention.Name(), ", position ", first));
        first += count;
      }
      const auto cells = cache.Values();
      for (int c = 0; c < contexts; ++c) {
        for (int p = 0; p < window; ++p) {
          const int width = 2 * attention.kv_dim();
          for (int i = 0; i < width; ++i) {
            const double value = ToDouble(cells[c * stride + p * width + i]);
            ASSERT_NEAR(value, stored[c][p][i], 0x1p-7 * std::abs(stored[c][p][i]) + 1e-5);
          }
        }
        const T next_layer = cells[c * stride + window * 2 * attention.kv_dim()];
        ASSERT_TRUE(std::isnan(ToDouble(next_layer))) << "wrote beyond the window";
      }
    }
  }
}

// `metas` meta-contexts of `units` rows each, after `cached` positions of each of their sequences.
struct PagedCase {
  int sequences, cached, metas, units;
};

TYPED_TEST(AttentionKernels, PagedAttentionReadsEveryPage) {
  using T = TypeParam;
  const int segment = 5;
  for (const HeadShape& h : kHeadShapes) {
    for (const PagedCase& c : {PagedCase{1, 0, 1, 1}, PagedCase{2, 3, 2, 4}, PagedCase{3, 70, 1, 1},
                               PagedCase{1, 298, 3, 2}, PagedCase{150, 6, 1, 1}}) {
      const int per_sequence = c.cached + c.metas * c.units;
      if (c.sequences * per_sequence * h.heads * h.dim > 400000 || !this->Takes()) continue;
      Attention<T> attention(h.heads, h.kv_heads, h.dim, h.rope_dims, h.qk_norm, per_sequence,
                             this->Random(2 * h.dim));
      const int pages_each = (per_sequence + segment - 1) / segment;
      std::vector<int32_t> ids(c.sequences * pages_each);
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), this->random_);
      const int cell_width = 2 * attention.kv_dim();
      const int64_t page_stride = Padded(segment * cell_width + 3);
      const auto pool = DeviceArray<T>::Unwritten(page_stride * static_cast<int64_t>(ids.size()));
      const DeviceArray<int32_t> device_ids(ids);
      const KvLayer<T> kv{.base = pool.data(),
                          .page_ids = device_ids.data(),
                          .stride = page_stride,
                          .segment_positions = segment,
                          .kv_dim = attention.kv_dim()};
      const auto partial =
          DeviceArray<float>::Unwritten(PagedAttentionPartialElements(h.heads, h.dim));

      // The cached positions come as rows too, one meta-context of one unit each; then the rest.
      std::vector<std::vector<Doubles>> stored(c.sequences);
      const auto run = [&](int first, int metas_each, int units) {
        const int rows = c.sequences * metas_each * units;
        if (rows == 0) return;
        std::vector<MetaContext> metas;
        for (int s = 0; s < c.sequences; ++s) {
          for (int m = 0; m < metas_each; ++m) metas.push_back({s * pages_each, first / units + m});
        }
        const int start = first % units;
        const auto qkv = RoundedTo<T>(this->Random(rows * attention.qkv_dim()));
        const DeviceArray<T> device_qkv(PaddedRows(qkv, attention.qkv_dim()));
        const DeviceArray<MetaContext> device_metas(metas);
        const auto out = DeviceArray<T>::Unwritten(rows * Padded(attention.q_dim()));
        const RowPositions positions{
            .metas = device_metas.data(), .units_per_meta = units, .first = start, .count = units};
        ASSERT_EQ(
            LaunchStoreKeysValues(attention.shape, device_qkv.data(), kv, positions, rows, nullptr),
            cudaSuccess);
        ASSERT_EQ(LaunchPagedAttention(attention.shape, device_qkv.data(), kv, positions, rows,
                                       partial.data(), out.data(), nullptr),
                  cudaSuccess);
        Doubles expected;
        for (int r = 0; r < rows; ++r) {
          const T* row = qkv.data() + r * attention.qkv_dim();
          const int sequence = r / (metas_each * units);
          const int position = first + r % (metas_each * units);
          attention.Store(row, position, stored[sequence]);
          const Doubles one = attention.Attend(row, position, stored[sequence]);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        ExpectRows(out.Values(), expected, attention.q_dim(), kAttentionTolerance<T>,
                   absl::StrCat(attention.Name(), ", ", rows, " rows after ", first));
      };
      run(0, c.cached, 1);
      run(c.cached, c.metas, c.units);
    }
  }
}

}  // namespace
}  // namespace photon::cuda
