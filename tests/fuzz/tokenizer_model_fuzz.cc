// Any bytes as a model file: refused, or a tokenizer that takes any text and gives UTF-8 back.
// The input is the model, or "text\0model".
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "engine/model/tokenizer.h"
#include "engine/model/utf8.h"

namespace {

constexpr std::string_view kText =
    " a\u00E9  \u4F60\u597D \U0001F600 <s>\n\n1\u00BD \xFF\xC3 the the ";

void Exercise(const photon::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<photon::TokenId> tokens = tokenizer.Encode(text);
  for (const photon::TokenId token : tokens) {
    if (token < 0 || token >= tokenizer.vocab_size()) std::abort();
  }
  if (!photon::IsValidUtf8(tokenizer.Decode(tokens))) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (const auto tokenizer = photon::Tokenizer::Create(input); tokenizer.ok()) {
    Exercise(**tokenizer, kText);
  }
  const size_t end_of_text = input.find('\0');
  if (end_of_text == std::string_view::npos) return 0;
  const auto tokenizer = photon::Tokenizer::Create(input.substr(end_of_text + 1));
  if (tokenizer.ok()) Exercise(**tokenizer, input.substr(0, end_of_text));
  return 0;
}
