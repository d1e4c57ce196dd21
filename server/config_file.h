// A file of settings, in TOML: `max-rows = 64`, one a line.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace photon {

struct FileSetting {
  std::string name;   // as it stands there
  std::string value;  // as on a command line
  int line = 0;
};

// kNotFound: it cannot be read. kInvalidArgument: it is no TOML, or has values other than strings,
// numbers and booleans; every problem with its line, "photon.toml:3: ...", a line each.
absl::StatusOr<std::vector<FileSetting>> ReadConfigFile(const std::string& path);

}  // namespace photon
