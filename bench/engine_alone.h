// What the engine does of a load when nothing else is in its way: the whole that a server's
// throughput is a share of.
#pragma once

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace photon {

// Tokens a second of `rows` sequences, each with a prompt of its own of `prompt_tokens`, greedy in
// kExact for `output_tokens`, rounded up to whole meta-contexts: prompts first, as many in a step
// as it takes, then decoding, all rows in each step. Median of `repeats` after one to warm up.
// Writes the engine's pages from the first on. kFailedPrecondition: the shape has too few rows,
// pages or too little context.
absl::StatusOr<double> EngineTokensPerSecond(Engine& engine, int rows, int prompt_tokens,
                                             int output_tokens, int repeats);

}  // namespace photon
