// JSON from files that nobody vouches for.
//
// Parses into nlohmann::json, but refuses what that library lets through: duplicate keys, deep
// nesting and documents that would unfold into more memory than their size suggests. Never throws.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace photon {

struct JsonLimits {
  size_t max_bytes = 0;   // of text
  size_t max_values = 0;  // objects, arrays and scalars together; each costs about 100 bytes
  int max_depth = 0;      // nested objects and arrays; a scalar has depth 0
};

// kInvalidArgument: not one JSON value in UTF-8, a duplicate key, or a limit exceeded; the message
// says where.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, const JsonLimits& limits);

}  // namespace photon
