#include "engine/model/cost_model.h"

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

// Of one position, all layers.
int64_t KvElements(const StackConfig& s) {
  return int64_t{2} * s.num_layers * s.num_kv_heads * s.head_dim;
}

int64_t RoundUp(int64_t bytes, int alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

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
    if (!config.level_grows(i)) continue;
    bytes += static_cast<double>(KvElements(config.levels[i].encoder)) * element_bytes /
             config.tokens_per_unit(i);
  }
  return bytes;
}

ContextCost ContextCostPerMetaContext(const ModelConfig& config, GenerationMode mode, int context,
                                      int element_bytes) {
  ContextCost cost;
  const int top = config.num_levels() - 1;
  for (int i = 0; i <= top; ++i) {
    if (!config.level_grows(i)) continue;
    if (i < top && mode == GenerationMode::kRecGen) continue;  // nothing is re-encoded
    const StackConfig& s = config.levels[i].encoder;
    const double positions = double{1} * context / config.tokens_per_unit(i);
    const int units = config.meta_tokens() / config.tokens_per_unit(i);
    const int sequential = mode == GenerationMode::kExact ? units : 1;
    // Queries by keys, and weights by values.
    cost.flops += 4.0 * s.num_layers * s.num_heads * s.head_dim * positions * units;
    cost.kv_bytes += static_cast<double>(KvElements(s)) * element_bytes * positions * sequential;
  }
  return cost;
}

int64_t CachePageBytes(const ModelConfig& config, int page_tokens, int element_bytes,
                       int alignment) {
  int64_t bytes = 0;
  for (int i = 0; i < config.num_levels(); ++i) {
    if (!config.level_grows(i)) continue;
    const int64_t positions = page_tokens / config.tokens_per_unit(i);
    bytes = RoundUp(bytes + positions * KvElements(config.levels[i].encoder) * element_bytes,
                    alignment);
  }
  const int64_t latent_bytes = int64_t{4} * config.levels.back().encoder.hidden_size;
  return RoundUp(bytes + latent_bytes, alignment);
}

int64_t StepBytesPerRow(const ModelConfig& config, int element_bytes) {
  int64_t kv_elements = 0;
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    const int groups = config.meta_tokens() / config.tokens_per_unit(i);
    kv_elements += groups * (level.converter_width + level.chunk_size) * KvElements(level.decoder);
    if (!config.level_grows(i)) {
      kv_elements += config.levels[i + 1].chunk_size * KvElements(level.encoder);
    }
  }
  return kv_elements * element_bytes + int64_t{4} * config.vocab_size;
}

}  // namespace photon
