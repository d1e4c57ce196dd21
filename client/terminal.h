// Where a command writes, and what it says when it fails.
#pragma once

#include <ostream>
#include <stop_token>

#include "absl/status/status.h"

namespace photon {

inline constexpr int kSuccess = 0;
inline constexpr int kFailed = 1;         // the call failed, or the service is not serving
inline constexpr int kUsage = 2;          // the command line makes no sense
inline constexpr int kInterrupted = 130;  // Ctrl-C, as shells report it

// Results go to `out`, everything about them to `err`.
struct Terminal {
  std::ostream& out;
  std::ostream& err;
  std::stop_token interrupted;
};

// Says what went wrong; the exit code.
int Fail(const absl::Status& status, const Terminal& terminal);

}  // namespace photon
