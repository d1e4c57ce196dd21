// A checkpoint directory, mapped and checked: config.json, model.safetensors (or its shards) and
// tokenizer.model. docs/checkpoint.md describes the layout.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/safetensors.h"
#include "engine/model/weights.h"

namespace photon {

// Immutable, and safe to read from any thread.
class Checkpoint {
 public:
  // A checkpoint that loads holds exactly the tensors of its config, in their shapes, in F32, BF16
  // or F16 each for itself, and every value is finite. Reads every byte once, so a file that is not
  // in memory yet costs its read here.
  //
  // kNotFound: a file is missing. kInvalidArgument: a malformed file, or
  //   "levels.0.encoder.layers.3.wq: expected [512, 512], file has [512, 128]"
  // with every tensor that is missing, extra or misshapen.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Load(const std::string& directory);

  const ModelConfig& config() const { return config_; }
  // Views are valid for the life of this object.
  const ModelWeights& weights() const { return weights_; }
  // Where the SentencePiece model belongs; it is neither read nor required here.
  std::string tokenizer_path() const { return directory_ + "/tokenizer.model"; }
  // Size of the mapped files.
  int64_t file_bytes() const { return files_->file_bytes(); }

 private:
  Checkpoint(std::string directory, ModelConfig config, ModelWeights weights,
             std::unique_ptr<SafetensorsDirectory> files)
      : directory_(std::move(directory)),
        config_(std::move(config)),
        weights_(std::move(weights)),
        files_(std::move(files)) {}

  const std::string directory_;
  const ModelConfig config_;
  const ModelWeights weights_;
  const std::unique_ptr<SafetensorsDirectory> files_;
};

// The config.json of a checkpoint directory, or of any path that ends in .json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& path);

// Index of the first element that is infinite or not a number; -1 if all are finite. For floating
// dtypes.
int64_t FindNonFinite(const TensorView& tensor);

}  // namespace photon
