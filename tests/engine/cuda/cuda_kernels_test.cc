// Each kernel against the plain formula in double precision, over awkward shapes and fresh random
// inputs, in fp32 and bf16. Outputs are poisoned beforehand.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cpu/sampler.h"
#include "engine/cuda/kernels/chunk_units.h"
#include "engine/cuda/kernels/expand_vectors.h"
#include "engine/cuda/kernels/local_attention.h"
#include "engine/cuda/kernels/paged_attention.h"
#include "engine/cuda/kernels/rms_norm.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/cuda/kernels/sample_tokens.h"
#include "engine/cuda/kernels/skinny_product.h"
#include "engine/cuda/kernels/swiglu.h"
#include "engine/cuda/matrix_product.h"
#include "tests/engine/cuda/gpu_fixture.h"

namespace photon::cuda {
namespace {

template <typename T>
class Kernels : public OnGpu {};
using StorageTypes = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(Kernels, StorageTypes);

using Doubles = std::vector<double>;

double InverseRms(const double* x, int n, double eps) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / n + eps);
}

template <typename T>
Doubles ToDoubles(const std::vector<T>& values) {
  Doubles doubles;
  for (T value : values) doubles.push_back(ToDouble(value));
  return doubles;
}

TYPED_TEST(Kernels, RmsNormMatchesTheDefinition) {
  for (const int width : {1, 7, 8, 9, 52, 416, 1664, 5000}) {
    for (const int rows : {1, 3, 67}) {
      const auto x = this->Random(int64_t{rows} * width), weight = this->Random(width);
      const DeviceArray<float> device_x(PaddedRows(x, width)), device_w(PaddedRows(weight, width));
      const auto out = DeviceArray<TypeParam>::Unwritten(rows * Padded(width));
      ASSERT_EQ(LaunchRmsNorm(device_x.data(), Padded(width), device_w.data(), width, 1e-3f,
                              out.data(), Padded(width), rows, nullptr),
                cudaSuccess);
      Doubles expected = ToDoubles(x);
      for (int r = 0; r < rows; ++r) {
        const double scale = InverseRms(expected.data() + r * width, width, 1e-3);
        for (int i = 0; i < width; ++i) expected[r * width + i] *= scale * weight[i];
      }
      ExpectRows(out.Values(), expected, width, kTolerance<TypeParam>,
                 absl::StrCat("width ", width));
    }
  }
}

TYPED_TEST(Kernels, RmsNormWithoutAWeightRounds) {
  for (const int width : {1, 24, 1664}) {
    const auto x = this->Random(5 * width);
    const DeviceArray<float> device_x(PaddedRows(x, width));
    const auto out = DeviceArray<TypeParam>::Unwritten(5 * Padded(width));
    ASSERT_EQ(LaunchRmsNorm(device_x.data(), Padded(width), nullptr, width, 0.0f, out.data(),
                            Padded(width), 5, nullptr),
              cudaSuccess);
    ExpectRows(out.Values(), ToDoubles(RoundedTo<TypeParam>(x)), width, 0, "rounding");
  }
}

TEST_F(OnGpu, RmsNormTakesEveryOtherRowAndWritesInPlace) {
  const int width = 40, rows = 6;
  const auto x = Random(rows * width), weight = Random(width);
  Doubles normalised = ToDoubles(x);
  for (int r = 0; r < rows; ++r) {
    const double scale = InverseRms(normalised.data() + r * width, width, 1e-5);
    for (int i = 0; i < width; ++i) normalised[r * width + i] *= scale * weight[i];
  }
  const DeviceArray<float> device_x(x), device_w(weight);
  const auto out = DeviceArray<float>::Unwritten(rows / 2 * width);
  ASSERT_EQ(LaunchRmsNorm(device_x.data() + width, 2 * width, device_w.data(), width, 1e-5f,
                          out.data(), width, rows / 2, nullptr),
            cudaSuccess);
  Doubles odd;
  for (int r = 1; r < rows; r += 2) {
    odd.insert(odd.end(), normalised.begin() + r * width, normalised.begin() + (r + 1) * width);
  }
  ExpectRows(out.Values(), odd, width, kTolerance<float>, "odd rows");
  ASSERT_EQ(LaunchRmsNorm(device_x.data(), width, device_w.data(), width, 1e-5f, device_x.data(),
                          width, rows, nullptr),
            cudaSuccess);
  ExpectRows(device_x.Values(), normalised, width, kTolerance<float>, "in place");
}

