#include "engine/cpu/kernels.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "engine/cpu/packed_matrix.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

class KernelsOfEveryIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!IsaSupported(GetParam())) GTEST_SKIP() << "this processor has no " << IsaName(GetParam());
  }

  std::vector<float> Random(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  std::mt19937_64 random_{42};
};

// Relative to the sum of absolute products, so that cancellation does not count as error.
template <typename T>
constexpr double kTolerance = 0;
template <>
constexpr double kTolerance<float> = 1e-6;
template <>
constexpr double kTolerance<BFloat16> = 1e-6;  // inputs are rounded before the comparison

template <typename T>
T Rounded(float value);
template <>
float Rounded(float value) {
  return value;
}
template <>
BFloat16 Rounded(float value) {
  return ToBFloat16(value);
}

template <typename T>
void ExpectProductIsRight(const Kernels<T>& kernels, int m, int k, int n, bool add, bool bias,
                          const std::vector<float>& a, const std::vector<float>& w,
                          const std::vector<float>& b) {
  ThreadPool pool(2);
  const TensorView view{
      .dtype = DType::kF32, .shape = {n, k}, .data = reinterpret_cast<const std::byte*>(w.data())};
  const Linear<T> linear{
      PackedMatrix<T>(std::span(&view, 1), pool),
      bias ? std::vector<float>(b.begin(), b.begin() + n) : std::vector<float>()};
  const int64_t lda = k + 3;
  std::vector<T> act(m * lda, Rounded<T>(1e9f));  // what lies beyond a row must not matter
  for (int r = 0; r < m; ++r) {
    kernels.convert(a.data() + r * k, k, act.data() + r * lda);
  }
  const int64_t ldy = n + 1;
  std::vector<float> y(m * ldy, 0.5f);
  linear.Apply(kernels, pool, act.data(), lda, m, add, y.data(), ldy);

  for (int r = 0; r < m; ++r) {
    for (int c = 0; c < n; ++c) {
      double expected = (add ? 0.5 : 0) + (bias ? b[c] : 0), scale = 1;
      for (int i = 0; i < k; ++i) {
        const double product =
            double{ToFloat(Rounded<T>(a[r * k + i]))} * double{ToFloat(Rounded<T>(w[c * k + i]))};
        expected += product;
        scale += std::abs(product);
      }
      ASSERT_NEAR(y[r * ldy + c], expected, kTolerance<T> * scale)
          << m << "x" << k << "x" << n << " at " << r << ", " << c;
    }
    ASSERT_EQ(y[r * ldy + n], 0.5f) << "wrote beyond the row";
  }

  // One row at a time gives the same bits.
  for (int r = 0; r < m; ++r) {
    std::vector<float> row(n, 0.5f);
    linear.Apply(kernels, pool, act.data() + r * lda, lda, 1, add, row.data(), n);
    ASSERT_EQ(std::memcmp(row.data(), y.data() + r * ldy, n * sizeof(float)), 0);
  }
}

TEST_P(KernelsOfEveryIsa, ProductMatchesTheDefinitionInEveryShape) {
  const auto a = Random(200 * 301), w = Random(130 * 301), bias = Random(130);
  for (int m : {1, 2, 5, 6, 7, 13, 97, 200}) {
    for (int k : {1, 2, 31, 64, 301}) {
      if (m * k > 20000) continue;
      for (int n : {1, 15, 64, 65, 130}) {
        const bool add = (m + n) % 2 == 0, with_bias = (m + k) % 2 == 0;
        ExpectProductIsRight(KernelsFor<float>(GetParam()), m, k, n, add, with_bias, a, w, bias);
        ExpectProductIsRight(KernelsFor<BFloat16>(GetParam()), m, k, n, add, with_bias, a, w, bias);
      }
    }
  }
}

TEST_P(KernelsOfEveryIsa, RmsNormMatchesTheDefinition) {
  for (int n : {1, 3, 16, 31, 52, 416}) {
    const auto x = Random(n), weight = Random(n);
    double squares = 0;
    for (float v : x) squares += double{v} * v;
    const double scale = 1 / std::sqrt(squares / n + 1e-3);
    std::vector<float> out(n);
    std::vector<BFloat16> rounded(n + 1, BFloat16{0x7fc0});
    KernelsFor<float>(GetParam()).rms_norm(x.data(), weight.data(), n, 1e-3f, out.data());
    KernelsFor<BFloat16>(GetParam()).rms_norm(x.data(), weight.data(), n, 1e-3f, rounded.data());
    for (int i = 0; i < n; ++i) {
      const double expected = x[i] * scale * weight[i];
      EXPECT_NEAR(out[i], expected, 1e-5 * std::abs(expected));
      EXPECT_NEAR(ToFloat(rounded[i]), expected, 0.005 * std::abs(expected));
    }
    if (n % 2 == 1) {
      EXPECT_EQ(rounded[n].bits, 0) << "an odd row is followed by a zero";
    }
  }
}

TEST_P(KernelsOfEveryIsa, SwiGluMatchesTheDefinitionFarFromZeroToo) {
  for (int n : {1, 15, 16, 50}) {
    auto gate_up = Random(2 * n);
    gate_up[0] = -200;
    if (n > 1) gate_up[1] = 200;
    std::vector<float> out(n);
    KernelsFor<float>(GetParam()).swiglu(gate_up.data(), n, out.data());
    for (int i = 0; i < n; ++i) {
      const double gate = gate_up[i];
      const double expected = gate / (1 + std::exp(-gate)) * gate_up[n + i];
      EXPECT_NEAR(out[i], expected, 2e-6 * std::abs(expected) + 1e-30);
    }
  }
}

