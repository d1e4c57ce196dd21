// The checks that every engine makes before a step.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace photon {

// kInvalidArgument names the row, its field, the limit and the value:
// "rows[3].cached_tokens: must be a multiple of 16, got 20".
absl::Status ValidateStep(const EngineShape& shape, std::span<const PageCopy> copies,
                          std::span<const Row> rows);

}  // namespace photon
