#include "server/answer.h"

#include <re2/re2.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/strict_json.h"

namespace photon {
namespace {

// Of a compiled pattern and what it remembers while it runs. A pattern that needs more is refused;
// one that needs less takes at most some thousand operations for a byte of text.
constexpr int64_t kMaxPatternMemory = 256 << 10;
// Beginnings of JSON that are tried: texts have brackets for other reasons too.
constexpr int kMaxJsonAttempts = 8;
constexpr JsonLimits kJsonLimits = {
    .max_bytes = kMaxAnswerTextBytes, .max_values = 10'000, .max_depth = 32};
// Decimal exponents beyond these stay as they are written.
constexpr int kMaxExponentDigits = 4;
constexpr int64_t kMaxPlainZeros = 20;

constexpr std::string_view kMinusSign = "\xE2\x88\x92";  // U+2212

bool IsSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
char ToLower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string_view StripSpace(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

std::optional<std::string> NonEmpty(std::string_view answer) {
  answer = StripSpace(answer);
  if (answer.empty()) return std::nullopt;
  return std::string(answer);
}

// The end of `text` that is searched.
std::string_view LastBytes(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  text.remove_prefix(text.size() - max_bytes);
  while (!text.empty() && (text.front() & 0xC0) == 0x80) text.remove_prefix(1);
  return text;
}

size_t CountDigits(std::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() && IsDigit(text[end])) ++end;
  return end - at;
}

// Bytes of the unsigned number that `text` begins with; 0 if it begins with none.
size_t NumberLength(std::string_view text) {
  size_t length = CountDigits(text, 0);
  if (length >= 1 && length <= 3) {
    while (length < text.size() && text[length] == ',' && CountDigits(text, length + 1) == 3) {
      length += 4;
    }
  }
  if (length < text.size() && text[length] == '.') {
    const size_t fraction = CountDigits(text, length + 1);
    if (fraction > 0) length += 1 + fraction;
  }
  if (length == 0) return 0;
  if (length < text.size() && ToLower(text[length]) == 'e') {
    size_t digits = length + 1;
    if (digits < text.size() && (text[digits] == '+' || text[digits] == '-')) ++digits;
    if (const size_t count = CountDigits(text, digits); count > 0) length = digits + count;
  }
  return length;
}

// Bytes of the sign that ends at `end`, if it belongs to a number there.
size_t SignLength(std::string_view text, size_t end) {
  const std::string_view before = text.substr(0, end);
  size_t length = 0;
  if (before.ends_with('-') || before.ends_with('+')) {
    length = 1;
  } else if (before.ends_with(kMinusSign)) {
    length = kMinusSign.size();
  }
  if (length == 0 || length == end) return length;
  const char previous = before[end - length - 1];
  return IsDigit(previous) || IsLetter(previous) ? 0 : length;
}

std::optional<std::string> FindLastNumber(std::string_view text) {
  std::optional<std::string_view> last;
  for (size_t at = 0; at < text.size();) {
    const bool fraction = text[at] == '.' && (at == 0 || !IsDigit(text[at - 1]));
    const size_t length = IsDigit(text[at]) || fraction ? NumberLength(text.substr(at)) : 0;
    if (length == 0) {
      ++at;
      continue;
    }
    const size_t sign = SignLength(text, at);
    last = text.substr(at - sign, sign + length);
    at += length;
  }
  if (!last.has_value()) return std::nullopt;
  return std::string(*last);
}

// End of the object or array that `text` begins with: behind the bracket that closes it. Empty if
// there is none.
std::string_view BracketedPrefix(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return text.substr(0, i + 1);
    }
  }
  return "";
}

std::optional<nlohmann::json> FindJson(std::string_view text) {
  for (int attempt = 0; attempt < kMaxJsonAttempts; ++attempt) {
    const size_t begin = text.find_first_of("{[");
    if (begin == std::string_view::npos) break;
    text.remove_prefix(begin);
    if (auto json = ParseStrictJson(BracketedPrefix(text), kJsonLimits); json.ok()) {
      return *std::move(json);
    }
    text.remove_prefix(1);
  }
  return std::nullopt;
}

// RFC 6901: digits without a leading zero.
std::optional<size_t> ArrayIndex(const std::string& token) {
  size_t index = 0;
  const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), index);
  const bool whole = error == std::errc() && end == token.data() + token.size();
  if (!whole || (token.size() > 1 && token[0] == '0')) return std::nullopt;
  return index;
}

std::optional<std::string> ValueAt(const nlohmann::json& json,
                                   const std::vector<std::string>& path) {
  const nlohmann::json* value = &json;
  for (const std::string& token : path) {
    if (value->is_object()) {
      const auto found = value->find(token);
      if (found == value->end()) return std::nullopt;
      value = &*found;
    } else if (value->is_array()) {
      const std::optional<size_t> index = ArrayIndex(token);
      if (!index.has_value() || *index >= value->size()) return std::nullopt;
      value = &(*value)[*index];
    } else {
      return std::nullopt;
    }
  }
  if (value->is_null()) return std::nullopt;
  if (value->is_string()) return NonEmpty(value->get_ref<const std::string&>());
  return value->dump();
}

