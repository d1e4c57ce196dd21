// e4m3: rounding, the kernels that quantise rows, and the products of quantised matrices, against
// plain formulas in double precision. Outputs are poisoned beforehand.
#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cuda/kernels/quantised_rows.h"
#include "engine/cuda/kernels/skinny_product.h"
#include "engine/cuda/matrix_product.h"
#include "gmock/gmock.h"
#include "tests/engine/cuda/kernel_formulas.h"

namespace photon::cuda {
namespace {

using ::testing::HasSubstr;

using E4M3 = __nv_fp8_e4m3;
using BF16 = __nv_bfloat16;

constexpr int kNumFinite = 0x7f;  // codes 0 .. 0x7e without a sign

double Decoded(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}
double Decoded(E4M3 value) {
  return Decoded(value.__x);
}

// Half the distance between numbers around `value`, which is in units of the scale.
double HalfStep(double value) {
  return std::ldexp(1, std::max(-6, std::ilogb(value == 0 ? 1e-9 : value)) - 4);
}

class Quantised : public OnGpu {
 protected:
  std::vector<E4M3> RandomE4M3(int64_t count) {
    std::vector<E4M3> values(count);
    for (E4M3& value : values) {
      value.__x = static_cast<unsigned char>(RandomBelow(kNumFinite) | RandomBelow(2) << 7);
    }
    return values;
  }
  std::vector<float> RandomScales(int count) {
    std::vector<float> scales = Random(count, 0.01f);
    for (float& scale : scales) scale = std::abs(scale) + 1e-4f;
    return scales;
  }

  // Products by cuBLASLt of such matrices: where it has them.
  bool HasQuantisedProducts() {
    int device = 0;
    cudaDeviceProp properties;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaGetDeviceProperties(&properties, device) == cudaSuccess && properties.major == 9 &&
           properties.minor == 0;
  }
};

// What quantising rows of `values` [rows, width] gave.
struct Output {
  Output(int rows, int width)
      : data(DeviceArray<E4M3>::Unwritten(int64_t{rows} * width)),
        scales(DeviceArray<float>::Unwritten(rows)) {}

  QuantisedRows rows() const { return {data.data(), scales.data()}; }

  // Scales are those of the largest elements, and no element is further from what it stands for
  // than rounding takes it; 1e-5 of the largest for fp32 sums before it.
  void Expect(const Doubles& values, int width, const std::string& what) const {
    const auto codes = data.Values();
    const auto got = scales.Values();
    for (size_t r = 0; r < got.size(); ++r) {
      double largest = 0;
      for (int i = 0; i < width; ++i) largest = std::max(largest, std::abs(values[r * width + i]));
      ASSERT_NEAR(got[r], largest / kE4M3Max, 1e-5 * largest / kE4M3Max) << what << ", row " << r;
      for (int i = 0; i < width; ++i) {
        const double value = values[r * width + i] / (largest / kE4M3Max);
        ASSERT_NEAR(Decoded(codes[r * width + i]), value, HalfStep(value) + 1e-5 * kE4M3Max)
            << what << ", row " << r << ", element " << i;
      }
    }
  }

