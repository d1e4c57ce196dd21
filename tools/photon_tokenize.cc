// Encodes or decodes standard input line by line, in the formats of `spm_encode --output_format=id`
// and `spm_decode --input_format=id`, so that the outputs can be compared byte for byte:
//
//   photon-tokenize encode tokenizer.model < text > ids
//   photon-tokenize decode tokenizer.model < ids > text
//
// `--whole` takes all of standard input, newlines included, as one text. The speed goes to standard
// error.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tokenizer.h"

namespace photon {
namespace {

std::string EncodeLine(const Tokenizer& tokenizer, std::string_view text) {
  std::string line;
  for (const TokenId id : tokenizer.Encode(text)) {
    if (!line.empty()) line += ' ';
    line += std::to_string(id);
  }
  return line;
}

std::string DecodeLine(const Tokenizer& tokenizer, std::string_view line) {
  std::vector<TokenId> ids;
  const char* const end = line.data() + line.size();
  for (const char* at = line.data(); at < end;) {
    TokenId id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error == std::errc()) ids.push_back(id);
    at = next == at ? at + 1 : next;
  }
  return tokenizer.Decode(ids);
}

int Run(std::string_view direction, const std::string& model_path, bool whole) {
  const auto tokenizer = Tokenizer::Load(model_path);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  const auto convert = direction == "encode" ? EncodeLine : DecodeLine;
  std::vector<std::string> inputs;
  if (whole) {
    inputs.emplace_back(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  } else {
    for (std::string line; std::getline(std::cin, line);) inputs.push_back(line);
  }
  size_t bytes = 0;
  std::string output;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& input : inputs) {
    bytes += input.size();
    output += convert(**tokenizer, input) + "\n";
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << output;
  std::fprintf(stderr, "%zu inputs, %zu bytes in %.3f s, %.2f MB/s\n", inputs.size(), bytes,
               seconds.count(), bytes / 1e6 / seconds.count());
  return 0;
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  const std::vector<std::string_view> args(argv + 1, argv + argc);
  const bool whole = args.size() == 3 && args[2] == "--whole";
  if (args.size() != (whole ? 3 : 2) || (args[0] != "encode" && args[0] != "decode")) {
    std::cerr << "usage: photon-tokenize encode|decode MODEL [--whole]\n";
    return 2;
  }
  return photon::Run(args[0], std::string(args[1]), whole);
}
