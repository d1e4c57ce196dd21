// Matrix products against the plain formula in double precision, over awkward shapes and fresh
// random inputs. Outputs are poisoned beforehand.
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cuda/kernels/skinny_product.h"
#include "engine/cuda/matrix_product.h"
#include "tests/engine/cuda/kernel_formulas.h"

namespace photon::cuda {
namespace {

template <typename T>
using ProductKernels = Kernels<T>;
TYPED_TEST_SUITE(ProductKernels, StorageTypes);

TYPED_TEST(ProductKernels, ProductsMatchTheDefinition) {
  using T = TypeParam;
  DeviceAllocator allocator;
  auto product = MatrixProduct::Create(allocator);
  ASSERT_TRUE(product.ok()) << product.status().ToString();
  for (const int rows : {1, 2, 3, 17, 33, 100, 300}) {
    for (const int k : {8, 24, 416}) {
      for (const int n : {8, 72, 1000}) {
        for (const int kind : {0, 1, 2}) {  // plain, biased, added
          if (!this->Takes()) continue;
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
    for (const int k : {8, 24, 40, 416, 1664, 4424}) {  // the last: in several panels
      for (const int n : {8, 24, 80, 1000}) {
        if ((k > 2000 && n > 100) || !Takes()) continue;
        const auto act = RoundedTo<T>(Random(rows * k)), w = RoundedTo<T>(Random(n * k));
        const auto x = Random(rows * k), norm = Random(k), bias = Random(n),
                   before = Random(rows * n);
        const DeviceArray<T> device_act(act), device_w(w);
        const DeviceArray<float> device_x(x), device_norm(norm), device_bias(bias), y(before);
        const SkinnyWeights<T> weights{.data = device_w.data(), .n = n, .k = k};
        SkinnyWeights<T> biased = weights;
        biased.bias = device_bias.data();
        const std::string what = absl::StrCat(rows, "x", k, "x", n);
        Doubles expected = ProductOf(ToDoubles(act), w, rows, n, k);

        ASSERT_EQ(
            LaunchSkinnyProduct(weights, {.act = device_act.data()}, rows, true, y.data(), nullptr),
            cudaSuccess);
        Doubles added = expected;
        for (size_t i = 0; i < added.size(); ++i) added[i] += before[i];
        ExpectRows(y.Values(), added, n, 5e-6, what + ", added");

        const auto rounded = DeviceArray<T>::Unwritten(rows * n);
        ASSERT_EQ(LaunchSkinnyProduct(biased, {.act = device_act.data()}, rows, false,
                                      rounded.data(), nullptr),
                  cudaSuccess);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % n];
        ExpectRows(rounded.Values(), expected, n, kTolerance<T>, what + ", biased");

        // The input is rounded with the norm's weight, or as it is; the row's scale comes after.
        for (const bool has_norm : {false, true}) {
          const Doubles exact = ToDoubles(x);
          Doubles normed = exact;
          for (int r = 0; r < rows; ++r) {
            const double scale = has_norm ? InverseRms(exact.data() + r * k, k, 1e-3) : 1;
            for (int i = 0; i < k; ++i) {
              const float weighted = x[r * k + i] * (has_norm ? norm[i] : 1);
              normed[r * k + i] = scale * ToDouble(Rounded<T>(weighted));
            }
          }
          const auto out = DeviceArray<float>::Unwritten(rows * n);
          ASSERT_EQ(LaunchSkinnyProduct(weights,
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
        ASSERT_EQ(LaunchSkinnyGatedProduct(weights, {.act = device_act.data()}, rows, gated.data(),
                                           nullptr),
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

}  // namespace
}  // namespace photon::cuda