  DeviceArray<E4M3> data;
  DeviceArray<float> scales;
};

TEST_F(Quantised, ConversionRoundsToTheNearestTiesToEvenAndKeepsNaN) {
  // The first element makes the scale 1. Then every number, the middles between neighbours, and
  // what is next to those, of both signs.
  std::vector<float> values = {448};
  std::vector<int> codes = {0x7e};
  const auto add = [&](float value, int code) {
    values.insert(values.end(), {value, -value});
    codes.insert(codes.end(), {code, code | 0x80});
  };
  for (int code = 0; code + 1 < kNumFinite; ++code) {
    const auto here = static_cast<float>(Decoded(code)),
               next = static_cast<float>(Decoded(code + 1));
    const float middle = (here + next) / 2;
    add(here, code);
    add(middle, code % 2 == 0 ? code : code + 1);
    add(std::nextafter(middle, 0.0f), code);
    add(std::nextafter(middle, 1e9f), code + 1);
  }
  values.push_back(NAN);
  codes.push_back(0x7f);
  const int size = static_cast<int>(values.size()), width = static_cast<int>(Padded(size));
  const DeviceArray<float> x(PaddedRows(values, size));
  const Output out(1, width);
  ASSERT_EQ(LaunchQuantisedRmsNorm({.x = x.data()}, nullptr, size, 0, out.rows(), 1, nullptr),
            cudaSuccess);
  EXPECT_EQ(out.scales.Values()[0], 1);
  const auto got = out.data.Values();
  for (int i = 0; i + 1 < size; ++i) ASSERT_EQ(got[i].__x, codes[i]) << values[i];
  EXPECT_EQ(got[size - 1].__x & 0x7f, 0x7f);
}

TEST_F(Quantised, NormsMatchTheDefinitionAndAddWhatIsPending) {
  for (const int width : {1, 8, 52, 416, 1664, 5000}) {
    for (const bool has_delta : {false, true}) {
      const int rows = 3, padded = static_cast<int>(Padded(width));
      const auto x = Random(int64_t{rows} * width, 3), norm = Random(width);
      const auto delta = RoundedTo<BF16>(Random(int64_t{rows} * width));
      const DeviceArray<float> device_x(PaddedRows(x, width)), device_norm(PaddedRows(norm, width));
      const DeviceArray<BF16> device_delta(PaddedRows(delta, width));
      Doubles sums = ToDoubles(x), expected;
      for (size_t i = 0; i < sums.size() && has_delta; ++i) {
        sums[i] = static_cast<float>(sums[i] + ToDouble(delta[i]));
      }
      for (int r = 0; r < rows; ++r) {
        const double scale = InverseRms(sums.data() + int64_t{r} * width, width, 1e-3);
        for (int i = 0; i < padded; ++i) {
          expected.push_back(i < width ? sums[r * width + i] * scale * norm[i] : 0);
        }
      }
      const Output out(rows, padded);
      const StreamRows in{.x = device_x.data(),
                          .delta = has_delta ? device_delta.data() : nullptr,
                          .sum = has_delta ? device_x.data() : nullptr};
      ASSERT_EQ(
          LaunchQuantisedRmsNorm(in, device_norm.data(), width, 1e-3f, out.rows(), rows, nullptr),
          cudaSuccess);
      out.Expect(expected, padded, absl::StrCat("width ", width));
      ExpectRows(device_x.Values(), sums, width, 0, "sums");
    }
  }
}

TEST_F(Quantised, RowsMatchTheDefinition) {
  for (const int width : {16, 48, 1664, 4096, 9000}) {  // the last: more than a block holds
    const int rows = 3;
    auto act = RoundedTo<BF16>(Random(int64_t{rows} * width));
    std::fill_n(act.begin() + width, width, Rounded<BF16>(0));
    const Output out(rows, width);
    const DeviceArray<BF16> device_act(act);
    ASSERT_EQ(LaunchQuantiseRows(device_act.data(), width, out.rows(), rows, nullptr), cudaSuccess);
    const auto scales = out.scales.Values();
    EXPECT_EQ(scales[1], 0);
    for (int i = width; i < 2 * width; ++i) ASSERT_EQ(Decoded(out.data.Values()[i]), 0);
    // The row of zeros has no largest element to compare with.
    Doubles expected = ToDoubles(act);
    const auto codes = out.data.Values();
    for (const int r : {0, 2}) {
      double largest = 0;
      for (int i = 0; i < width; ++i)
        largest = std::max(largest, std::abs(expected[r * width + i]));
      ASSERT_NEAR(scales[r], largest / kE4M3Max, 1e-6 * largest);
      for (int i = 0; i < width; ++i) {
        const double value = expected[r * width + i] / largest * kE4M3Max;
        ASSERT_NEAR(Decoded(codes[r * width + i]), value, HalfStep(value) + 1e-3);
      }
    }
  }
}

TEST_F(Quantised, SwiGluMatchesTheDefinition) {
  for (const int width : {16, 48, 4096, 9000}) {
    const int rows = 3;
    const auto gate_up = RoundedTo<BF16>(Random(int64_t{rows} * 2 * width, 3));
    Doubles expected;
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < width; ++i) {
        const double gate = ToDouble(gate_up[r * 2 * width + i]);
        expected.push_back(gate / (1 + std::exp(-gate)) *
                           ToDouble(gate_up[(r * 2 + 1) * width + i]));
      }
    }
    const Output out(rows, width);
    const DeviceArray<BF16> device_gate_up(gate_up);
    ASSERT_EQ(LaunchQuantisedSwiGlu(device_gate_up.data(), width, out.rows(), rows, nullptr),
              cudaSuccess);
    out.Expect(expected, width, absl::StrCat("width ", width));
  }
}

