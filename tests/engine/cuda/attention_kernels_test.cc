// Attention in windows and over pages against the plain formula in double precision, over awkward
// shapes and fresh random inputs, in fp32 and bf16. Outputs are poisoned beforehand.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
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
          // Keys, then values, of each head, whose elements are in an order of the kernel's own.
          const int width = 2 * attention.kv_dim();
          for (int head = 0; head < width; head += h.dim) {
            Doubles found,
                expected_head(stored[c][p].begin() + head, stored[c][p].begin() + head + h.dim);
            for (int i = 0; i < h.dim; ++i) {
              found.push_back(ToDouble(cells[c * stride + p * width + head + i]));
            }
            std::sort(found.begin(), found.end());
            std::sort(expected_head.begin(), expected_head.end());
            for (int i = 0; i < h.dim; ++i) {
              ASSERT_NEAR(found[i], expected_head[i], 0x1p-7 * std::abs(expected_head[i]) + 1e-5);
            }
          }
        }
        const T next_layer = cells[c * stride + window * 2 * attention.kv_dim()];
        ASSERT_TRUE(std::isnan(ToDouble(next_layer))) << "wrote beyond the window";
      }
    }
  }
}

// Sequences over pages of their own in a shuffled pool, what they store, and the formula beside it.
template <typename T>
class PagedSequences {
 public:
  // positions  of each sequence, at most;  random  draws of a normal distribution
  PagedSequences(const Attention<T>& attention, const std::vector<int>& positions,
                 std::mt19937_64& random)
      : attention_(attention), random_(random), stored_(positions.size()) {
    int pages = 0;
    for (int count : positions) {
      first_pages_.push_back(pages);
      pages += (count + kPagePositions - 1) / kPagePositions;
    }
    std::vector<int32_t> ids(pages);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    page_ids_.emplace(ids);
    const int64_t stride = Padded(kPagePositions * 2 * attention.kv_dim() + 3);
    pool_.emplace(std::vector<T>(stride * pages, Rounded<T>(NAN)));
    partial_.emplace(std::vector<float>(
        PagedAttentionPartialElements(attention.shape.num_heads, attention.shape.head_dim), NAN));
    kv_ = {.base = pool_->data(),
           .page_ids = page_ids_->data(),
           .stride = stride,
           .segment_positions = kPagePositions,
           .kv_dim = attention.kv_dim()};
  }

  // Appends metas[s] meta-contexts of `units` rows each to sequence s, as one batch; the sequences
  // stand equally far in a meta-context. Expects what `attends` of them attend to, or stores only.
  void Append(const std::vector<int>& metas, int units, bool in_runs, bool attends = true) {
    std::vector<MetaContext> device_metas;
    int start = 0;
    for (size_t s = 0; s < metas.size(); ++s) {
      const int first = static_cast<int>(stored_[s].size());
      if (metas[s] > 0) start = first % units;
      for (int m = 0; m < metas[s]; ++m) {
        device_metas.push_back({first_pages_[s], first / units + m});
      }
    }
    const int rows = static_cast<int>(device_metas.size()) * units, width = attention_.qkv_dim();
    if (rows == 0) return;
    std::normal_distribution<float> normal;
    std::vector<float> values(rows * width);
    for (float& value : values) value = normal(random_);
    const auto qkv = RoundedTo<T>(values);
    const DeviceArray<T> device_qkv(PaddedRows(qkv, width));
    const DeviceArray<MetaContext> metas_array(device_metas);
    const RowPositions positions{.metas = metas_array.data(),
                                 .units_per_meta = units,
                                 .first = start,
                                 .count = units,
                                 .in_runs = in_runs};
    ASSERT_EQ(
        LaunchStoreKeysValues(attention_.shape, device_qkv.data(), kv_, positions, rows, nullptr),
        cudaSuccess);
    const auto out = DeviceArray<T>::Unwritten(rows * Padded(attention_.q_dim()));
    if (attends) {
      ASSERT_EQ(LaunchPagedAttention(attention_.shape, device_qkv.data(), kv_, positions, rows,
                                     partial_->data(), out.data(), nullptr),
                cudaSuccess);
    }
    Doubles expected;
    const T* row = qkv.data();
    for (size_t s = 0; s < metas.size(); ++s) {
      for (int r = 0; r < metas[s] * units; ++r, row += width) {
        const int position = static_cast<int>(stored_[s].size());
        attention_.Store(row, position, stored_[s]);
        if (!attends) continue;
        const Doubles one = attention_.Attend(row, position, stored_[s]);
        expected.insert(expected.end(), one.begin(), one.end());
      }
    }
    if (!attends) return;
    ExpectRows(out.Values(), expected, attention_.q_dim(), kAttentionTolerance<T>,
               absl::StrCat(attention_.Name(), ", ", rows, " rows of ", metas.size(),
                            " sequences, units of ", units, " from ", start));
  }

