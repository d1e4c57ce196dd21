#include "engine/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "engine/philox.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

// Probabilities 0.5, 0.25, 0.125, 0.075, 0.05 in an order of their own.
const std::vector<float> kLogits = {std::log(0.125f), std::log(0.5f), std::log(0.05f),
                                    std::log(0.25f), std::log(0.075f)};
constexpr int kDraws = 20000;

SampledLogits Sample(const Sampling& sampling, int64_t position) {
  return SampleToken(KernelsFor<float>(BestIsa()), kLogits, sampling, position);
}

std::vector<double> Frequencies(const Sampling& sampling) {
  std::vector<double> counts(kLogits.size());
  for (int i = 0; i < kDraws; ++i) counts[Sample(sampling, i).token] += 1.0 / kDraws;
  return counts;
}

// Five standard deviations of a frequency near one half.
constexpr double kSpread = 5 * 0.5 / 141.4;

TEST(Philox, MatchesThePublishedVectors) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, DrawsDifferBySeedQuerySampleAndPosition) {
  const double draw = SamplingDraw(1, 2, 3, 4);
  EXPECT_EQ(draw, SamplingDraw(1, 2, 3, 4));
  EXPECT_NE(draw, SamplingDraw(uint64_t{1} << 32 | 1, 2, 3, 4));
  EXPECT_NE(draw, SamplingDraw(0, 2, 3, 4));
  EXPECT_NE(draw, SamplingDraw(1, 0, 3, 4));
  EXPECT_NE(draw, SamplingDraw(1, 2, 0, 4));
  EXPECT_NE(draw, SamplingDraw(1, 2, 3, 0));
}

TEST(SampleToken, TakesTheLowestIdOnAGreedyTie) {
  const std::vector<float> logits = {0, 3, 1, 3, 2};
  const auto sampled =
      SampleToken(KernelsFor<float>(BestIsa()), logits, Sampling{.temperature = 0}, 0);
  EXPECT_EQ(sampled.token, 1);
}

TEST(SampleToken, FollowsTheProbabilities) {
  const auto frequencies = Frequencies({.seed = 9});
  for (size_t i = 0; i < kLogits.size(); ++i) {
    EXPECT_NEAR(frequencies[i], std::exp(kLogits[i]), kSpread) << i;
  }
}

TEST(SampleToken, SharpensWithALowTemperature) {
  // Probabilities squared and normalised.
  const double total = 0.25 + 0.0625 + 0.015625 + 0.005625 + 0.0025;
  EXPECT_NEAR(Frequencies({.temperature = 0.5f})[1], 0.25 / total, kSpread);
}

TEST(SampleToken, TopKKeepsTheMostProbable) {
  const auto frequencies = Frequencies({.top_k = 2});
  EXPECT_NEAR(frequencies[1], 2.0 / 3, kSpread);
  EXPECT_NEAR(frequencies[3], 1.0 / 3, kSpread);
  EXPECT_EQ(frequencies[0] + frequencies[2] + frequencies[4], 0);
}

TEST(SampleToken, TopPKeepsTheFewestThatReachIt) {
  const auto frequencies = Frequencies({.top_p = 0.7f});
  EXPECT_NEAR(frequencies[1], 2.0 / 3, kSpread);
  EXPECT_EQ(frequencies[0] + frequencies[2] + frequencies[4], 0);
  EXPECT_NEAR(Frequencies({.top_p = 1e-6f})[1], 1, 1e-9)
      << "the most probable token is always kept";
}

TEST(SampleToken, TopPOfALargeVocabularyKeepsWhatSortingAllOfItWould) {
  std::mt19937_64 random(5);
  for (const float spread : {0.01f, 1.0f, 6.0f}) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> logits(3000);
    for (float& logit : logits) logit = normal(random);
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    double total = 0;
    for (float logit : logits) total += std::exp(logit);
    for (const float top_p : {0.001f, 0.3f, 0.9f, 0.999f}) {
      // Rounding may move the edge by a token: neither side of it is checked.
      double reached = 0;
      size_t kept = 0;
      while (reached < top_p * total) reached += std::exp(logits[order[kept++]]);
      std::vector<bool> allowed(logits.size());
      for (size_t i = 0; i <= kept && i < order.size(); ++i) allowed[order[i]] = true;
      std::vector<bool> drawn(logits.size());
      for (int position = 0; position < 300; ++position) {
        const TokenId token = SampleToken(KernelsFor<float>(BestIsa()), logits,
                                          Sampling{.top_p = top_p, .seed = 3}, position)
                                  .token;
        EXPECT_TRUE(allowed[token]) << "spread " << spread << ", top_p " << top_p;
        drawn[token] = true;
      }
      // Draws reach down to the less probable half of what is kept, where that has weight.
      bool any_low = kept < 4 || spread > 1;
      for (size_t i = kept / 2; i < kept; ++i) any_low = any_low || drawn[order[i]];
      EXPECT_TRUE(any_low) << "spread " << spread << ", top_p " << top_p;
    }
  }
}

TEST(SampleToken, MinPDropsWhatIsFarBelowTheMostProbable) {
  const auto frequencies = Frequencies({.min_p = 0.2f});
  EXPECT_EQ(frequencies[2] + frequencies[4], 0);
  EXPECT_GT(frequencies[0], 0);
}

TEST(SampleToken, FiltersApplyInOrder) {
  // top_k leaves 0.5, 0.25, 0.125 of 0.875; top_p of that keeps the first two.
  const auto frequencies = Frequencies({.top_k = 3, .top_p = 0.8f});
  EXPECT_NEAR(frequencies[1], 2.0 / 3, kSpread);
  EXPECT_EQ(frequencies[0], 0);
}

TEST(SampleToken, LogProbabilitiesAreOfTheUnfilteredDistribution) {
  const auto sampled = Sample({.temperature = 2, .top_k = 1, .top_logprobs = 3}, 0);
  EXPECT_EQ(sampled.token, 1);
  EXPECT_NEAR(sampled.logprob, std::log(0.5), 1e-5);
  ASSERT_EQ(sampled.top.size(), 3u);
  EXPECT_EQ(sampled.top[1].token, 3);
  EXPECT_NEAR(sampled.top[2].logprob, std::log(0.125), 1e-5);
}

TEST(SampleToken, SurvivesExtremeLogits) {
  const std::vector<float> logits = {-1e30f, 1e30f, 0, 88, -88};
  for (float temperature : {0.0f, 1e-38f, 1e-20f, 1.0f, 1e30f}) {
    const auto sampled =
        SampleToken(KernelsFor<float>(BestIsa()), logits, Sampling{.temperature = temperature}, 0);
    EXPECT_GE(sampled.token, 0);
    EXPECT_LT(sampled.token, 5);
  }
}

}  // namespace
}  // namespace photon