TEST_F(Quantised, PendingRowsAreAdded) {
  for (const int width : {8, 1664}) {
    const int rows = 5;
    const auto delta = RoundedTo<BF16>(Random(rows * width));
    const auto before = Random(rows * width), bias = Random(width);
    const DeviceArray<BF16> device_delta(delta);
    const DeviceArray<float> added(before), device_bias(bias);
    const auto written = DeviceArray<float>::Unwritten(rows * width);
    ASSERT_EQ(LaunchAddRows(device_delta.data(), nullptr, true, width, added.data(), rows, nullptr),
              cudaSuccess);
    ASSERT_EQ(LaunchAddRows(device_delta.data(), device_bias.data(), false, width, written.data(),
                            rows, nullptr),
              cudaSuccess);
    const auto sums = added.Values(), biased = written.Values();
    for (int i = 0; i < rows * width; ++i) {
      const auto value = static_cast<float>(ToDouble(delta[i]));
      ASSERT_EQ(sums[i], value + before[i]);
      ASSERT_EQ(biased[i], value + bias[i % width]);
    }
  }
}

// act [rows, k] times W^T, W [n, k] times scales [n].
Doubles ProductOf(const Doubles& act, const std::vector<E4M3>& w, const std::vector<float>& scales,
                  int rows, int k) {
  const int n = static_cast<int>(scales.size());
  Doubles decoded, out;
  for (const E4M3 value : w) decoded.push_back(Decoded(value));
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < n; ++c) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += act[r * k + i] * decoded[int64_t{c} * k + i];
      out.push_back(sum * scales[c]);
    }
  }
  return out;
}

TEST_F(Quantised, SkinnyProductsMatchTheDefinition) {
  for (const int rows : {1, 3, 7, 8}) {
    for (const int k : {16, 48, 80, 416, 1664, 4432}) {  // the last: in several panels
      for (const int n : {16, 48, 1008}) {
        if ((k > 2000 && n > 100) || !Takes()) continue;
        const std::string what = absl::StrCat(rows, "x", k, "x", n);
        const auto act = RoundedTo<BF16>(Random(rows * k));
        const auto w = RandomE4M3(int64_t{n} * k);
        const auto scales = RandomScales(n), bias = Random(n), before = Random(rows * n);
        const DeviceArray<BF16> device_act(act);
        const DeviceArray<E4M3> device_w(w);
        const DeviceArray<float> device_scales(scales), device_bias(bias), added(before);
        const SkinnyWeights<E4M3> weights{
            .data = device_w.data(), .n = n, .k = k, .scales = device_scales.data()};
        SkinnyWeights<E4M3> biased = weights;
        biased.bias = device_bias.data();
        const Doubles product = ProductOf(ToDoubles(act), w, scales, rows, k);
        Doubles expected_added = product, expected_biased = product;
        for (int i = 0; i < rows * n; ++i) {
          expected_added[i] += before[i];
          expected_biased[i] += bias[i % n];
        }
        ASSERT_EQ(LaunchSkinnyProduct(weights, {.act = device_act.data()}, rows, true, added.data(),
                                      nullptr),
                  cudaSuccess);
        ExpectRows(added.Values(), expected_added, n, 5e-6, what + ", added");
        const auto rounded = DeviceArray<BF16>::Unwritten(rows * n);
        ASSERT_EQ(LaunchSkinnyProduct(biased, {.act = device_act.data()}, rows, false,
                                      rounded.data(), nullptr),
                  cudaSuccess);
        ExpectRows(rounded.Values(), expected_biased, n, kTolerance<BF16>, what + ", biased");

        const auto gated = DeviceArray<BF16>::Unwritten(rows * n / 2);
        ASSERT_EQ(LaunchSkinnyGatedProduct(weights, {.act = device_act.data()}, rows, gated.data(),
                                           nullptr),
                  cudaSuccess);
        Doubles expected_gated;
        for (int r = 0; r < rows; ++r) {
          for (int i = 0; i < n / 2; ++i) {
            const double gate = product[r * n + i], up = product[r * n + n / 2 + i];
            expected_gated.push_back(gate / (1 + std::exp(-gate)) * up);
          }
        }
        ExpectRows(gated.Values(), expected_gated, n / 2, kTolerance<BF16>, what + ", gated");
      }
    }
  }
}