TYPED_TEST(Kernels, SwiGluMatchesTheDefinitionFarFromZeroToo) {
  for (const int width : {1, 4, 9, 704, 4100}) {
    const int rows = 5;
    auto gate = RoundedTo<TypeParam>(this->Random(rows * width, 3));
    const auto up = RoundedTo<TypeParam>(this->Random(rows * width));
    gate[0] = Rounded<TypeParam>(-200);
    if (width > 1) gate[1] = Rounded<TypeParam>(200);
    const auto padded_gate = PaddedRows(gate, width), padded_up = PaddedRows(up, width);
    std::vector<TypeParam> both;
    Doubles expected;
    const int64_t stride = Padded(width);
    for (int r = 0; r < rows; ++r) {
      both.insert(both.end(), padded_gate.begin() + r * stride,
                  padded_gate.begin() + (r + 1) * stride);
      both.insert(both.end(), padded_up.begin() + r * stride, padded_up.begin() + (r + 1) * stride);
      for (int i = 0; i < width; ++i) {
        const double g = ToDouble(gate[r * width + i]);
        // As a float: far below zero the gate closes altogether.
        const double gated = g / (1 + std::exp(-g)) * ToDouble(up[r * width + i]);
        expected.push_back(static_cast<float>(gated));
      }
    }
    const DeviceArray<TypeParam> device_both(both);
    const auto out = DeviceArray<TypeParam>::Unwritten(rows * stride);
    ASSERT_EQ(LaunchSwiGlu(device_both.data(), width, out.data(), rows, nullptr), cudaSuccess);
    ExpectRows(out.Values(), expected, width, kTolerance<TypeParam>, absl::StrCat("width ", width));
  }
}

TYPED_TEST(Kernels, EmbedGathersGroupsOfTokens) {
  const int vocab = 19, width = 24, rows = 12, group = 3, stride = 5;
  const auto table = RoundedTo<TypeParam>(this->Random(vocab * width));
  std::vector<int32_t> tokens(rows / group * stride);
  for (int32_t& token : tokens) token = this->RandomBelow(vocab);
  const DeviceArray<TypeParam> device_table(table);
  const DeviceArray<int32_t> device_tokens(tokens);
  const auto out = DeviceArray<float>::Unwritten(rows * width);
  ASSERT_EQ(LaunchEmbed(device_tokens.data(), group, stride, device_table.data(), width, 2.5f,
                        out.data(), rows, nullptr),
            cudaSuccess);
  Doubles expected;
  for (int r = 0; r < rows; ++r) {
    const int token = tokens[r / group * stride + r % group];
    for (int i = 0; i < width; ++i) expected.push_back(2.5 * ToDouble(table[token * width + i]));
  }
  ExpectRows(out.Values(), expected, width, kTolerance<float>, "embeddings");
}

