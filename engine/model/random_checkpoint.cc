#include "engine/model/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/float_bits.h"
#include "engine/model/safetensors.h"

namespace photon {
namespace {

namespace fs = std::filesystem;

// Elements made at a time.
constexpr int64_t kPiece = int64_t{1} << 16;

// SplitMix64's output function: a bijection whose bits all depend on all input bits.
// https://prng.di.unimi.it/splitmix64.c
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The stream of a tensor: FNV-1a of its name, mixed with the seed.
uint64_t StreamKey(const std::string& name, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return Mix(hash + Mix(seed));
}

// Element `index` of a stream: the sum of four uniform 16-bit numbers, centred and scaled to
// variance one. Close to a normal distribution, never beyond 3.5, and free of library functions
// that differ between machines.
float Variate(uint64_t key, int64_t index) {
  constexpr float kMean = 4 * 65535 / 2.0f;
  constexpr float kInverseDeviation = 1.0f / 37837.228f;  // sqrt(4 * (2^32 - 1) / 12)
  const uint64_t bits = Mix(key + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15);
  const uint64_t sum =
      (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
  return (static_cast<float>(static_cast<int32_t>(sum)) - kMean) * kInverseDeviation;
}

struct Distribution {
  float mean = 0.0f;
  float deviation = 1.0f;
};

Distribution DistributionOf(const ModelConfig& config, const TensorSpec& spec) {
  if (absl::EndsWith(spec.name, "norm")) return {.mean = 1.0f, .deviation = 0.1f};
  if (absl::EndsWith(spec.name, "bias")) return {.mean = 0.0f, .deviation = 0.1f};
  if (spec.name == "start_latent") return {};
  const float per_input = 1.0f / std::sqrt(static_cast<float>(spec.shape.back()));
  if (absl::EndsWith(spec.name, "embedding")) {
    // A table that is scaled up on use, or that is the head as well, has a linear map's size.
    const bool small =
        config.scale_embeddings || (config.tie_word_embeddings && spec.name == "embedding");
    return {.mean = 0.0f, .deviation = small ? per_input : 1.0f};
  }
  return {.mean = 0.0f, .deviation = per_input};
}

// Elements [begin, begin + count) of a tensor, encoded into `out`.
void Fill(uint64_t key, Distribution distribution, DType dtype, int64_t begin, int64_t count,
          std::byte* out) {
  const auto value = [&](int64_t i) {
    return distribution.mean + distribution.deviation * Variate(key, begin + i);
  };
  if (dtype == DType::kF32) {
    float* values = reinterpret_cast<float*>(out);
    for (int64_t i = 0; i < count; ++i) values[i] = value(i);
  } else {
    uint16_t* values = reinterpret_cast<uint16_t*>(out);
    if (dtype == DType::kBF16) {
      for (int64_t i = 0; i < count; ++i) values[i] = FloatToBF16(value(i));
    } else {
      for (int64_t i = 0; i < count; ++i) values[i] = FloatToF16(value(i));
    }
  }
}

class Generator {
 public:
  Generator(const ModelConfig& config, const RandomCheckpointOptions& options)
      : config_(config),
        options_(options),
        total_bytes_(NumParameters(config) * static_cast<int64_t>(DTypeBytes(options.dtype))) {}

  int64_t total_bytes() const { return total_bytes_; }

  absl::Status WriteFile(const std::string& path, std::span<const TensorSpec> specs) {
    std::vector<TensorHeader> headers;
    for (const TensorSpec& spec : specs) headers.push_back({spec.name, options_.dtype, spec.shape});
    absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer =
        SafetensorsWriter::Create(path, headers);
    if (!writer.ok()) return writer.status();
    for (size_t i = 0; i < specs.size(); ++i) {
      absl::Status status = WriteTensor(specs[i], headers[i].num_bytes(), **writer);
      if (!status.ok()) return status;
    }
    return (*writer)->Finish();
  }

 private:
  absl::Status WriteTensor(const TensorSpec& spec, int64_t num_bytes, SafetensorsWriter& writer) {
    const uint64_t key = StreamKey(spec.name, options_.seed);
    const Distribution distribution = DistributionOf(config_, spec);
    const int64_t element_bytes = static_cast<int64_t>(DTypeBytes(options_.dtype));
    const int64_t num_elements = num_bytes / element_bytes;
    for (int64_t begin = 0; begin < num_elements; begin += kPiece) {
      const int64_t count = std::min(kPiece, num_elements - begin);
      Fill(key, distribution, options_.dtype, begin, count, piece_.data());
      const auto size = static_cast<size_t>(count * element_bytes);
      absl::Status status = writer.Append(std::span(piece_).first(size));
      if (!status.ok()) return status;
      written_bytes_ += count * element_bytes;
      if (options_.progress) options_.progress(written_bytes_, total_bytes_);
    }
    return absl::OkStatus();
  }

  const ModelConfig& config_;
  const RandomCheckpointOptions& options_;
  const int64_t total_bytes_;
  int64_t written_bytes_ = 0;
  std::vector<std::byte> piece_ = std::vector<std::byte>(kPiece * sizeof(float));
};

// Cuts `specs` into runs of at most `shard_bytes` of data each.
std::vector<std::span<const TensorSpec>> PlanShards(std::span<const TensorSpec> specs, DType dtype,
                                                    int64_t shard_bytes) {
  std::vector<std::span<const TensorSpec>> shards;
  size_t first = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    const int64_t tensor_bytes = TensorHeader{specs[i].name, dtype, specs[i].shape}.num_bytes();
    if (i > first && bytes + tensor_bytes > shard_bytes) {
      shards.push_back(specs.subspan(first, i - first));
      first = i;
      bytes = 0;
    }
    bytes += tensor_bytes;
  }
  shards.push_back(specs.subspan(first));
  return shards;
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::InternalError(absl::StrCat(path.string(), ": cannot be written"));
  return absl::OkStatus();
}

absl::Status PrepareDirectory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return absl::ErrnoToStatus(error.value(), directory.string());
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(directory / name, error)) {
      return absl::AlreadyExistsError(
          absl::StrCat(directory.string(), ": holds a checkpoint already (", name, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteRandomCheckpoint(const ModelConfig& config,
                                   const RandomCheckpointOptions& options,
                                   const std::string& directory_name) {
  if (absl::Status valid = ValidateModelConfig(config); !valid.ok()) return valid;
  if (options.dtype == DType::kI32) {
    return absl::InvalidArgumentError("dtype: must be F32, BF16 or F16, got I32");
  }
  const fs::path directory = directory_name;
  if (absl::Status prepared = PrepareDirectory(directory); !prepared.ok()) return prepared;

  const std::vector<TensorSpec> specs = TensorSpecs(config);
  Generator generator(config, options);
  if (options.shard_bytes <= 0) {
    absl::Status status = generator.WriteFile(directory / "model.safetensors", specs);
    if (!status.ok()) return status;
  } else {
    const auto shards = PlanShards(specs, options.dtype, options.shard_bytes);
    nlohmann::ordered_json index = {{"metadata", {{"total_size", generator.total_bytes()}}},
                                    {"weight_map", nlohmann::ordered_json::object()}};
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
      absl::Status status = generator.WriteFile(directory / name, shards[i]);
      if (!status.ok()) return status;
      for (const TensorSpec& spec : shards[i]) index["weight_map"].emplace(spec.name, name);
    }
    absl::Status status =
        WriteText(directory / "model.safetensors.index.json", index.dump(2) + "\n");
    if (!status.ok()) return status;
  }
  if (!options.tokenizer.empty()) {
    std::error_code error;
    fs::copy_file(options.tokenizer, directory / "tokenizer.model",
                  fs::copy_options::overwrite_existing, error);
    if (error) return absl::ErrnoToStatus(error.value(), options.tokenizer);
  }
  return WriteText(directory / "config.json", ModelConfigToJson(config));
}

}  // namespace photon
