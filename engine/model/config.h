// The shape of a PHOTON model, as `config.json` of a checkpoint states it.
//
// Notation follows docs/model.md: level l = 1 .. L folds C_l units of level l - 1 into one. Code
// counts levels from 0, so `levels[0]` is level 1 (tokens to units) and `levels.back()` the top.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/types.h"

namespace photon {

// A causal pre-norm Transformer stack with a final RMSNorm.
struct StackConfig {
  int hidden_size = 0;
  int num_layers = 0;
  int num_heads = 0;          // query heads
  int num_kv_heads = 0;       // divides num_heads
  int head_dim = 0;           // need not be hidden_size / num_heads
  int intermediate_size = 0;  // SwiGLU
  float rope_theta = 10000.0f;
  float rope_partial = 1.0f;  // rotated share of a head; rope_dims() of it are rotated
  bool qk_norm = false;       // RMSNorm of each query and key head before the rotation
  float norm_eps = 1e-5f;

  // Rotated dimensions of a head: head_dim * rope_partial, which must be an even whole number.
  int rope_dims() const;
};

// [C_l, D_{l-1}] -> [D_l]. Norms use the epsilon of the level's encoder.
struct ChunkerConfig {
  enum class Type { kConcat, kLinear };
  enum class InNorm { kNone, kUnit, kConcat };
  Type type = Type::kLinear;
  InNorm in_norm = InNorm::kNone;  // kUnit: each unit's vector; kConcat: the concatenation
  bool out_norm = false;
  bool bias = false;
};

// [D_l] -> [R_l, D_{l-1}]. Norms use the epsilon of the level's decoder.
struct ConverterConfig {
  int kernel = 1;  // 3 adds a depthwise convolution (no bias) along the R axis
  bool in_norm = false;
  bool out_norm = false;
  bool bias = false;
};

enum class EncoderSpan {
  kGlobal,  // a unit attends to all units before it
  kBlock,   // a unit attends to the units of its own group; positions restart there
};

struct LevelConfig {
  int chunk_size = 0;       // C_l
  int converter_width = 0;  // R_l
  ChunkerConfig chunker;
  ConverterConfig converter;
  EncoderSpan encoder_span = EncoderSpan::kGlobal;
  StackConfig encoder;  // width D_l
  StackConfig decoder;  // width D_{l-1}
};

struct ModelConfig {
  int vocab_size = 0;
  int embedding_dim = 0;                     // D_0
  std::optional<int> encoder_embedding_dim;  // E; absent: one table serves encoder and decoder
  bool tie_word_embeddings = false;          // the head is the decoder's embedding table
  bool scale_embeddings = false;             // embeddings times the square root of their width
  bool final_norm = false;  // RMSNorm before the head, epsilon of the level-1 decoder
  std::optional<TokenId> bos_token_id;
  std::vector<TokenId> eos_token_ids;  // `eos_token_id`: an integer or a list
  std::optional<TokenId> pad_token_id;
  int max_context = 0;  // tokens
  std::vector<LevelConfig> levels;

  int num_levels() const { return static_cast<int>(levels.size()); }
  // E: width of the token embeddings that the level-1 chunker reads.
  int encoder_embedding_width() const { return encoder_embedding_dim.value_or(embedding_dim); }
  // Width of the units that level `i`'s chunker reads: E for i = 0, else the width of encoder i
  // - 1.
  int chunker_unit_width(int i) const;
  // P_{i+1}: tokens under one unit of `levels[i]`. tokens_per_unit(-1) is 1.
  int tokens_per_unit(int i) const;
  // P_L.
  int meta_tokens() const { return tokens_per_unit(num_levels() - 1); }
  // True for levels whose encoder KV grows with the context: the top, and `global` ones below it.
  bool level_grows(int i) const;
};

// Parses and validates. kInvalidArgument names the field, what was expected and what was found:
// "levels[1].encoder.num_kv_heads: must divide num_heads (8), got 3"; several problems are joined
// by
// "; ". Unknown, duplicate and missing fields are refused; encoder_embedding_dim, the three token
// ids and the informational `dtype` may be absent.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

// The part of ParseModelConfig that looks at values rather than at JSON, for configs built in code.
// The message holds every problem found, in the same words.
absl::Status ValidateModelConfig(const ModelConfig& config);

// Writes the config.json that ParseModelConfig reads.
std::string ModelConfigToJson(const ModelConfig& config);

// Name and shape of a tensor that a checkpoint of this config holds; shapes as docs/checkpoint.md
// has.
struct TensorSpec {
  std::string name;            // "levels.0.encoder.layers.3.wq"
  std::vector<int64_t> shape;  // row-major; linear maps are [out, in]
};

// Every tensor of a checkpoint, and no other, in a fixed order.
std::vector<TensorSpec> TensorSpecs(const ModelConfig& config);

// `config` must be valid, as everywhere below ParseModelConfig.
int64_t NumParameters(const ModelConfig& config);

}  // namespace photon