TEST_F(OnGpu, RowsAndLatentsAreCopiedWhereTheyBelong) {
  const int width = 40, rows = 3;
  const auto from = Random(rows * 2 * width);
  const DeviceArray<float> device_from(from);
  const DeviceArray<float> to(std::vector<float>(rows * 3 * width, -1.0f));
  ASSERT_EQ(
      LaunchCopyRows(device_from.data(), 2 * width, to.data(), 3 * width, width, rows, nullptr),
      cudaSuccess);
  const auto copied = to.Values();
  for (int i = 0; i < rows * 3 * width; ++i) {
    const int row = i / (3 * width), column = i % (3 * width);
    ASSERT_EQ(copied[i], column < width ? from[row * 2 * width + column] : -1.0f) << i;
  }

  const int page_stride = 64, num_pages = 5;
  const auto pool = Random(num_pages * page_stride), start = Random(width);
  const std::vector<int32_t> pages = {3, -1, 0};
  const DeviceArray<float> device_pool(pool), device_start(start);
  const DeviceArray<int32_t> device_pages(pages);
  const auto loaded = DeviceArray<float>::Unwritten(rows * width);
  ASSERT_EQ(LaunchLoadLatents(device_pages.data(), device_pool.data(), page_stride,
                              device_start.data(), width, loaded.data(), rows, nullptr),
            cudaSuccess);
  const auto values = loaded.Values();
  for (int i = 0; i < rows * width; ++i) {
    const int page = pages[i / width];
    ASSERT_EQ(values[i], page < 0 ? start[i % width] : pool[page * page_stride + i % width]) << i;
  }

  ASSERT_EQ(LaunchStoreLatents(device_from.data(), device_pages.data(), device_pool.data(),
                               page_stride, width, rows, nullptr),
            cudaSuccess);
  auto expected = pool;
  std::copy_n(from.begin(), width, expected.begin() + 3 * page_stride);
  std::copy_n(from.begin() + 2 * width, width, expected.begin());
  EXPECT_EQ(device_pool.Values(), expected);
}

TYPED_TEST(Kernels, ChunkUnitsConcatenatesAndNormalises) {
  for (const int chunk : {1, 3, 4, 9}) {
    for (const int width : {1, 5, 8, 13, 104}) {
      for (const UnitNorm norm : {UnitNorm::kNone, UnitNorm::kUnit, UnitNorm::kConcat}) {
        const int groups = 7, concat = chunk * width;
        const auto units = this->Random(groups * concat);
        const auto weight = this->Random(norm == UnitNorm::kUnit ? width : concat);
        Doubles expected = ToDoubles(units);
        for (int g = 0; g < groups; ++g) {
          double* group = expected.data() + g * concat;
          if (norm == UnitNorm::kUnit) {
            for (int c = 0; c < chunk; ++c) {
              const double scale = InverseRms(group + c * width, width, 1e-2);
              for (int i = 0; i < width; ++i) group[c * width + i] *= scale * weight[i];
            }
          } else if (norm == UnitNorm::kConcat) {
            const double scale = InverseRms(group, concat, 1e-2);
            for (int i = 0; i < concat; ++i) group[i] *= scale * weight[i];
          }
        }
        const DeviceArray<float> device_units(PaddedRows(units, width)), device_weight(weight);
        const auto out = DeviceArray<TypeParam>::Unwritten(groups * Padded(concat));
        ASSERT_EQ(LaunchChunkUnits(device_units.data(), chunk, width, norm, device_weight.data(),
                                   1e-2f, out.data(), groups, nullptr),
                  cudaSuccess);
        ExpectRows(out.Values(), expected, concat, kTolerance<TypeParam>,
                   absl::StrCat("chunk ", chunk, ", width ", width));
      }
    }
  }
}

TEST_F(OnGpu, ExpandVectorsConvolvesAndNormalises) {
  for (const int vectors : {1, 2, 3, 6}) {
    for (const int width : {1, 6, 13, 64, 1664}) {
      for (const bool has_conv : {false, true}) {
        for (const bool has_norm : {false, true}) {
          const int groups = 5, both = vectors * width;
          const auto h = Random(groups * both), conv = Random(width * 3), norm = Random(width);
          Doubles expected;
          for (int row = 0; row < groups * vectors; ++row) {
            const float* group = h.data() + row / vectors * both;
            const int v = row % vectors;
            Doubles out(width);
            for (int d = 0; d < width; ++d) {
              out[d] = group[v * width + d];
              for (int tap = 0; has_conv && tap < 3; ++tap) {
                const int source = v + tap - 1;
                if (source < 0 || source >= vectors) continue;
                out[d] += double{conv[d * 3 + tap]} * group[source * width + d];
              }
            }
            const double scale = has_norm ? InverseRms(out.data(), width, 1e-4) : 1;
            for (int d = 0; d < width; ++d) {
              expected.push_back(out[d] * scale * (has_norm ? norm[d] : 1));
            }
          }
          const DeviceArray<float> device_h(PaddedRows(h, both)), device_conv(conv),
              device_norm(norm);
          const auto out = DeviceArray<float>::Unwritten(groups * vectors * Padded(width));
          ASSERT_EQ(LaunchExpandVectors(device_h.data(), vectors, width,
                                        has_conv ? device_conv.data() : nullptr,
                                        has_norm ? device_norm.data() : nullptr, 1e-4f, out.data(),
                                        groups, nullptr),
                    cudaSuccess);
          // The sum over the taps may cancel.
          ExpectRows(out.Values(), expected, width, 10 * kTolerance<float>,
                     absl::StrCat(vectors, " vectors of ", width));
        }
      }
    }
  }
}

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

