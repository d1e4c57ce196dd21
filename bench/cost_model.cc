#include "bench/cost_model.h"

namespace photon {
namespace {

double StackWeights(const StackConfig& s) {
  const double q = double{1} * s.num_heads * s.head_dim,
               kv = double{1} * s.num_kv_heads * s.head_dim;
  return s.num_layers * s.hidden_size * (2 * q + 2 * kv + 3.0 * s.intermediate_size);
}

double ChunkerWeights(const ModelConfig& config, int i) {
  const LevelConfig& level = config.levels[i];
  if (level.chunker.type == ChunkerConfig::Type::kConcat) return 0;
  return double{1} * level.encoder.hidden_size * level.chunk_size * config.chunker_unit_width(i);
}

double ConverterWeights(const LevelConfig& level) {
  return double{1} * level.encoder.hidden_size * level.converter_width * level.decoder.hidden_size;
}

// Adds `weights` multiply-adds `positions` times, and their bytes `passes` times, per meta-context.
struct Sum {
  double multiply_adds = 0, weights_read = 0;

  void Add(double weights, double positions, double passes) {
    multiply_adds += weights * positions;
    weights_read += weights * passes;
  }
  Cost PerToken(int meta_tokens, int element_bytes) const {
    return {2 * multiply_adds / meta_tokens, weights_read * element_bytes / meta_tokens};
  }
};

}  // namespace

Cost DecodeCost(const ModelConfig& config, GenerationMode mode, int element_bytes) {
  const int meta = config.meta_tokens(), top = config.num_levels() - 1;
  const bool parallel = mode != GenerationMode::kExact && top > 0;
  Sum sum;
  for (int i = 0; i <= top; ++i) {
    const LevelConfig& level = config.levels[i];
    const int groups = meta / config.tokens_per_unit(i);  // of this level, in a meta-context
    const int sequential = parallel ? 1 : groups;         // of them, one after another
    sum.Add(ConverterWeights(level), groups, sequential);
    sum.Add(StackWeights(level.decoder), groups * (level.converter_width + level.chunk_size - 1),
            sequential * level.chunk_size);
    const bool encodes = mode != GenerationMode::kRecGen || i == top;
    if (encodes) {
      sum.Add(StackWeights(level.encoder) + ChunkerWeights(config, i), groups, sequential);
    }
  }
  const double head = double{1} * config.vocab_size * config.embedding_dim;
  sum.Add(head, meta, parallel ? config.levels[0].chunk_size : meta);
  return sum.PerToken(meta, element_bytes);
}

Cost PrefillCost(const ModelConfig& config, int element_bytes) {
  const int meta = config.meta_tokens();
  Sum sum;
  for (int i = 0; i < config.num_levels(); ++i) {
    const int groups = meta / config.tokens_per_unit(i);
    sum.Add(StackWeights(config.levels[i].encoder) + ChunkerWeights(config, i), groups, 1);
  }
  return sum.PerToken(meta, element_bytes);
}

double KvBytesPerToken(const ModelConfig& config, int element_bytes) {
  double bytes = 0;
  for (int i = 0; i < config.num_levels(); ++i) {
    const StackConfig& s = config.levels[i].encoder;
    if (config.level_grows(i)) {
      bytes += 2.0 * s.num_layers * s.num_kv_heads * s.head_dim * element_bytes /
               config.tokens_per_unit(i);
    }
  }
  return bytes;
}

}  // namespace photon
