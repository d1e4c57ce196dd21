// Collects what is wrong with an input, so that its author sees every mistake at once.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace photon {

class ProblemList {
 public:
  void Add(std::string problem) {
    ++count_;
    if (shown_.size() < kMaxShown) shown_.push_back(std::move(problem));
  }

  bool empty() const { return count_ == 0; }

  // OK when empty, else kInvalidArgument: the problems joined by "; ", the first sixteen in full.
  absl::Status ToStatus() const {
    if (empty()) return absl::OkStatus();
    std::string message = absl::StrJoin(shown_, "; ");
    if (count_ > shown_.size())
      absl::StrAppend(&message, "; and ", count_ - shown_.size(), " more");
    return absl::InvalidArgumentError(message);
  }

 private:
  static constexpr size_t kMaxShown = 16;
  std::vector<std::string> shown_;
  size_t count_ = 0;
};

// Untrusted text made fit for a message: in quotes, control characters escaped, cut at 120 bytes.
inline std::string Quoted(std::string_view text) {
  constexpr size_t kMaxBytes = 120;
  const bool cut = text.size() > kMaxBytes;
  const absl::string_view head(text.data(), cut ? kMaxBytes : text.size());
  return absl::StrCat("\"", absl::CHexEscape(head), cut ? "...\"" : "\"");
}

}  // namespace photon
