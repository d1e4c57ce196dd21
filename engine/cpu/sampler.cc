#include "engine/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/philox.h"

namespace photon {
namespace {

// A token and its probability relative to the most probable one.
struct Candidate {
  TokenId token;
  float weight;
};

bool MoreProbable(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

// Leaves the tokens that top_k, top_p and min_p keep.
void Filter(const Sampling& sampling, std::vector<Candidate>& candidates) {
  const auto count = static_cast<int64_t>(candidates.size());
  if (sampling.top_k > 0 && sampling.top_k < count) {
    std::nth_element(candidates.begin(), candidates.begin() + sampling.top_k - 1, candidates.end(),
                     MoreProbable);
    candidates.resize(sampling.top_k);
  }
  if (sampling.top_p < 1.0f) {
    const double total =
        std::accumulate(candidates.begin(), candidates.end(), 0.0,
                        [](double sum, const Candidate& c) { return sum + c.weight; });
    std::sort(candidates.begin(), candidates.end(), MoreProbable);
    double reached = 0;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || reached < sampling.top_p * total)) {
      reached += candidates[kept++].weight;
    }
    candidates.resize(kept);
  }
  if (sampling.min_p > 0) {
    // The largest weight is 1: no filter drops the most probable token.
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < sampling.min_p; });
  }
}

TokenId Draw(std::span<const float> logits, float largest, const Sampling& sampling,
             int64_t position) {
  const float inverse_temperature = 1.0f / sampling.temperature;
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - largest) * inverse_temperature);
    if (weight > 0) candidates.push_back({static_cast<TokenId>(i), weight});
  }
  Filter(sampling, candidates);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
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
                          const Sampling& sampling, int64_t position) {
  float largest, log_sum;
  kernels.log_sum_exp(logits.data(), static_cast<int>(logits.size()), &largest, &log_sum);
  SampledLogits result;
  // A temperature so small that its inverse overflows means greedy too.
  if (sampling.temperature < 1e-30f) {
    result.token =
        static_cast<TokenId>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  } else {
    result.token = Draw(logits, largest, sampling, position);
  }
  result.logprob = logits[result.token] - log_sum;
  if (sampling.top_logprobs > 0) {
    std::vector<TokenLogprob> all(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      all[i] = {static_cast<TokenId>(i), logits[i] - log_sum};
    }
    const size_t count = std::min<size_t>(sampling.top_logprobs, all.size());
    std::partial_sort(all.begin(), all.begin() + count, all.end(),
                      [](const TokenLogprob& a, const TokenLogprob& b) {
                        return a.logprob > b.logprob ||
                               (a.logprob == b.logprob && a.token < b.token);
                      });
    all.resize(count);
    result.top = std::move(all);
  }
  return result;
}

template SampledLogits SampleToken(const Kernels<float>&, std::span<const float>, const Sampling&,
                                   int64_t);
template SampledLogits SampleToken(const Kernels<BFloat16>&, std::span<const float>,
                                   const Sampling&, int64_t);

}  // namespace photon
