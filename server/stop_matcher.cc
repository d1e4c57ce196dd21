#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace photon {
namespace {

// Length of the longest border after `matched` bytes of `pattern` and then `byte`.
size_t Advance(std::string_view pattern, const std::vector<size_t>& border, size_t matched,
               char byte) {
  while (matched > 0 && (matched == pattern.size() || pattern[matched] != byte)) {
    matched = border[matched - 1];
  }
  return pattern[matched] == byte ? matched + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stop_strings) {
  for (std::string& text : stop_strings) {
    Pattern pattern{.text = std::move(text), .border = {0}};
    for (size_t i = 1; i < pattern.text.size(); ++i) {
      pattern.border.push_back(
          Advance(pattern.text, pattern.border, pattern.border.back(), pattern.text[i]));
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopMatcher::Append(std::string_view text) {
  if (match_.has_value()) return "";
  for (char byte : text) {
    held_ += byte;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      Pattern& pattern = patterns_[i];
      pattern.matched = Advance(pattern.text, pattern.border, pattern.matched, byte);
      const bool complete = pattern.matched == pattern.text.size();
      if (complete &&
          (!match_.has_value() || pattern.text.size() > patterns_[*match_].text.size())) {
        match_ = i;
      }
    }
    if (match_.has_value()) {
      held_.resize(held_.size() - patterns_[*match_].text.size());
      return std::exchange(held_, "");
    }
  }
  size_t hold = 0;
  for (const Pattern& pattern : patterns_) hold = std::max(hold, pattern.matched);
  std::string certain = held_.substr(0, held_.size() - hold);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Finish() {
  return std::exchange(held_, "");
}

}  // namespace photon
