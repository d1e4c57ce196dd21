#include "engine/memory_budget.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

absl::Status Invalid(std::string_view text, const std::string& problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("expected bytes, as in 1073741824 or 512MiB, or a share of what is free, as in "
                   "60%: \"",
                   std::string(text), "\" ", problem));
}

// Bytes of a unit in lower case; 0 where it is none.
double UnitBytes(std::string_view unit) {
  if (unit.empty() || unit == "b") return 1;
  const size_t power = std::string_view("kmgt").find(unit[0]);
  if (power == std::string_view::npos) return 0;
  const std::string_view rest = unit.substr(1);
  if (!rest.empty() && rest != "b" && rest != "ib") return 0;
  return std::ldexp(1.0, 10 * (static_cast<int>(power) + 1));
}

}  // namespace

absl::StatusOr<MemoryBudget> MemoryBudget::Parse(std::string_view text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number)) return Invalid(text, "is no number");
  std::string unit(rest, end);
  unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (unit == "%") {
    if (!(number > 0 && number <= 100)) return Invalid(text, "is not above 0% and up to 100%");
    return ShareOfFree(number / 100);
  }
  const double unit_bytes = UnitBytes(unit);
  if (unit_bytes == 0) return Invalid(text, absl::StrCat("has the unknown unit \"", unit, "\""));
  const double bytes = std::floor(number * unit_bytes);
  if (bytes < 1) return Invalid(text, "is less than a byte");
  if (bytes >= 0x1p62) return Invalid(text, "is more than any machine has");
  return Bytes(static_cast<int64_t>(bytes));
}

std::string MemoryBudget::ToString() const {
  if (is_share()) return absl::StrCat(share_ * 100, "% of what is free");
  return absl::StrCat(bytes_, " bytes");
}

}  // namespace photon
