#include "engine/model/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "engine/model/float_bits.h"

namespace photon {
namespace {

using ::testing::ElementsAre;

TEST(FloatBits, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = BF16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(value))));
    } else {
      EXPECT_EQ(FloatToBF16(value), bits);
    }
  }
}

TEST(FloatBits, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = F16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      EXPECT_EQ(FloatToF16(value), bits);
    }
  }
}

TEST(FloatBits, NarrowingTakesTheNearestAndOnATieTheEven) {
  // Half way between neighbours a < b, a hair below and a hair above.
  for (uint16_t low = 0; low < 0x7bff; ++low) {
    const float middle = 0.5f * (F16ToFloat(low) + F16ToFloat(low + 1));
    EXPECT_EQ(FloatToF16(middle), low % 2 == 0 ? low : low + 1);
    EXPECT_EQ(FloatToF16(std::nextafter(middle, 0.0f)), low);
    EXPECT_EQ(FloatToF16(std::nextafter(middle, std::numeric_limits<float>::infinity())), low + 1);
    EXPECT_EQ(FloatToF16(-middle), FloatToF16(middle) | 0x8000);
  }
  for (uint32_t low = 0; low < 0x7f7f; ++low) {
    const float middle = std::bit_cast<float>(low << 16 | 0x8000);
    EXPECT_EQ(FloatToBF16(middle), low % 2 == 0 ? low : low + 1);
    EXPECT_EQ(FloatToBF16(std::nextafter(middle, 0.0f)), low);
    EXPECT_EQ(FloatToBF16(std::nextafter(middle, std::numeric_limits<float>::infinity())), low + 1);
  }
}

TEST(FloatBits, OverflowIsInfinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(F16ToFloat(FloatToF16(65519.0f)), 65504.0f);
  EXPECT_EQ(F16ToFloat(FloatToF16(65520.0f)), infinity);
  EXPECT_EQ(F16ToFloat(FloatToF16(-1e30f)), -infinity);
  EXPECT_EQ(BF16ToFloat(FloatToBF16(std::numeric_limits<float>::max())), infinity);
}

TEST(TensorView, ToFloatReadsEveryDType) {
  const float f32[] = {1.0f, -2.5f};
  const uint16_t bf16[] = {0x3f80, 0xc020};
  const uint16_t f16[] = {0x3c00, 0xc100};
  const int32_t i32[] = {7, -9};
  const auto view = [](DType dtype, const void* data) {
    return TensorView{.dtype = dtype, .shape = {2, 1}, .data = static_cast<const std::byte*>(data)};
  };
  EXPECT_THAT(ToFloat(view(DType::kF32, f32)), ElementsAre(1.0f, -2.5f));
  EXPECT_THAT(ToFloat(view(DType::kBF16, bf16)), ElementsAre(1.0f, -2.5f));
  EXPECT_THAT(ToFloat(view(DType::kF16, f16)), ElementsAre(1.0f, -2.5f));
  EXPECT_THAT(ToFloat(view(DType::kI32, i32)), ElementsAre(7.0f, -9.0f));
}

}  // namespace
}  // namespace photon
