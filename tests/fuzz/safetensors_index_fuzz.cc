// Any bytes as a model.safetensors.index.json: refused, or shards that stay in their directory.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "engine/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto index =
      photon::ParseSafetensorsIndex(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!index.ok()) return 0;
  for (const auto& [name, shard] : *index) {
    const std::filesystem::path path = shard;
    if (path.filename() != path || shard == "." || shard == "..") std::abort();
  }
  return 0;
}