// The number that `text` is, all of it, in one notation.
std::optional<std::string> NormalizeNumber(std::string_view text) {
  bool negative = false;
  if (text.starts_with(kMinusSign)) {
    negative = true;
    text.remove_prefix(kMinusSign.size());
  } else if (text.starts_with('-') || text.starts_with('+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.empty() || NumberLength(text) != text.size()) return std::nullopt;

  int64_t exponent = 0;
  if (const size_t e = text.find_first_of("eE"); e != std::string_view::npos) {
    std::string_view digits = text.substr(e + 1);
    if (digits.starts_with('+')) digits.remove_prefix(1);
    if (digits.size() > kMaxExponentDigits + 1) return std::nullopt;
    std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    text = text.substr(0, e);
  }
  std::string digits;  // times 10 to the power of `exponent`
  bool fraction = false;
  for (const char c : text) {
    if (c == '.') {
      fraction = true;
    } else if (c != ',') {
      digits += c;
      if (fraction) --exponent;
    }
  }
  const size_t first = digits.find_first_not_of('0');
  if (first == std::string::npos) return "0";
  const size_t last = digits.find_last_not_of('0');
  exponent += static_cast<int64_t>(digits.size() - 1 - last);
  digits = digits.substr(first, last + 1 - first);

  const std::string sign = negative ? "-" : "";
  const int64_t point = static_cast<int64_t>(digits.size()) + exponent;  // digits before it
  if (exponent > kMaxPlainZeros || point < -kMaxPlainZeros) {
    return absl::StrCat(sign, digits, "e", exponent);
  }
  if (exponent >= 0) return absl::StrCat(sign, digits, std::string(exponent, '0'));
  if (point <= 0) return absl::StrCat(sign, "0.", std::string(-point, '0'), digits);
  return absl::StrCat(sign, digits.substr(0, point), ".", digits.substr(point));
}

}  // namespace

AnswerExtractor::AnswerExtractor(Source source) : source_(source) {}
AnswerExtractor::AnswerExtractor(AnswerExtractor&&) noexcept = default;
AnswerExtractor& AnswerExtractor::operator=(AnswerExtractor&&) noexcept = default;
AnswerExtractor::~AnswerExtractor() = default;

AnswerExtractor AnswerExtractor::LastNumber() {
  return AnswerExtractor(Source::kLastNumber);
}

AnswerExtractor AnswerExtractor::WholeText() {
  return AnswerExtractor(Source::kWholeText);
}

absl::StatusOr<AnswerExtractor> AnswerExtractor::RegularExpression(const std::string& pattern) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected 1 to ", kMaxPatternBytes, " bytes, got ", pattern.size()));
  }
  RE2::Options options;
  options.set_max_mem(kMaxPatternMemory);
  options.set_log_errors(false);
  AnswerExtractor extractor(Source::kRegularExpression);
  extractor.pattern_ = std::make_unique<RE2>(pattern, options);
  if (!extractor.pattern_->ok()) return absl::InvalidArgumentError(extractor.pattern_->error());
  return extractor;
}

absl::StatusOr<AnswerExtractor> AnswerExtractor::JsonPointer(const std::string& pointer) {
  if (pointer.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at most ", kMaxPatternBytes, " bytes, got ", pointer.size()));
  }
  if (!pointer.empty() && pointer[0] != '/') {
    return absl::InvalidArgumentError("expected nothing or a / at its beginning");
  }
  AnswerExtractor extractor(Source::kJsonPointer);
  for (size_t i = 0; i < pointer.size(); ++i) {
    if (pointer[i] == '/') {
      extractor.path_.emplace_back();
    } else if (pointer[i] != '~') {
      extractor.path_.back() += pointer[i];
    } else if (++i < pointer.size() && (pointer[i] == '0' || pointer[i] == '1')) {
      extractor.path_.back() += pointer[i] == '0' ? '~' : '/';
    } else {
      return absl::InvalidArgumentError("a ~ must be written ~0, a / inside a name ~1");
    }
  }
  return extractor;
}

std::optional<std::string> AnswerExtractor::Extract(std::string_view text) const {
  if (source_ == Source::kWholeText) return NonEmpty(text);
  text = LastBytes(text, kMaxAnswerTextBytes);
  if (source_ == Source::kLastNumber) return FindLastNumber(text);
  if (source_ == Source::kJsonPointer) {
    const std::optional<nlohmann::json> json = FindJson(text);
    return json.has_value() ? ValueAt(*json, path_) : std::nullopt;
  }
  re2::StringPiece groups[2];
  const int num_groups = std::min(pattern_->NumberOfCapturingGroups(), 1) + 1;
  if (!pattern_->Match(re2::StringPiece(text.data(), text.size()), 0, text.size(), RE2::UNANCHORED,
                       groups, num_groups)) {
    return std::nullopt;
  }
  const re2::StringPiece& match = groups[num_groups - 1];
  return NonEmpty(std::string_view(match.data(), match.size()));
}

std::string NormalizeAnswer(std::string_view answer) {
  answer = StripSpace(answer);
  if (std::optional<std::string> number = NormalizeNumber(answer)) return *std::move(number);
  std::string normalized;
  normalized.reserve(answer.size());
  for (const char c : answer) {
    if (!IsSpace(c)) {
      normalized += ToLower(c);
    } else if (normalized.back() != ' ') {
      normalized += ' ';
    }
  }
  return normalized;
}

std::string_view TruncateUtf8(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  while (max_bytes > 0 && (text[max_bytes] & 0xC0) == 0x80) --max_bytes;
  return text.substr(0, max_bytes);
}

}  // namespace photon
