// Norms, activations, copies and converters against the plain formula in double precision, over
// awkward shapes and fresh random inputs, in fp32 and bf16. Outputs are poisoned beforehand.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cuda/kernels/chunk_units.h"
#include "engine/cuda/kernels/expand_vectors.h"
#include "engine/cuda/kernels/rms_norm.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/cuda/kernels/swiglu.h"
#include "tests/engine/cuda/kernel_formulas.h"

namespace photon::cuda {
namespace {

template <typename T>
using RowKernels = Kernels<T>;
TYPED_TEST_SUITE(RowKernels, StorageTypes);

TYPED_TEST(RowKernels, RmsNormMatchesTheDefinition) {
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

TYPED_TEST(RowKernels, RmsNormWithoutAWeightRounds) {
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

TYPED_TEST(RowKernels, SwiGluMatchesTheDefinitionFarFromZeroToo) {
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

TYPED_TEST(RowKernels, EmbedGathersGroupsOfTokens) {
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

TYPED_TEST(RowKernels, ChunkUnitsConcatenatesAndNormalises) {
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

}  // namespace
}  // namespace photon::cuda
