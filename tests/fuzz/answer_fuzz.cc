// Any pattern over any text: refused, or an answer that normalisation leaves as it is the second
// time. The first byte chooses the source, a zero byte parts pattern and text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "engine/model/utf8.h"
#include "server/answer.h"

namespace {

absl::StatusOr<photon::AnswerExtractor> MakeExtractor(uint8_t source, const std::string& pattern) {
  switch (source % 4) {
    case 0:
      return photon::AnswerExtractor::LastNumber();
    case 1:
      return photon::AnswerExtractor::RegularExpression(pattern);
    case 2:
      return photon::AnswerExtractor::JsonPointer(pattern);
    default:
      return photon::AnswerExtractor::WholeText();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::string pattern(rest.substr(0, rest.find('\0')));
  const std::string_view text = rest.substr(std::min(pattern.size() + 1, rest.size()));
  // gRPC lets no other text in, and the detokenizer none out.
  if (!photon::IsValidUtf8(text) || !photon::IsValidUtf8(pattern)) return 0;

  const auto extractor = MakeExtractor(data[0], pattern);
  if (!extractor.ok()) return 0;
  const std::optional<std::string> answer = extractor->Extract(text);
  if (!answer.has_value()) return 0;
  if (answer->empty()) std::abort();
  if (!photon::IsValidUtf8(photon::TruncateUtf8(*answer, 5))) std::abort();
  const std::string normalized = photon::NormalizeAnswer(*answer);
  if (photon::NormalizeAnswer(normalized) != normalized) std::abort();
  return 0;
}