 private:
  static constexpr int kPagePositions = 5;

  const Attention<T>& attention_;
  std::mt19937_64& random_;
  std::vector<std::vector<Doubles>> stored_;
  std::vector<int32_t> first_pages_;
  std::optional<DeviceArray<int32_t>> page_ids_;
  std::optional<DeviceArray<T>> pool_;
  std::optional<DeviceArray<float>> partial_;
  KvLayer<T> kv_;
};

// `metas` meta-contexts of `units` rows each, after `cached` positions of each of their sequences.
struct PagedCase {
  int sequences, cached, metas, units;
};

TYPED_TEST(AttentionKernels, PagedAttentionReadsEveryPage) {
  using T = TypeParam;
  for (const HeadShape& h : kHeadShapes) {
    for (const PagedCase& c : {PagedCase{1, 0, 1, 1}, PagedCase{2, 3, 2, 4}, PagedCase{3, 70, 1, 1},
                               PagedCase{1, 298, 3, 2}, PagedCase{150, 6, 1, 1}}) {
      const int per_sequence = c.cached + c.metas * c.units;
      if (c.sequences * per_sequence * h.heads * h.dim > 400000 || !this->Takes()) continue;
      const Attention<T> attention(h.heads, h.kv_heads, h.dim, h.rope_dims, h.qk_norm, per_sequence,
                                   this->Random(2 * h.dim));
      PagedSequences<T> sequences(attention, std::vector<int>(c.sequences, per_sequence),
                                  this->random_);
      sequences.Append(std::vector<int>(c.sequences, c.cached), 1, false);
      sequences.Append(std::vector<int>(c.sequences, c.metas), c.units, false);
    }
  }
}

// Heads that tiles take, and some that they leave.
const std::vector<HeadShape> kTiledHeadShapes = {
    {32, 32, 4, 4, false},    {6, 2, 20, 6, true},    {16, 4, 32, 32, true},
    {12, 12, 36, 36, false},  {8, 8, 52, 52, false},  {16, 16, 56, 28, true},
    {8, 4, 64, 64, true},     {16, 8, 68, 68, false}, {8, 8, 96, 96, true},
    {16, 16, 100, 50, false}, {8, 2, 128, 128, true}, {16, 8, 132, 64, false},
    {8, 8, 33, 32, false},
};

TEST_F(OnGpu, RunsOfRowsAttendToTheirOwnSequences) {
  using T = __nv_bfloat16;
  for (const HeadShape& h : kTiledHeadShapes) {
    for (const int units : {1, 3}) {
      if (!Takes()) continue;
      // More rows than blocks of one row and head that a GPU takes at once.
      std::vector<int> cached, metas, positions;
      const int start = RandomBelow(units);
      for (int rows = 0; rows * h.heads < 600;) {
        // Some of one row, some that fill tiles, some of contexts of many steps of keys.
        const int few = RandomBelow(3) == 0 ? 1 : 40;
        metas.push_back(1 + RandomBelow(few));
        cached.push_back(units * RandomBelow(RandomBelow(4) == 0 ? 60 : 8) + start);
        positions.push_back(cached.back() + metas.back() * units);
        rows += metas.back() * units;
      }
      const int most = *std::max_element(positions.begin(), positions.end());
      const Attention<T> attention(h.heads, h.kv_heads, h.dim, h.rope_dims, h.qk_norm, most,
                                   Random(2 * h.dim));
      PagedSequences<T> sequences(attention, positions, random_);
      sequences.Append(cached, 1, true, /*attends=*/false);
      sequences.Append(metas, units, true);
    }
  }
}

}  // namespace
}  // namespace photon::cuda
