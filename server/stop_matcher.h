// Finds stop strings in text that comes in pieces.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace photon {

// Passes text through, holding back what could be the beginning of a stop string. The text ends
// where the first stop string *completed*; of several that complete with the same byte, the longest
// counts. So the result does not depend on how the text is cut into pieces.
//
// Stop strings are not empty. If they and the text are UTF-8, and each piece holds whole
// characters, then so does each piece passed on. Each byte costs O(stop strings), amortised (Knuth,
// Morris, Pratt).
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stop_strings);

  // The text that has become certain with `text`. After a match: what came before the stop string,
  // and from then on nothing.
  std::string Append(std::string_view text);

  // What is held back, at the end of the text.
  std::string Finish();

  // Index of the stop string that ended the text.
  std::optional<size_t> match() const { return match_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // [i]: longest proper border of the first i + 1 bytes
    size_t matched = 0;          // longest prefix of `text` that ends the text so far
  };

  std::vector<Pattern> patterns_;
  std::string held_;  // as long as the longest `matched`
  std::optional<size_t> match_;
};

}  // namespace photon
