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

// What a step reads and computes for attention over the context, per meta-context of a sequence of
// `context` tokens.
struct ContextCost {
  double flops = 0;
  double kv_bytes = 0;
};
ContextCost ContextCostPerMetaContext(const ModelConfig& config, GenerationMode mode, int context,
                                      int element_bytes);

// Bytes of a page of the latent pool as engines lay it out: keys and values of each growing level,
// then one top state in fp32, each rounded up to `alignment` bytes (64 on the CPU, 256 on a GPU).
//   page_tokens  a multiple of meta_tokens()
int64_t CachePageBytes(const ModelConfig& config, int page_tokens, int element_bytes,
                       int alignment);

// Bytes that a row takes inside a step and no longer: keys and values of the block encoders' and
// decoders' windows, and its logits in fp32. Activations, which all rows share, are not in it.
int64_t StepBytesPerRow(const ModelConfig& config, int element_bytes);

}  // namespace photon
