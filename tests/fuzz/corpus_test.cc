// Runs a fuzz target over its seed corpus and over mutations of it, the same ones every time, so
// that the ordinary suite exercises what the fuzzer does, under any compiler.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kMutants = 4000;

std::vector<std::string> ReadCorpus() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(PHOTON_CORPUS)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> seeds;
  for (const std::filesystem::path& path : paths) {
    std::ifstream file(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return seeds;
}

void RunTarget(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

// mt19937_64 is the same everywhere; the standard distributions are not.
class Mutator {
 public:
  explicit Mutator(std::vector<std::string> seeds) : seeds_(std::move(seeds)) {}

  std::string Next() {
    std::string input = seeds_[Below(seeds_.size())];
    for (uint64_t edits = 1 + Below(4); edits > 0; --edits) Edit(input);
    return input;
  }

 private:
  uint64_t Below(uint64_t bound) { return random_() % bound; }

  void Edit(std::string& input) {
    static const std::string kTokens[] = {"0",
                                          "-1",
                                          "1e9",
                                          "9223372036854775807",
                                          "18446744073709551615",
                                          "{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "\"",
                                          "null",
                                          "\\u0000",
                                          "true",
                                          "\xff",
                                          "1e999",
                                          "\"a\":"};
    const size_t at = Below(input.size() + 1);
    const size_t length = std::min<size_t>(1 + Below(16), input.size() - at);
    switch (Below(6)) {
      case 0:
        if (at < input.size()) input[at] = static_cast<char>(Below(256));
        break;
      case 1:
        if (at < input.size()) input[at] ^= static_cast<char>(1 << Below(8));
        break;
      case 2:
        input.erase(at, length);
        break;
      case 3:
        input.replace(at, length, kTokens[Below(std::size(kTokens))]);
        break;
      case 4:
        input.insert(at, std::string(input, at, length));
        break;
      case 5: {
        const std::string& other = seeds_[Below(seeds_.size())];
        input = input.substr(0, at) + other.substr(std::min(at, other.size()));
        break;
      }
    }
  }

  const std::vector<std::string> seeds_;
  std::mt19937_64 random_{20251220};
};

TEST(Corpus, SeedsRunClean) {
  const std::vector<std::string> seeds = ReadCorpus();
  ASSERT_FALSE(seeds.empty());
  for (const std::string& seed : seeds) RunTarget(seed);
  RunTarget("");
}

TEST(Corpus, MutantsRunClean) {
  Mutator mutator(ReadCorpus());
  for (int i = 0; i < kMutants; ++i) RunTarget(mutator.Next());
}

}  // namespace
