// What SentencePiece does to text before it looks for pieces: character replacement, whitespace
// clean-up, the dummy prefix, and U+2581 in place of spaces. All classes here are immutable once
// built and safe to use from many threads.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace photon {

// U+2581, which stands for a space inside pieces.
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

// A set of strings that finds its longest member at the start of a text.
class SymbolMatcher {
 public:
  SymbolMatcher() = default;
  explicit SymbolMatcher(std::vector<std::string> symbols);  // none of them empty

  // Bytes of the longest symbol that `text` starts with, 0 where there is none.
  size_t LongestPrefix(std::string_view text) const;

 private:
  std::vector<std::string> symbols_;  // sorted
  std::array<bool, 256> starts_symbol_{};
};

// Character replacement rules compiled by SentencePiece (`nmt_nfkc`, `nfkc_cf`, a user's own): a
// Darts-clone double array from source strings to replacements.
class CharsMap {
 public:
  // No rules.
  CharsMap() = default;

  // Reads `precompiled_charsmap`, laid out as sentencepiece_model.proto says. kInvalidArgument if
  // it is cut short. Nothing in the array is trusted: lookups stay inside it whatever it holds.
  static absl::StatusOr<CharsMap> Create(std::string_view blob);

  struct Match {
    size_t length = 0;             // bytes of text that are replaced, 0: no rule applies
    std::string_view replacement;  // may be empty; borrowed from the map
  };
  // The longest rule that applies at the start of `text`.
  Match LongestPrefix(std::string_view text) const;

 private:
  std::vector<uint32_t> units_;  // the double array
  std::string replacements_;     // zero-terminated strings
};

class TextNormalizer {
 public:
  struct Options {
    bool add_dummy_prefix = true;          // a space before the text
    bool remove_extra_whitespaces = true;  // leading, trailing and repeated spaces
    bool escape_whitespaces = true;        // spaces become U+2581
    bool whitespace_as_suffix = false;     // the dummy space goes behind the text
  };

  // Text equal to one of `symbols` is exempt from the rules of `chars_map`.
  TextNormalizer(const Options& options, CharsMap chars_map, SymbolMatcher symbols);

  // A byte of `text` that starts no UTF-8 character becomes U+FFFD.
  std::string Normalize(std::string_view text) const;

  // Of a text that goes on from another: no dummy prefix, and white space at its beginning counts
  // as white space inside a text does.
  std::string NormalizeContinuation(std::string_view text) const;

  const Options& options() const { return options_; }
  const SymbolMatcher& symbols() const { return symbols_; }

 private:
  // Replaces one symbol, rule or character at the start of `text`; `length` is at least 1.
  CharsMap::Match NormalizePrefix(std::string_view text) const;
  std::string Normalize(std::string_view text, bool begins) const;

  Options options_;
  CharsMap chars_map_;
  SymbolMatcher symbols_;
};

}  // namespace photon
