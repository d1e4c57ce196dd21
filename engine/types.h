// Types that every layer of the service shares.
#pragma once

#include <cstdint>

namespace photon {

// Index into the vocabulary, 0 .. vocab_size - 1.
using TokenId = int32_t;

// One page of the latent pool: keys and values of every growing level (the top encoder, and
// `global` encoders below it) for a fixed number of consecutive tokens, and the newest top state
// written to it.
enum class PageId : int32_t {};

// How a meta-context is generated; docs/model.md, "Generation modes".
enum class GenerationMode : uint8_t {
  kExact,    // the model's own distribution
  kHierGen,  // units of a meta-context in parallel, context re-encoded from the tokens
  kRecGen,   // units in parallel, context advanced on predictions; nothing is re-encoded
};

}  // namespace photon