TYPED_TEST(Kernels, LocalAttentionPrimesWindowsAndAdvancesThem) {
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

TYPED_TEST(Kernels, PagedAttentionReadsEveryPage) {
  using T = TypeParam;
  const int segment = 5;
  for (const HeadShape& h : kHeadShapes) {
    for (const PagedCase& c : {PagedCase{1, 0, 1, 1}, PagedCase{2, 3, 2, 4}, PagedCase{3, 70, 1, 1},
                               PagedCase{1, 298, 3, 2}, PagedCase{150, 6, 1, 1}}) {
      const int per_sequence = c.cached + c.metas * c.units;
      if (c.sequences * per_sequence * h.heads * h.dim > 400000) continue;
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

TYPED_TEST(Kernels, ProductsMatchTheDefinition) {
  using T = TypeParam;
  DeviceAllocator allocator;
  auto product = MatrixProduct::Create(allocator);
  ASSERT_TRUE(product.ok()) << product.status().ToString();
  for (const int rows : {1, 2, 3, 17, 33, 100, 300}) {
    for (const int k : {8, 24, 416}) {
      for (const int n : {8, 72, 1000}) {
        for (const int kind : {0, 1, 2}) {  // plain, biased, added
          const int product_rows = ProductRows(rows);
          const auto a = RoundedTo<T>(this->Random(product_rows * k));
          const auto w = RoundedTo<T>(this->Random(n * k));
          const auto bias = this->Random(n), before = this->Random(product_rows * n);
          const DeviceArray<T> device_a(a), device_w(w);
          const DeviceArray<float> device_bias(bias), y(before);
          const Matrix<T> matrix{.data = device_w.data(),
                                 .n = n,
                                 .k = k,
                                 .bias = kind == 1 ? device_bias.data() : nullptr};
          Work work(nullptr);
          (*product)->Run(work, matrix, device_a.data(), rows, kind == 2, y.data());
          ASSERT_TRUE(work.ok()) << work.status().ToString();
          const auto values = y.Values();
          for (int r = 0; r < rows; ++r) {
            for (int c = 0; c < n; ++c) {
              double expected = kind == 1 ? bias[c] : kind == 2 ? before[r * n + c] : 0, scale = 1;
              for (int i = 0; i < k; ++i) {
                const double term = ToDouble(a[r * k + i]) * ToDouble(w[c * k + i]);
                expected += term;
                scale += std::abs(term);
              }
              ASSERT_NEAR(values[r * n + c], expected, 1e-6 * scale)
                  << rows << "x" << k << "x" << n << ", kind " << kind;
            }
          }
        }
      }
    }
  }
}

// What LaunchSkinnyProduct computes with the input of `act` [rows, k], rounded or not.
Doubles ProductOf(const Doubles& act, const std::vector<__nv_bfloat16>& w, int rows, int n, int k) {
  Doubles out;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < n; ++c) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += act[r * k + i] * ToDouble(w[c * k + i]);
      out.push_back(sum);
    }
  }
  return out;
}

TEST_F(OnGpu, SkinnyProductsMatchTheDefinition) {
  using T = __nv_bfloat16;
  for (const int rows : {1, 2, 3, 7, 8}) {
    for (const int k : {8, 24, 40, 416, 1664}) {
      for (const int n : {8, 24, 80, 1000}) {
        const auto act = RoundedTo<T>(Random(rows * k)), w = RoundedTo<T>(Random(n * k));
        const auto x = Random(rows * k), norm = Random(k), bias = Random(n),
                   before = Random(rows * n);
        const DeviceArray<T> device_act(act), device_w(w);
        const DeviceArray<float> device_x(x), device_norm(norm), device_bias(bias), y(before);
        const std::string what = absl::StrCat(rows, "x", k, "x", n);
        Doubles expected = ProductOf(ToDoubles(act), w, rows, n, k);

        ASSERT_EQ(LaunchSkinnyProduct(device_w.data(), n, k, nullptr, {.act = device_act.data()},
                                      rows, true, y.data(), nullptr),
                  cudaSuccess);
        Doubles added = expected;
        for (size_t i = 0; i < added.size(); ++i) added[i] += before[i];
        ExpectRows(y.Values(), added, n, 5e-6, what + ", added");

        const auto rounded = DeviceArray<T>::Unwritten(rows * n);
        ASSERT_EQ(
            LaunchSkinnyProduct(device_w.data(), n, k, device_bias.data(),
                                {.act = device_act.data()}, rows, false, rounded.data(), nullptr),
            cudaSuccess);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % n];
        ExpectRows(rounded.Values(), expected, n, kTolerance<T>, what + ", biased");

        // The input is rounded after the norm, or as it is.
        for (const bool has_norm : {false, true}) {
          Doubles normed = ToDoubles(x);
          for (int r = 0; r < rows && has_norm; ++r) {
            const double scale = InverseRms(normed.data() + r * k, k, 1e-3);
            for (int i = 0; i < k; ++i) normed[r * k + i] *= scale * norm[i];
          }
          for (double& value : normed) value = ToDouble(Rounded<T>(static_cast<float>(value)));
          const auto out = DeviceArray<float>::Unwritten(rows * n);
          ASSERT_EQ(LaunchSkinnyProduct(device_w.data(), n, k, nullptr,
                                        {.x = device_x.data(),
                                         .norm = has_norm ? device_norm.data() : nullptr,
                                         .width = k,
                                         .eps = 1e-3f},
                                        rows, false, out.data(), nullptr),
                    cudaSuccess);
          ExpectRows(out.Values(), ProductOf(normed, w, rows, n, k), n, kTolerance<T>,
                     what + (has_norm ? ", normalised" : ", rounded"));
        }

        if (n % 16 != 0) continue;
        const auto gated = DeviceArray<T>::Unwritten(rows * n / 2);
        ASSERT_EQ(LaunchSkinnyGatedProduct(device_w.data(), n, k, {.act = device_act.data()}, rows,
                                           gated.data(), nullptr),
                  cudaSuccess);
        const Doubles both = ProductOf(ToDoubles(act), w, rows, n, k);
        Doubles products;
        for (int r = 0; r < rows; ++r) {
          for (int i = 0; i < n / 2; ++i) {
            const double gate = both[r * n + i], up = both[r * n + n / 2 + i];
            products.push_back(gate / (1 + std::exp(-gate)) * up);
          }
        }
        ExpectRows(gated.Values(), products, n / 2, kTolerance<T>, what + ", gated");
      }
    }
  }
}

