#include "engine/model/weights.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace photon {
namespace {

using Visit = std::function<void(TensorSpec spec, TensorView& view)>;

void VisitStack(const StackConfig& config, const std::string& path, StackWeights& weights,
                const Visit& visit) {
  const int64_t hidden = config.hidden_size;
  const int64_t query_width = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t inner = config.intermediate_size;
  weights.layers.resize(config.num_layers);
  for (int j = 0; j < config.num_layers; ++j) {
    LayerWeights& layer = weights.layers[j];
    const std::string prefix = absl::StrCat(path, ".layers.", j, ".");
    visit({prefix + "attn_norm", {hidden}}, layer.attn_norm);
    visit({prefix + "wq", {query_width, hidden}}, layer.wq);
    visit({prefix + "wk", {kv_width, hidden}}, layer.wk);
    visit({prefix + "wv", {kv_width, hidden}}, layer.wv);
    visit({prefix + "wo", {hidden, query_width}}, layer.wo);
    if (config.qk_norm) {
      visit({prefix + "q_norm", {config.head_dim}}, layer.q_norm);
      visit({prefix + "k_norm", {config.head_dim}}, layer.k_norm);
    }
    visit({prefix + "ffn_norm", {hidden}}, layer.ffn_norm);
    visit({prefix + "w_gate", {inner, hidden}}, layer.w_gate);
    visit({prefix + "w_up", {inner, hidden}}, layer.w_up);
    visit({prefix + "w_down", {hidden, inner}}, layer.w_down);
  }
  visit({path + ".norm", {hidden}}, weights.norm);
}

void VisitChunker(const ModelConfig& config, int i, ChunkerWeights& weights, const Visit& visit) {
  const LevelConfig& level = config.levels[i];
  const ChunkerConfig& chunker = level.chunker;
  if (chunker.type == ChunkerConfig::Type::kConcat) return;
  const int64_t unit = config.chunker_unit_width(i);
  const int64_t chunk = level.chunk_size * unit;
  const int64_t out = level.encoder.hidden_size;
  const std::string prefix = absl::StrCat("levels.", i, ".chunker.");
  if (chunker.in_norm != ChunkerConfig::InNorm::kNone) {
    const bool per_unit = chunker.in_norm == ChunkerConfig::InNorm::kUnit;
    visit({prefix + "in_norm", {per_unit ? unit : chunk}}, weights.in_norm);
  }
  visit({prefix + "weight", {out, chunk}}, weights.weight);
  if (chunker.bias) visit({prefix + "bias", {out}}, weights.bias);
  if (chunker.out_norm) visit({prefix + "out_norm", {out}}, weights.out_norm);
}

void VisitConverter(const ModelConfig& config, int i, ConverterWeights& weights,
                    const Visit& visit) {
  const LevelConfig& level = config.levels[i];
  const ConverterConfig& converter = level.converter;
  const int64_t in = level.encoder.hidden_size;
  const int64_t unit = level.decoder.hidden_size;
  const int64_t out = level.converter_width * unit;
  const std::string prefix = absl::StrCat("levels.", i, ".converter.");
  if (converter.in_norm) visit({prefix + "in_norm", {in}}, weights.in_norm);
  visit({prefix + "weight", {out, in}}, weights.weight);
  if (converter.bias) visit({prefix + "bias", {out}}, weights.bias);
  if (converter.kernel == 3) visit({prefix + "conv", {unit, 3}}, weights.conv);
  if (converter.out_norm) visit({prefix + "out_norm", {unit}}, weights.out_norm);
}

}  // namespace

void ForEachTensor(const ModelConfig& config, ModelWeights& weights, const Visit& visit) {
  const int64_t vocab = config.vocab_size;
  const int64_t width = config.embedding_dim;
  if (config.encoder_embedding_dim) {
    visit({"encoder_embedding", {vocab, *config.encoder_embedding_dim}}, weights.encoder_embedding);
  }
  visit({"embedding", {vocab, width}}, weights.embedding);
  weights.levels.resize(config.levels.size());
  for (int i = 0; i < config.num_levels(); ++i) {
    LevelWeights& level = weights.levels[i];
    const std::string path = absl::StrCat("levels.", i);
    VisitChunker(config, i, level.chunker, visit);
    VisitStack(config.levels[i].encoder, path + ".encoder", level.encoder, visit);
    VisitConverter(config, i, level.converter, visit);
    VisitStack(config.levels[i].decoder, path + ".decoder", level.decoder, visit);
  }
  visit({"start_latent", {config.levels.back().encoder.hidden_size}}, weights.start_latent);
  if (config.final_norm) visit({"final_norm", {width}}, weights.final_norm);
  if (!config.tie_word_embeddings) visit({"lm_head", {vocab, width}}, weights.lm_head);
}

}  // namespace photon
