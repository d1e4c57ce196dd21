// Tokens drawn on the device against the sampler of the CPU engine.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cpu/sampler.h"
#include "engine/cuda/kernels/sample_tokens.h"
#include "tests/engine/cuda/gpu_fixture.h"

namespace photon::cuda {
namespace {

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
            if (!Takes()) continue;
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

TEST_F(OnGpu, SamplingKeepsTheFirstOfEquals) {
  // So few tokens that one too many is soon drawn, and the last of those kept anywhere in a vector.
  std::vector<std::vector<float>> logits;
  std::vector<Sampling> samplings;
  for (int top_k = 1; top_k < 11; ++top_k) {
    for (int draw = 0; draw < 8; ++draw) {
      samplings.push_back({.temperature = 1, .top_k = top_k, .seed = random_()});
      for (int i = 0; i < 2; ++i) logits.push_back(std::vector<float>(11, 0.5f));
    }
  }
  ExpectSampledAsOnTheCpu(logits, samplings, "equals");
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
  const int draws = 20000 / kEveryNth, vocab = 5;
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
