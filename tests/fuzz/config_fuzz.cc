// Any bytes as a config.json: refused, or a model whose tensors can be listed and whose own JSON
// reads back as the same model.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<photon::ModelConfig> config = photon::ParseModelConfig(text);
  if (!config.ok()) return 0;
  if (config->meta_tokens() < 1 || photon::NumParameters(*config) < 1) std::abort();
  const std::string json = photon::ModelConfigToJson(*config);
  const absl::StatusOr<photon::ModelConfig> again = photon::ParseModelConfig(json);
  if (!again.ok() || photon::ModelConfigToJson(*again) != json) std::abort();
  return 0;
}
