#include "engine/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/philox.h"

namespace photon {
namespace {

bool MoreProbable(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

// Leaves the fewest of the most probable candidates whose weights reach `share` of the total. Sorts
// no more than it must: most of a vocabulary is never looked at.
void KeepTop(float share, std::vector<Candidate>& candidates) {
  constexpr size_t kFirstBlock = 64;
  const double total =
      std::accumulate(candidates.begin(), candidates.end(), 0.0,
                      [](double sum, const Candidate& c) { return sum + c.weight; });
  double reached = 0;
  size_t kept = 0;
  for (size_t sorted = 0; sorted < candidates.size();) {
    const auto begin = candidates.begin() + static_cast<int64_t>(sorted);
    sorted = std::min(candidates.size(), std::max(kFirstBlock, 2 * sorted));
    const auto end = candidates.begin() + static_cast<int64_t>(sorted);
    if (end != candidates.end()) std::nth_element(begin, end, candidates.end(), MoreProbable);
    std::sort(begin, end, MoreProbable);
    while (kept < sorted) {
      if (kept > 0 && reached >= share * total) return candidates.resize(kept);
      reached += candidates[kept++].weight;
    }
  }
}

// Leaves the tokens that top_k, top_p and min_p keep, in order of ids.
void Filter(const Sampling& sampling, std::vector<Candidate>& candidates) {
  const auto count = static_cast<int64_t>(candidates.size());
  bool in_order = true;
  if (sampling.top_k > 0 && sampling.top_k < count) {
    std::nth_element(candidates.begin(), candidates.begin() + sampling.top_k - 1, candidates.end(),
                     MoreProbable);
    candidates.resize(sampling.top_k);
    in_order = false;
  }
  if (sampling.top_p < 1.0f) {
    KeepTop(sampling.top_p, candidates);
    in_order = false;
  }
  if (sampling.min_p > 0) {
    // The largest weight is 1: no filter drops the most probable token.
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < sampling.min_p; });
  }
  if (in_order) return;
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
}

TokenId Draw(std::span<const float> logits, float largest, const Sampling& sampling,
             int64_t position, std::vector<Candidate>& candidates) {
  const float inverse_temperature = 1.0f / sampling.temperature;
  candidates.clear();
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - largest) * inverse_temperature);
    if (weight > 0) candidates.push_back({static_cast<TokenId>(i), weight});
  }
  Filter(sampling, candidates);
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  const double target = total * SamplingDraw(sampling.seed, sampling.query, sampling.sample,
                                             static_cast<uint32_t>(position));
  double reached = 0;
  for (const Candidate& c : candidates) {
    reached += c.weight;
    if (reached > target) return c.token;
  }
  return candidates.back().token;
}

}  // namespace

template <typename T>
SampledLogits SampleToken(const Kernels<T>& kernels, std::span<const float> logits,
                          const Sampling& sampling, int64_t position, SamplerScratch& scratch) {
  float largest, log_sum;
  kernels.log_sum_exp(logits.data(), static_cast<int>(logits.size()), &largest, &log_sum);
  SampledLogits result;
  // A temperature so small that its inverse overflows means greedy too.
  if (sampling.temperature < 1e-30f) {
    result.token =
        static_cast<TokenId>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  } else {
    result.token = Draw(logits, largest, sampling, position, scratch.candidates);
  }
  result.logprob = logits[result.token] - log_sum;
  if (sampling.top_logprobs > 0) {
    std::vector<TokenLogprob>& all = scratch.logprobs;
    all.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      all[i] = {static_cast<TokenId>(i), logits[i] - log_sum};
    }
    const size_t count = std::min<size_t>(sampling.top_logprobs, all.size());
    std::partial_sort(all.begin(), all.begin() + count, all.end(),
                      [](const TokenLogprob& a, const TokenLogprob& b) {
                        return a.logprob > b.logprob ||
                               (a.logprob == b.logprob && a.token < b.token);
                      });
    result.top.assign(all.begin(), all.begin() + static_cast<int64_t>(count));
  }
  return result;
}

template SampledLogits SampleToken(const Kernels<float>&, std::span<const float>, const Sampling&,
                                   int64_t, SamplerScratch&);
template SampledLogits SampleToken(const Kernels<BFloat16>&, std::span<const float>,
                                   const Sampling&, int64_t, SamplerScratch&);

}  // namespace photon
