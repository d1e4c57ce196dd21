// Any tokens against any stop strings: what comes out piece by piece is valid UTF-8, has no stop
// string in it, and is the text of all tokens up to the first of them. Lines are stop strings,
// after a zero byte each two bytes are a token.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_split.h"
#include "engine/model/detokenizer.h"
#include "engine/model/utf8.h"
#include "server/generation_output.h"
#include "tests/server/test_model.h"

namespace {

using photon::TokenId;

// The end of the stop string that completes first in `text`, of those the longest: where it begins.
size_t CutOf(std::string_view text, const std::vector<std::string>& stops) {
  size_t first_end = std::string_view::npos;
  size_t cut = text.size();
  for (const std::string& stop : stops) {
    const size_t begin = text.find(stop);
    if (begin == std::string_view::npos) continue;
    const size_t end = begin + stop.size();
    if (end < first_end || (end == first_end && begin < cut)) cut = begin;
    first_end = std::min(first_end, end);
  }
  return cut;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const photon::ModelFacts model = photon::TestModel();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string lines(input.substr(0, input.find('\0')));
  const std::string_view rest = input.substr(std::min(lines.size() + 1, input.size()));
  photon::Query query;
  if (photon::IsValidUtf8(lines)) {
    query.stop_strings = absl::StrSplit(lines, '\n', absl::SkipEmpty());
    query.stop_strings.resize(std::min<size_t>(query.stop_strings.size(), 16));
  }
  query.sequence.prompt = {1};

  std::vector<photon::SampledToken> tokens(rest.size() / 2);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto high = static_cast<unsigned char>(rest[2 * i]);
    const auto low = static_cast<unsigned char>(rest[2 * i + 1]);
    tokens[i].token = static_cast<TokenId>((high << 8 | low) % model.shape.vocab_size);
  }
  photon::Detokenizer detokenizer(*model.tokenizer, query.sequence.prompt);
  std::string whole;
  for (const photon::SampledToken& token : tokens) whole += detokenizer.Append(token.token);
  whole += detokenizer.Finish();

  photon::GenerationOutput output(query, *model.tokenizer);
  std::string text;
  bool stopped = false;
  // Steps of up to four tokens.
  for (size_t begin = 0; begin < tokens.size() && !stopped; begin += 4) {
    const size_t count = std::min<size_t>(4, tokens.size() - begin);
    photon::v1::GenerateResponse message;
    stopped = output.Append({&tokens[begin], count}, message).has_value();
    if (!photon::IsValidUtf8(message.text())) std::abort();
    text += message.text();
  }
  photon::v1::GenerateResponse last;
  output.Finish(stopped ? photon::SequenceEnd::kListener : photon::SequenceEnd::kLength, {}, last);
  text += last.text();
  if (!photon::IsValidUtf8(text)) std::abort();
  if (text != whole.substr(0, CutOf(whole, query.stop_strings))) std::abort();
  return 0;
}