TEST(ProductRows, CoverTheRowsAndNeverShrink) {
  int last = 0;
  for (int rows = 1; rows < 5000; ++rows) {
    const int product_rows = ProductRows(rows);
    ASSERT_GE(product_rows, rows);
    ASSERT_LE(product_rows, rows + rows / 8);
    ASSERT_GE(product_rows, last);
    ASSERT_EQ(ProductRows(product_rows), product_rows);
    last = product_rows;
  }
}

// Samples `rows` on the device, each for one slot of its own, and compares with the CPU's sampler.
void ExpectSampledAsOnTheCpu(const std::vector<std::vector<float>>& logits,
                             const std::vector<Sampling>& samplings, const std::string& what) {
  const int n = static_cast<int>(logits.size()), vocab = static_cast<int>(logits[0].size());
  const int meta = 6, per_row = 2, slot_stride = 3, first_slot = 1;
  std::vector<float> all;
  for (const auto& row : logits) all.insert(all.end(), row.begin(), row.end());
  std::vector<RowSampling> rows;
  for (const Sampling& s : samplings) {
    rows.push_back({.temperature = s.temperature,
                    .top_p = s.top_p,
                    .min_p = s.min_p,
                    .top_k = s.top_k,
                    .seed = s.seed,
                    .query = s.query,
                    .sample = s.sample,
                    .first_token = 960,
                    .top_logprobs = s.top_logprobs});
  }
  const DeviceArray<float> device_logits(PaddedRows(all, vocab));
  const DeviceArray<RowSampling> device_rows(rows);
  const int places = static_cast<int>(rows.size()) * meta;
  const DeviceArray<int32_t> tokens(std::vector<int32_t>(places, -7));
  const DeviceArray<TokenAndLogprob> sampled(std::vector<TokenAndLogprob>(places, {-7, 0}));
  const DeviceArray<TokenAndLogprob> top(
      std::vector<TokenAndLogprob>(places * kMaxTopLogprobs, {-7, 0}));
  const SampledOutput output{.meta_tokens = meta,
                             .top_stride = kMaxTopLogprobs,
                             .tokens = tokens.data(),
                             .sampled = sampled.data(),
                             .top = top.data()};
  // In two pieces, as a decoder with little room for logits does.
  const SlotMap slots{.per_row = per_row, .stride = slot_stride, .first = first_slot};
  const int half = n / 2;
  ASSERT_EQ(LaunchSampleTokens(device_logits.data(), Padded(vocab), vocab, device_rows.data(),
                               slots, 0, half, output, nullptr),
            cudaSuccess);
  ASSERT_EQ(LaunchSampleTokens(device_logits.data() + half * Padded(vocab), Padded(vocab), vocab,
                               device_rows.data(), slots, half, n - half, output, nullptr),
            cudaSuccess);
  const auto got_tokens = tokens.Values();
  const auto got = sampled.Values(), got_top = top.Values();
  std::vector<bool> written(places);
  for (int lane = 0; lane < n; ++lane) {
    const int row = lane / per_row, slot = lane % per_row * slot_stride + first_slot;
    const int place = row * meta + slot;
    written[place] = true;
    const SampledLogits expected = SampleToken(KernelsFor<float>(BestIsa()), logits[lane],
                                               samplings[row], rows[row].first_token + slot);
    ASSERT_EQ(got_tokens[place], expected.token) << what << ", lane " << lane;
    ASSERT_EQ(got[place].token, expected.token);
    ASSERT_NEAR(got[place].logprob, expected.logprob, 1e-5 * (1 + std::abs(expected.logprob)));
    for (size_t i = 0; i < expected.top.size(); ++i) {
      const TokenAndLogprob& other = got_top[place * kMaxTopLogprobs + i];
      ASSERT_EQ(other.token, expected.top[i].token) << what << ", alternative " << i;
      ASSERT_NEAR(other.logprob, expected.top[i].logprob,
                  1e-5 * (1 + std::abs(expected.top[i].logprob)));
    }
  }
  for (int place = 0; place < places; ++place) {
    if (!written[place]) {
      ASSERT_EQ(got_tokens[place], -7) << "wrote another slot";
    }
  }
}

