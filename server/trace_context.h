// W3C Trace Context: which trace a request is a part of, as the client says.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace photon {

// The trace's id, 32 lower-case hexadecimal digits, of a `traceparent` header; empty where there is
// none, or none that is well-formed.
std::string TraceIdOf(std::optional<std::string_view> traceparent);

}  // namespace photon