TEST_P(KernelsOfEveryIsa, LogSumExpMatchesTheDefinition) {
  for (int n : {1, 7, 16, 33, 4096}) {
    auto x = Random(n);
    for (float& v : x) v = v * 10 + 50;
    double total = 0, largest = -1e30;
    for (float v : x) largest = std::max<double>(largest, v);
    for (float v : x) total += std::exp(v - largest);
    float max, log_sum;
    KernelsFor<float>(GetParam()).log_sum_exp(x.data(), n, &max, &log_sum);
    EXPECT_EQ(max, static_cast<float>(largest));
    EXPECT_NEAR(log_sum, largest + std::log(total), 1e-5 * std::abs(log_sum));
  }
}

template <typename T>
void ExpectAttentionIsRight(Isa isa, const AttentionShape& shape, int position, double tolerance,
                            const std::vector<float>& random) {
  const Kernels<T>& kernels = KernelsFor<T>(isa);
  const int dim = shape.head_dim, kv_dim = shape.num_kv_heads * dim;
  const int width = shape.num_heads * dim + 2 * kv_dim, half = shape.rope_dims / 2;
  // Segments of three positions, in an order of their own.
  constexpr int kSegment = 3;
  const int segments = position / kSegment + 1;
  std::vector<PageId> pages;
  for (int s = 0; s < segments; ++s) pages.push_back(PageId{segments - 1 - s});
  const int64_t stride = int64_t{kSegment} * 2 * kv_dim + 5;
  std::vector<T> memory(segments * stride);
  const KvLayer<T> kv{.base = memory.data(),
                      .pages = pages.data(),
                      .page_stride = stride,
                      .segment_positions = kSegment,
                      .kv_dim = kv_dim};
  std::vector<std::vector<double>> keys, values;
  std::vector<float> qkv(width);
  for (int p = 0; p <= position; ++p) {
    qkv.assign(random.begin() + p * 7, random.begin() + p * 7 + width);
    std::vector<float> cosines(half), sines(half);
    for (int i = 0; i < half; ++i) {
      cosines[i] = std::cos(p * 0.3f / (i + 1));
      sines[i] = std::sin(p * 0.3f / (i + 1));
    }
    const std::vector<float> before = qkv;
    kernels.rotate_and_store(shape, cosines.data(), sines.data(), qkv.data(), kv.at(p));
    for (int h = 0; h < shape.num_heads + shape.num_kv_heads; ++h) {
      for (int i = 0; i < half; ++i) {
        const double x = before[h * dim + i], y = before[h * dim + half + i];
        EXPECT_NEAR(qkv[h * dim + i], x * cosines[i] - y * sines[i], 1e-5);
        EXPECT_NEAR(qkv[h * dim + half + i], y * cosines[i] + x * sines[i], 1e-5);
      }
    }
    const float* k = qkv.data() + shape.num_heads * dim;
    keys.emplace_back(k, k + kv_dim);
    values.emplace_back(k + kv_dim, k + 2 * kv_dim);
  }
  std::vector<float> scores(position + 1);
  std::vector<T> out(shape.num_heads * dim + 1);
  kernels.attend(shape, qkv.data(), kv, position, scores.data(), out.data());
  for (int h = 0; h < shape.num_heads; ++h) {
    const int kv_head = h / (shape.num_heads / shape.num_kv_heads);
    std::vector<double> weights;
    double total = 0;
    for (int p = 0; p <= position; ++p) {
      double dot = 0;
      for (int d = 0; d < dim; ++d) dot += qkv[h * dim + d] * keys[p][kv_head * dim + d];
      weights.push_back(std::exp(dot / std::sqrt(dim)));
      total += weights.back();
    }
    for (int d = 0; d < dim; ++d) {
      double expected = 0;
      for (int p = 0; p <= position; ++p) {
        expected += weights[p] / total * values[p][kv_head * dim + d];
      }
      ASSERT_NEAR(ToFloat(out[h * dim + d]), expected, tolerance)
          << "head size " << dim << ", position " << position << ", head " << h << ", " << d;
    }
  }
}

TEST_P(KernelsOfEveryIsa, AttentionMatchesTheDefinitionForEveryHeadSize) {
  const auto random = Random(4000);
  for (int head_dim : {4, 6, 16, 32, 52, 56, 60, 64, 128}) {
    for (int position : {0, 1, 5, 40}) {
      const AttentionShape shape{.num_heads = 4,
                                 .num_kv_heads = position % 2 == 0 ? 2 : 4,
                                 .head_dim = head_dim,
                                 .rope_dims = head_dim / 4 * 2};
      ExpectAttentionIsRight<float>(GetParam(), shape, position, 2e-5, random);
      ExpectAttentionIsRight<BFloat16>(GetParam(), shape, position, 0.06, random);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, KernelsOfEveryIsa,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512,
                                         Isa::kAvx512Bf16),
                         [](const auto& info) { return IsaName(info.param); });

TEST(ThreadPool, EveryItemRunsOnceOnDistinctThreads) {
  ThreadPool pool(4);
  for (int64_t count : {0, 1, 3, 4, 5, 1000}) {
    for (int64_t grain : {1, 2, 100}) {
      std::vector<int> runs(count);
      std::vector<int> busy(4);
      pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
        EXPECT_EQ(busy[thread]++, 0) << "two ranges on one thread number";
        for (int64_t i = begin; i < end; ++i) ++runs[i];
      });
      EXPECT_EQ(runs, std::vector<int>(count, 1)) << count << " by " << grain;
    }
  }
}

TEST(ThreadPool, ManyLoopsFollowOneAnother) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(3);
  for (int loop = 0; loop < 2000; ++loop) {
    pool.ParallelFor(3, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) sums[i] += i + 1;
    });
  }
  EXPECT_EQ(sums, (std::vector<int64_t>{2000, 4000, 6000}));
}

}  // namespace
}  // namespace photon