// Every number of e4m3, the subnormal ones too, is the same in bf16.
TEST_F(Quantised, SkinnyProductsWidenWeightsExactly) {
  const int n = 256, k = 16;
  std::vector<E4M3> w(n * k);
  for (int code = 0; code < n; ++code) {
    w[code * k + code % k].__x = static_cast<unsigned char>((code & 0x7f) == 0x7f ? 0 : code);
  }
  const DeviceArray<E4M3> device_w(w);
  const DeviceArray<float> scales(std::vector<float>(n, 1));
  const DeviceArray<BF16> ones(std::vector<BF16>(k, Rounded<BF16>(1)));
  const auto out = DeviceArray<float>::Unwritten(n);
  ASSERT_EQ(
      LaunchSkinnyProduct(
          SkinnyWeights<E4M3>{.data = device_w.data(), .n = n, .k = k, .scales = scales.data()},
          {.act = ones.data()}, 1, false, out.data(), nullptr),
      cudaSuccess);
  const auto values = out.Values();
  for (int code = 0; code < n; ++code) {
    EXPECT_EQ(values[code], Decoded(w[code * k + code % k])) << code;
  }
}

TEST_F(Quantised, ProductsMatchTheDefinition) {
  if (!HasQuantisedProducts()) GTEST_SKIP() << "needs compute capability 9.0";
  DeviceAllocator allocator;
  auto product = MatrixProduct::Create(allocator);
  ASSERT_TRUE(product.ok()) << product.status().ToString();
  for (const int rows : {9, 17, 100, 300}) {
    for (const int k : {16, 416, 1664}) {
      for (const int n : {16, 80, 1008}) {
        if (!Takes()) continue;
        const std::string what = absl::StrCat(rows, "x", k, "x", n);
        const int product_rows = ProductRows(rows);
        const auto a = RandomE4M3(int64_t{product_rows} * k), w = RandomE4M3(int64_t{n} * k);
        const auto a_scales = RandomScales(product_rows), w_scales = RandomScales(n);
        const DeviceArray<E4M3> device_a(a), device_w(w);
        const DeviceArray<float> device_a_scales(a_scales), device_w_scales(w_scales);
        const auto y = DeviceArray<BF16>::Unwritten(int64_t{product_rows} * n);
        const Matrix<BF16> matrix{
            .n = n, .k = k, .quantised = {device_w.data(), device_w_scales.data()}};
        ASSERT_TRUE((*product)->Prepare(matrix, rows, rows).ok());
        Work work(nullptr);
        (*product)->Run(work, matrix, QuantisedRows{device_a.data(), device_a_scales.data()}, rows,
                        y.data());
        ASSERT_TRUE(work.ok()) << work.status().ToString();
        Doubles act;
        for (int i = 0; i < rows * k; ++i) act.push_back(Decoded(a[i]) * a_scales[i / k]);
        auto values = y.Values();
        values.resize(int64_t{rows} * n);
        // bf16 out; tensor cores add e4m3 products with fewer bits than fp32 has, on an H100 13.
        ExpectRows(values, ProductOf(act, w, w_scales, rows, k), n, 2 * kTolerance<BF16>, what);
      }
    }
  }
}

TEST_F(Quantised, ProductsThatCublasHasNotAreRefusedBeforehand) {
  DeviceAllocator allocator;
  auto product = MatrixProduct::Create(allocator);
  ASSERT_TRUE(product.ok()) << product.status().ToString();
  const DeviceArray<E4M3> w(RandomE4M3(16 * 24));
  const DeviceArray<float> scales(RandomScales(16));
  const Matrix<BF16> matrix{.n = 16, .k = 24, .quantised = {w.data(), scales.data()}};
  const absl::Status status = (*product)->Prepare(matrix, 9, 100);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantization: this GPU or its cuBLASLt"));
}

}  // namespace
}  // namespace photon::cuda
