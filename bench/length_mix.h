// How long prompts and outputs are: mixes of lengths that a seed makes again.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace photon {

// Lengths whose logarithms are normal, as those of what people write are.
struct LogNormalLength {
  double median = 0;  // tokens
  double sigma = 0;   // of the natural logarithm
};

struct LengthMix {
  std::string name;
  LogNormalLength prompt;
  LogNormalLength output;
};

struct CallLengths {
  int prompt_tokens = 0;
  int output_tokens = 0;
};

// "sharegpt": short questions with a long tail and longer answers, as in the published ShareGPT
// conversations (means of 160 and 225 tokens); "documents": prompts of 6,500 tokens on average,
// answers of 113.
const std::vector<LengthMix>& LengthMixes();

// The mix of that name; null if there is none.
const LengthMix* FindLengthMix(const std::string& name);

// Both at least 1, and together at most `max_tokens` >= 2, of which the output keeps at least a
// quarter where it asks for so many.
CallLengths DrawLengths(const LengthMix& mix, int max_tokens, std::mt19937_64& random);

// Seconds from the start of a load to each of its calls: a Poisson process of `rate` calls a
// second, until `seconds`.
std::vector<double> PoissonArrivals(double rate, double seconds, std::mt19937_64& random);

}  // namespace photon
