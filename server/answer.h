// Answers in texts: where they are, and when two of them are the same.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace re2 {
class RE2;
}

namespace photon {

inline constexpr size_t kMaxPatternBytes = 512;
// Of a longer text only its end is searched.
inline constexpr size_t kMaxAnswerTextBytes = 64 << 10;

// Finds a text's answer. Time is linear in the text, whatever the text and the pattern are: RE2
// never backtracks, its programs are small, and JSON is parsed at most eight times. Immutable; safe
// to use from many threads.
class AnswerExtractor {
 public:
  // "-1,024.50", "3e8": a sign counts unless it follows a letter or digit ("3-4" ends with 4),
  // commas where they part groups of three.
  static AnswerExtractor LastNumber();

  // The first match: its first group, or all of it. kInvalidArgument: not RE2's syntax, too long or
  // too large a program; the message says where.
  static absl::StatusOr<AnswerExtractor> RegularExpression(const std::string& pattern);

  // The value at an RFC 6901 pointer in the first JSON object or array of the text, which may stand
  // between other text. Strings without their quotes, all else as compact JSON with sorted keys; a
  // null is no answer. kInvalidArgument: not such a pointer, or too long.
  static absl::StatusOr<AnswerExtractor> JsonPointer(const std::string& pointer);

  static AnswerExtractor WholeText();

  AnswerExtractor(AnswerExtractor&&) noexcept;
  AnswerExtractor& operator=(AnswerExtractor&&) noexcept;
  ~AnswerExtractor();

  // As the text has it, without white space at its ends; nothing if that leaves nothing. Valid
  // UTF-8 if `text` is.
  std::optional<std::string> Extract(std::string_view text) const;

 private:
  enum class Source { kLastNumber, kRegularExpression, kJsonPointer, kWholeText };

  explicit AnswerExtractor(Source source);

  Source source_;
  std::unique_ptr<re2::RE2> pattern_;  // of kRegularExpression
  std::vector<std::string> path_;      // of kJsonPointer: its reference tokens, unescaped
};

// Equal for answers that mean the same: ASCII letters in lower case; white space at the ends
// removed, elsewhere one space; a number, if the answer is one, in one notation: "1,024.50" and
// "+1.0245E3" are "1024.5".
std::string NormalizeAnswer(std::string_view answer);

// The first `max_bytes` of `text` or fewer, so that no UTF-8 character is cut.
std::string_view TruncateUtf8(std::string_view text, size_t max_bytes);

}  // namespace photon
