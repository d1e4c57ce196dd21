#include "server/trace_context.h"

namespace photon {
namespace {

// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": version, trace, parent, flags.
constexpr size_t kTraceBegin = 3;
constexpr size_t kTraceLength = 32;
constexpr size_t kParentBegin = 36;
constexpr size_t kParentLength = 16;
constexpr size_t kFlagsBegin = 53;
constexpr size_t kLength = 55;

// Hexadecimal, and, if `may_be_zero` is false, not of zeros alone.
bool IsId(std::string_view digits, bool may_be_zero) {
  const bool is_hex = digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  return is_hex && (may_be_zero || digits.find_first_not_of('0') != std::string_view::npos);
}

}  // namespace

TraceContext TraceContext::From(std::optional<std::string_view> traceparent) {
  if (!traceparent.has_value() || traceparent->size() < kLength) return {};
  const std::string_view header = *traceparent;
  const std::string_view version = header.substr(0, 2);
  // Later versions may say more after what this one says.
  const bool fits = version == "00" ? header.size() == kLength
                                    : header.size() == kLength || header[kLength] == '-';
  const std::string_view trace = header.substr(kTraceBegin, kTraceLength);
  const std::string_view parent = header.substr(kParentBegin, kParentLength);
  const std::string_view flags = header.substr(kFlagsBegin, 2);
  const bool is_well_formed =
      fits && IsId(version, /*may_be_zero=*/true) && version != "ff" &&
      header[kTraceBegin - 1] == '-' && header[kParentBegin - 1] == '-' &&
      header[kFlagsBegin - 1] == '-' && IsId(trace, /*may_be_zero=*/false) &&
      IsId(parent, /*may_be_zero=*/false) && IsId(flags, /*may_be_zero=*/true);
  if (!is_well_formed) return {};
  // The lowest bit, whatever the others come to mean.
  const bool is_sampled = std::string_view("13579bdf").find(flags[1]) != std::string_view::npos;
  return {std::string(trace), std::string(parent), is_sampled};
}

}  // namespace photon
