// W3C Trace Context: which trace a request is a part of, as the client says.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace photon {

struct TraceContext {
  std::string trace_id;   // 32 lower-case hexadecimal digits; empty: the client names no trace
  std::string parent_id;  // of the client's span: 16 of them
  bool is_sampled = false;

  // From a `traceparent` header; empty where there is none, or none that is well-formed.
  static TraceContext From(std::optional<std::string_view> traceparent);
};

}  // namespace photon
