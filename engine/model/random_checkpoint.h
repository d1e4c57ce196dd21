// Checkpoints with random weights: for tests, which must not see the zeros and ones that hide
// mistakes, and for benchmarks of shapes that nobody has published weights for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "engine/model/config.h"
#include "engine/model/tensor.h"

namespace photon {

struct RandomCheckpointOptions {
  // Of every tensor: kF32, kBF16 or kF16.
  DType dtype = DType::kBF16;
  // The same config, dtype and seed give the same bytes on every machine, however they are sharded.
  uint64_t seed = 0;
  // Largest data of one shard, but every shard holds at least one tensor. 0: a single file.
  int64_t shard_bytes = 0;
  // A SentencePiece model to copy into the checkpoint; empty: the checkpoint has none.
  std::string tokenizer = {};
  // Called now and then with the bytes of data written so far and in all.
  std::function<void(int64_t written, int64_t total)> progress = {};
};

// Writes a checkpoint into `directory`, which is created if need be, without holding more than a
// few MB of it. Values keep activations near one: linear maps vary by 1 / sqrt(fan in), norms
// around 1, biases around 0, and so on; no parameter is left at a round value.
//
// kInvalidArgument: an invalid config or dtype. kAlreadyExists: the directory holds a checkpoint.
// Otherwise as the system says; what was written until then stays.
absl::Status WriteRandomCheckpoint(const ModelConfig& config,
                                   const RandomCheckpointOptions& options,
                                   const std::string& directory);

}  // namespace photon
