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

std::string TraceIdOf(std::optional<std::string_view> traceparent) {
  if (!traceparent.has_value() || traceparent->size() < kLength) return "";
  const std::string_view header = *traceparent;
  const std::string_view version = header.substr(0, 2);
  // Later versions may say more after what this one says.
  const bool fits = version == "00" ? header.size() == kLength
                                    : header.size() == kLength || header[kLength] == '-';
  const std::string_view trace = header.substr(kTraceBegin, kTraceLength);
  const bool is_well_formed = fits && IsId(version, /*may_be_zero=*/true) && version != "ff" &&
                              header[kTraceBegin - 1] == '-' && header[kParentBegin - 1] == '-' &&
                              header[kFlagsBegin - 1] == '-' &&
                              IsId(trace, /*may_be_zero=*/false) &&
                              IsId(header.substr(kParentBegin, kParentLength), false) &&
                              IsId(header.substr(kFlagsBegin, 2), true);
  return is_well_formed ? std::string(trace) : "";
}

}  // namespace photon