TEST_F(OnGpu, SamplingDrawsWhatTheCpuDraws) {
  for (const int vocab : {1, 5, 67, 1024, 4096, 32003}) {
    std::vector<std::vector<float>> logits;
    std::vector<Sampling> samplings;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f}) {
      for (const int top_k : {0, 1, 7, 500}) {
        for (const float top_p : {1.0f, 0.9f, 0.2f, 1e-6f}) {
          for (const float min_p : {0.0f, 0.1f, 1.0f}) {
            samplings.push_back({.temperature = temperature,
                                 .top_k = top_k,
                                 .top_p = top_p,
                                 .min_p = min_p,
                                 .seed = random_(),
                                 .query = static_cast<uint32_t>(random_() % 5),
                                 .sample = static_cast<uint32_t>(random_() % 5),
                                 .top_logprobs = RandomBelow(8) == 0 ? kMaxTopLogprobs : 0});
            logits.push_back(Random(vocab, 3));
            logits.push_back(Random(vocab, 3));
          }
        }
      }
    }
    ExpectSampledAsOnTheCpu(logits, samplings, absl::StrCat("vocabulary ", vocab));
  }
}

TEST_F(OnGpu, SamplingBreaksTiesByIds) {
  // Few different values, so that every threshold falls among equals.
  std::vector<std::vector<float>> logits;
  std::vector<Sampling> samplings;
  for (const int top_k : {0, 1, 3, 100, 301}) {
    for (const float top_p : {1.0f, 0.77f, 0.3f}) {
      samplings.push_back({.top_k = top_k, .top_p = top_p, .seed = random_(), .top_logprobs = 9});
      for (int i = 0; i < 2; ++i) {
        std::vector<float> row(777);
        for (float& value : row) value = static_cast<float>(RandomBelow(4));
        logits.push_back(row);
      }
    }
  }
  ExpectSampledAsOnTheCpu(logits, samplings, "ties");
}

