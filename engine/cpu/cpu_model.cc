#include "engine/cpu/cpu_model.h"

#include <algorithm>
#include <cmath>

namespace photon {
namespace {

// Row `row` of a table [n, width] as fp32, times `scale`.
void GatherRow(const TensorView& table, int64_t row, float scale, float* out) {
  const int64_t width = table.shape[1];
  const std::byte* data = table.data + row * width * static_cast<int64_t>(DTypeBytes(table.dtype));
  CopyToFloat(table.dtype, data, width, out);
  if (scale == 1) return;
  for (int64_t i = 0; i < width; ++i) out[i] *= scale;
}

template <typename T>
CpuLevel<T> PackLevel(const ModelConfig& config, const ModelWeights& weights, int i,
                      const BatchLimits& limits, const CpuContext<T>& context) {
  const LevelConfig& level = config.levels[i];
  const LevelWeights& w = weights.levels[i];
  const int meta = config.meta_tokens(), tokens_per_unit = config.tokens_per_unit(i);
  const int64_t max_context_units =
      (int64_t{config.max_context} + meta - 1) / meta * (meta / tokens_per_unit);
  const int encoder_positions =
      config.level_grows(i) ? static_cast<int>(max_context_units) : config.levels[i + 1].chunk_size;
  const int max_units = std::max(limits.max_rows, limits.max_encode_tokens / tokens_per_unit);
  const int max_groups = limits.max_rows * (meta / tokens_per_unit);
  return {
      Chunker<T>(level.chunker, w.chunker, level.chunk_size, config.chunker_unit_width(i),
                 level.encoder.hidden_size, level.encoder.norm_eps, max_units, context),
      TransformerStack<T>(level.encoder, w.encoder, encoder_positions, context),
      Converter<T>(level.converter, w.converter, level.encoder.hidden_size, level.converter_width,
                   level.decoder.hidden_size, level.decoder.norm_eps, max_groups, context),
      TransformerStack<T>(level.decoder, w.decoder, level.converter_width + level.chunk_size,
                          context),
  };
}

}  // namespace

template <typename T>
CpuModel<T>::CpuModel(const ModelConfig& config, const ModelWeights& weights,
                      const BatchLimits& limits, const CpuContext<T>& context)
    : config_(config),
      context_(context),
      encoder_embedding_(config.encoder_embedding_dim ? weights.encoder_embedding
                                                      : weights.embedding),
      embedding_(weights.embedding),
      start_latent_(ToFloat(weights.start_latent)) {
  if (config.scale_embeddings) {
    encoder_scale_ = std::sqrt(static_cast<float>(config.encoder_embedding_width()));
    decoder_scale_ = std::sqrt(static_cast<float>(config.embedding_dim));
  }
  levels_.reserve(config.num_levels());
  for (int i = 0; i < config.num_levels(); ++i) {
    levels_.push_back(PackLevel(config, weights, i, limits, context));
  }
  if (config.final_norm) final_norm_ = ToFloat(weights.final_norm);
  const TensorView& head = config.tie_word_embeddings ? weights.embedding : weights.lm_head;
  head_.weight = PackedMatrix<T>(std::span(&head, 1), context.pool);
  act_stride_ = (config.embedding_dim + 31) / 32 * 32;
  act_ = AlignedBuffer<T>(kMaxLogitsRows * act_stride_);
}

template <typename T>
void CpuModel<T>::EmbedForEncoder(TokenId token, float* out) const {
  GatherRow(encoder_embedding_, token, encoder_scale_, out);
}

template <typename T>
void CpuModel<T>::EmbedForDecoder(TokenId token, float* out) const {
  GatherRow(embedding_, token, decoder_scale_, out);
}

template <typename T>
void CpuModel<T>::Logits(const float* predictions, int n, float* logits) {
  const int width = config_.embedding_dim;
  for (int r = 0; r < n; ++r) {
    const float* row = predictions + int64_t{r} * width;
    T* act = act_.data() + r * act_stride_;
    if (config_.final_norm) {
      context_.kernels.rms_norm(row, final_norm_.data(), width, config_.levels[0].decoder.norm_eps,
                                act);
    } else {
      context_.kernels.convert(row, width, act);
    }
  }
  head_.Apply(context_.kernels, context_.pool, act_.data(), act_stride_, n, false, logits,
              config_.vocab_size);
}

template class CpuModel<float>;
template class CpuModel<BFloat16>;

}  // namespace photon
