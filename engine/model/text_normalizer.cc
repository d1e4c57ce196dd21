#include "engine/model/text_normalizer.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/utf8.h"

namespace photon {
namespace {

// Real rules replace by a few dozen bytes; the bound keeps a hostile file from blowing texts up.
constexpr size_t kMaxReplacementBytes = 1024;

uint32_t ReadLittleEndian32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// One unit of a Darts-clone array. A node's children lie at (node ^ offset ^ label); where the node
// ends a key, its value lies at (node ^ offset).
struct DoubleArrayUnit {
  uint32_t bits;

  bool ends_key() const { return (bits >> 8 & 1) != 0; }
  uint32_t value() const { return bits & 0x7FFFFFFF; }
  // Above 0xFF in units that hold a value.
  uint32_t label() const { return bits & 0x800000FF; }
  uint32_t offset() const { return bits >> 10 << ((bits & 1u << 9) >> 6); }
};

}  // namespace

SymbolMatcher::SymbolMatcher(std::vector<std::string> symbols) : symbols_(std::move(symbols)) {
  std::sort(symbols_.begin(), symbols_.end());
  for (const std::string& symbol : symbols_) {
    starts_symbol_[static_cast<unsigned char>(symbol[0])] = true;
  }
}

size_t SymbolMatcher::LongestPrefix(std::string_view text) const {
  if (text.empty() || !starts_symbol_[static_cast<unsigned char>(text[0])]) return 0;
  // [first, last) are the symbols that share the first `depth` bytes with the text. The shortest
  // sorts first, and none of them is shorter than `depth`.
  size_t longest = 0;
  auto first = symbols_.begin();
  auto last = symbols_.end();
  for (size_t depth = 0; depth < text.size() && first != last; ++depth) {
    if (first->size() == depth) ++first;
    const auto byte_at = [depth](const std::string& symbol) {
      return static_cast<unsigned char>(symbol[depth]);
    };
    const auto byte = static_cast<unsigned char>(text[depth]);
    first = std::partition_point(first, last, [&](const auto& s) { return byte_at(s) < byte; });
    last = std::partition_point(first, last, [&](const auto& s) { return byte_at(s) == byte; });
    if (first != last && first->size() == depth + 1) longest = depth + 1;
  }
  return longest;
}

absl::StatusOr<CharsMap> CharsMap::Create(std::string_view blob) {
  if (blob.size() < 4) {
    return absl::InvalidArgumentError("precompiled_charsmap: shorter than its length field");
  }
  const size_t array_bytes = ReadLittleEndian32(blob);
  blob.remove_prefix(4);
  if (array_bytes == 0 || array_bytes % 4 != 0 || array_bytes >= blob.size()) {
    return absl::InvalidArgumentError(absl::StrCat("precompiled_charsmap: a double array of ",
                                                   array_bytes, " bytes does not fit into the ",
                                                   blob.size(), " bytes there are"));
  }
  CharsMap map;
  map.units_.reserve(array_bytes / 4);
  for (size_t i = 0; i < array_bytes; i += 4) {
    map.units_.push_back(ReadLittleEndian32(blob.substr(i)));
  }
  map.replacements_ = blob.substr(array_bytes);
  if (map.replacements_.back() != '\0') {
    return absl::InvalidArgumentError("precompiled_charsmap: the last replacement has no end");
  }
  for (size_t begin = 0; begin < map.replacements_.size();) {
    const size_t end = map.replacements_.find('\0', begin);
    if (end - begin > kMaxReplacementBytes) {
      return absl::InvalidArgumentError(absl::StrCat("precompiled_charsmap: a replacement of ",
                                                     end - begin, " bytes, at most ",
                                                     kMaxReplacementBytes, " are allowed"));
    }
    begin = end + 1;
  }
  return map;
}

CharsMap::Match CharsMap::LongestPrefix(std::string_view text) const {
  Match match;
  if (units_.empty()) return match;
  uint32_t position = DoubleArrayUnit{units_[0]}.offset();
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    position ^= byte;
    if (position >= units_.size()) break;
    const DoubleArrayUnit unit{units_[position]};
    if (unit.label() != byte) break;
    position ^= unit.offset();
    if (position >= units_.size()) break;
    if (unit.ends_key()) {
      const uint32_t start = DoubleArrayUnit{units_[position]}.value();
      if (start >= replacements_.size()) break;
      match = {i + 1, std::string_view(replacements_.data() + start)};
    }
  }
  return match;
}

TextNormalizer::TextNormalizer(const Options& options, CharsMap chars_map, SymbolMatcher symbols)
    : options_(options), chars_map_(std::move(chars_map)), symbols_(std::move(symbols)) {}

CharsMap::Match TextNormalizer::NormalizePrefix(std::string_view text) const {
  if (const size_t length = symbols_.LongestPrefix(text); length > 0) {
    return {length, text.substr(0, length)};
  }
  if (const CharsMap::Match match = chars_map_.LongestPrefix(text); match.length > 0) return match;
  if (const size_t length = Utf8CharLength(text); length > 0) {
    return {length, text.substr(0, length)};
  }
  return {1, kReplacementCharacter};
}

std::string TextNormalizer::Normalize(std::string_view text) const {
  return Normalize(text, /*begins=*/true);
}

std::string TextNormalizer::NormalizeContinuation(std::string_view text) const {
  return Normalize(text, /*begins=*/false);
}

std::string TextNormalizer::Normalize(std::string_view text, bool begins) const {
  const bool squeeze = options_.remove_extra_whitespaces;
  const std::string_view space = options_.escape_whitespaces ? kSpaceSymbol : " ";

  if (squeeze && begins) {
    while (!text.empty()) {
      const CharsMap::Match match = NormalizePrefix(text);
      if (match.replacement != " ") break;
      text.remove_prefix(match.length);
    }
  }
  std::string normalized;
  if (text.empty()) return normalized;
  normalized.reserve(text.size() + text.size() / 2 + space.size());

  if (begins && options_.add_dummy_prefix && !options_.whitespace_as_suffix) normalized += space;
  bool after_space = squeeze && begins;
  while (!text.empty()) {
    const CharsMap::Match match = NormalizePrefix(text);
    text.remove_prefix(match.length);
    std::string_view piece = match.replacement;
    while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
    if (piece.empty()) continue;
    for (const char c : piece) {
      if (c == ' ') {
        normalized += space;
      } else {
        normalized += c;
      }
    }
    after_space = squeeze && piece.ends_with(' ');
  }
  if (squeeze) {
    while (normalized.ends_with(space)) normalized.erase(normalized.size() - space.size());
  }
  if (options_.add_dummy_prefix && options_.whitespace_as_suffix) normalized += space;
  return normalized;
}

}  // namespace photon
