// How much memory this process may still take from the system.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace photon {

// Bytes that the system can give without swapping, less where a control group of this process (v1
// or v2, any ancestor) leaves less. File contents that the system can drop count as free.
//   root  what stands before /proc and /sys; for tests
// kUnavailable: the system does not say.
absl::StatusOr<int64_t> FreeHostMemory(const std::string& root = "");

}  // namespace photon
