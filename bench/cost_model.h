// What a model costs by its shape alone: docs/model.md, "Cost".
#pragma once

#include <cstdint>

#include "engine/model/config.h"
#include "engine/types.h"

namespace photon {

// Per token, averaged over a meta-context, without attention's products over the context.
struct Cost {
  double flops = 0;         // two per multiply-add
  double weight_bytes = 0;  // read by one sequence alone: every product streams its whole matrix
};

// element_bytes: of a stored weight.
Cost DecodeCost(const ModelConfig& config, GenerationMode mode, int element_bytes);
Cost PrefillCost(const ModelConfig& config, int element_bytes);

// Bytes of keys and values that grow with every token of context.
double KvBytesPerToken(const ModelConfig& config, int element_bytes);

}  // namespace photon
