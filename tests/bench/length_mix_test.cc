#include "bench/length_mix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace photon {
namespace {

TEST(LengthMix, LengthsStayWithinTheContext) {
  for (const LengthMix& mix : LengthMixes()) {
    for (const int max_tokens : {2, 100, 2048}) {
      std::mt19937_64 random(1);
      for (int i = 0; i < 1000; ++i) {
        const CallLengths lengths = DrawLengths(mix, max_tokens, random);
        ASSERT_GE(lengths.prompt_tokens, 1) << mix.name;
        ASSERT_GE(lengths.output_tokens, 1) << mix.name;
        ASSERT_LE(lengths.prompt_tokens + lengths.output_tokens, max_tokens) << mix.name;
      }
    }
  }
}

TEST(LengthMix, MeansAreThoseOfTheHeader) {
  std::mt19937_64 random(1);
  constexpr int kDraws = 20'000;
  double prompts = 0, outputs = 0;
  for (int i = 0; i < kDraws; ++i) {
    const CallLengths lengths = DrawLengths(*FindLengthMix("sharegpt"), 1 << 20, random);
    prompts += lengths.prompt_tokens;
    outputs += lengths.output_tokens;
  }
  EXPECT_NEAR(prompts / kDraws, 160, 20);
  EXPECT_NEAR(outputs / kDraws, 225, 15);
}

TEST(LengthMix, UnknownNamesHaveNone) {
  EXPECT_EQ(FindLengthMix("no such mix"), nullptr);
}

TEST(PoissonArrivals, ComeAtTheRateInOrderAndAgainForTheSameSeed) {
  std::mt19937_64 random(7), again(7);
  const std::vector<double> arrivals = PoissonArrivals(50, 100, random);
  EXPECT_NEAR(static_cast<double>(arrivals.size()), 5000, 300);
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  EXPECT_LT(arrivals.back(), 100);
  EXPECT_EQ(arrivals, PoissonArrivals(50, 100, again));
}

}  // namespace
}  // namespace photon
