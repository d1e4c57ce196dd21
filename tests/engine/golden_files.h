// Which golden files there are (tests/golden/README.md).
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace photon {

// The folders of PHOTON_GOLDEN_DIR that hold one, in order.
inline std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(PHOTON_GOLDEN_DIR)) {
    if (std::filesystem::exists(entry.path() / "golden.safetensors")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace photon