TEST_F(OnGpu, SamplingSurvivesExtremeLogits) {
  std::vector<std::vector<float>> logits;
  std::vector<Sampling> samplings;
  for (const float temperature : {0.0f, 1e-38f, 1e-20f, 1.0f, 1e30f}) {
    samplings.push_back({.temperature = temperature, .top_p = 0.5f});
    logits.push_back({-1e30f, 1e30f, 0, 88, -88});
    logits.push_back({-3e38f, -3e38f, -3e38f, -3e38f, -3e38f});
  }
  ExpectSampledAsOnTheCpu(logits, samplings, "extremes");
}

TEST_F(OnGpu, SamplingFollowsTheProbabilities) {
  // One row of many slots: the draws differ by position alone.
  const std::vector<float> probabilities = {0.125f, 0.5f, 0.05f, 0.25f, 0.075f};
  const int draws = 20000, vocab = 5;
  std::vector<float> logits;
  for (int i = 0; i < draws; ++i) {
    for (float p : probabilities) logits.push_back(std::log(p));
  }
  const DeviceArray<float> device_logits(PaddedRows(logits, vocab));
  const DeviceArray<RowSampling> row({{.temperature = 1, .seed = 9}});
  const auto tokens = DeviceArray<int32_t>::Unwritten(draws);
  const auto sampled = DeviceArray<TokenAndLogprob>::Unwritten(draws);
  const SampledOutput output{
      .meta_tokens = draws, .tokens = tokens.data(), .sampled = sampled.data()};
  ASSERT_EQ(LaunchSampleTokens(device_logits.data(), Padded(vocab), vocab, row.data(),
                               {.per_row = draws, .stride = 1}, 0, draws, output, nullptr),
            cudaSuccess);
  std::vector<double> frequencies(vocab);
  for (int32_t token : tokens.Values()) frequencies.at(token) += 1.0 / draws;
  for (int i = 0; i < vocab; ++i) {
    // Five standard deviations of a frequency near one half.
    EXPECT_NEAR(frequencies[i], probabilities[i], 5 * 0.5 / std::sqrt(draws)) << i;
  }
}

TEST_F(OnGpu, SamplingLeavesForcedSlotsAlone) {
  const int vocab = 40, meta = 4;
  const auto logits = Random(2 * vocab);
  const DeviceArray<float> device_logits(PaddedRows(logits, vocab));
  const DeviceArray<RowSampling> rows({{.num_forced = 3}, {.num_forced = 2}});
  const DeviceArray<int32_t> tokens(std::vector<int32_t>(2 * meta, -7));
  const DeviceArray<TokenAndLogprob> sampled(std::vector<TokenAndLogprob>(2 * meta));
  const SampledOutput output{
      .meta_tokens = meta, .tokens = tokens.data(), .sampled = sampled.data()};
  ASSERT_EQ(LaunchSampleTokens(device_logits.data(), Padded(vocab), vocab, rows.data(),
                               {.first = 2}, 0, 2, output, nullptr),
            cudaSuccess);
  const auto got = tokens.Values();
  EXPECT_EQ(got[2], -7);
  const auto second = logits.begin() + vocab;
  EXPECT_EQ(got[meta + 2], std::max_element(second, logits.end()) - second);
}

}  // namespace
}  // namespace photon::cuda
