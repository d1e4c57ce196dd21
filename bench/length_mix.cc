#include "bench/length_mix.h"

#include <algorithm>
#include <cmath>

namespace photon {
namespace {

int Draw(const LogNormalLength& length, std::mt19937_64& random) {
  std::lognormal_distribution<double> distribution(std::log(length.median), length.sigma);
  // Far beyond every context, and within int.
  return static_cast<int>(std::clamp(std::round(distribution(random)), 1.0, 1e9));
}

}  // namespace

const std::vector<LengthMix>& LengthMixes() {
  static const auto* const mixes = new std::vector<LengthMix>{
      {.name = "sharegpt", .prompt = {60, 1.4}, .output = {150, 0.9}},
      {.name = "documents", .prompt = {6000, 0.4}, .output = {100, 0.5}},
  };
  return *mixes;
}

const LengthMix* FindLengthMix(const std::string& name) {
  const std::vector<LengthMix>& mixes = LengthMixes();
  const auto found = std::find_if(mixes.begin(), mixes.end(),
                                  [&](const LengthMix& mix) { return mix.name == name; });
  return found == mixes.end() ? nullptr : &*found;
}

CallLengths DrawLengths(const LengthMix& mix, int max_tokens, std::mt19937_64& random) {
  const int prompt = Draw(mix.prompt, random), output = Draw(mix.output, random);
  const int kept_for_output = std::max(1, std::min(output, max_tokens / 4));
  CallLengths lengths;
  lengths.prompt_tokens = std::clamp(prompt, 1, std::max(1, max_tokens - kept_for_output));
  lengths.output_tokens = std::clamp(output, 1, std::max(1, max_tokens - lengths.prompt_tokens));
  return lengths;
}

std::vector<double> PoissonArrivals(double rate, double seconds, std::mt19937_64& random) {
  std::exponential_distribution<double> gap(rate);
  std::vector<double> arrivals;
  for (double at = gap(random); at < seconds; at += gap(random)) arrivals.push_back(at);
  return arrivals;
}

}  // namespace photon
