// What the tests of the model layer share: a small config, and directories and files that vanish.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "engine/model/config.h"

namespace photon {

// A directory of its own under the system's temporary one, removed with all it holds.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "photon-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path() const { return path_.string(); }
  std::string File(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Two levels of different widths that use every optional tensor.
inline ModelConfig SmallConfig() {
  const StackConfig stack = {.hidden_size = 8,
                             .num_layers = 1,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = 4,
                             .intermediate_size = 12,
                             .rope_theta = 10000.0f,
                             .rope_partial = 0.5f,
                             .qk_norm = true,
                             .norm_eps = 1e-5f};
  LevelConfig first;
  first.chunk_size = 2;
  first.converter_width = 2;
  first.chunker = {.type = ChunkerConfig::Type::kLinear,
                   .in_norm = ChunkerConfig::InNorm::kUnit,
                   .out_norm = true,
                   .bias = true};
  first.converter = {.kernel = 3, .in_norm = true, .out_norm = true, .bias = true};
  first.encoder_span = EncoderSpan::kBlock;
  first.encoder = stack;
  first.decoder = stack;
  first.encoder.hidden_size = 10;

  LevelConfig top = first;
  top.chunk_size = 3;
  top.encoder_span = EncoderSpan::kGlobal;
  top.encoder.hidden_size = 14;
  top.encoder.num_layers = 2;
  top.decoder.hidden_size = 10;

  ModelConfig config;
  config.vocab_size = 32;
  config.embedding_dim = 8;
  config.encoder_embedding_dim = 6;
  config.final_norm = true;
  config.bos_token_id = 1;
  config.eos_token_ids = {2, 3};
  config.max_context = 96;
  config.levels = {first, top};
  return config;
}

}  // namespace photon
