#include "engine/cuda/recursive_decoder.h"

#include <algorithm>

#include "engine/cuda/kernels/rows.h"

namespace photon::cuda {
namespace {

// Lanes whose logits are in memory together.
constexpr int kMaxLogitsRows = 1024;

// Groups of level i that the rows decode together at most.
int MaxLanes(const ModelConfig& config, int i, int max_rows) {
  return max_rows * (config.meta_tokens() / config.tokens_per_unit(i));
}

int LogitsRows(const ModelConfig& config, int max_rows) {
  return std::min(kMaxLogitsRows, MaxLanes(config, 0, max_rows));
}

}  // namespace

template <typename T>
RecursiveDecoder<T>::RecursiveDecoder(const CudaModel<T>& model, const LatentPages<T>& pages,
                                      int max_rows, DeviceAllocator& allocator)
    : model_(model), pages_(pages), max_logits_rows_(LogitsRows(model.config(), max_rows)) {
  const ModelConfig& config = model.config();
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    const Level<T>& modules = model.level(i);
    const int64_t lanes = MaxLanes(config, i, max_rows);
    Scratch& scratch = scratch_.emplace_back();
    scratch.windows = allocator.Allocate<T>(
        lanes * (level.converter_width + level.chunk_size) * modules.decoder.kv_elements(),
        "decoder windows");
    scratch.predictions =
        allocator.Allocate<float>(lanes * level.chunk_size * decoder_width(i), "predictions");
    scratch.units = allocator.Allocate<float>(int64_t{max_rows} * level.chunk_size * unit_width(i),
                                              "units of open groups");
    if (!config.level_grows(i)) {
      scratch.blocks = allocator.Allocate<T>(
          int64_t{max_rows} * config.levels[i + 1].chunk_size * modules.encoder.kv_elements(),
          "open blocks of encoders");
    }
  }
  conditions_ = allocator.Allocate<float>(int64_t{max_rows} * pages.latent_width(), "conditions");
  logits_ =
      allocator.Allocate<float>(ProductRows(max_logits_rows_) * model.logits_stride(), "logits");
}

template <typename T>
void RecursiveDecoder<T>::AddTo(const CudaModel<T>& model, int max_rows, ScratchSize& size,
                                int64_t& x) {
  const ModelConfig& config = model.config();
  for (int i = 0; i < config.num_levels(); ++i) {
    const Level<T>& level = model.level(i);
    const int lanes = MaxLanes(config, i, max_rows);
    const int vectors = lanes * level.converter.num_vectors();
    level.converter.AddTo(size, lanes);
    level.decoder.AddTo(size, vectors);
    level.chunker.AddTo(size, max_rows);
    level.encoder.AddTo(size, max_rows);
    x = std::max({x, ProductRows(vectors) * level.decoder.width(),
                  ProductRows(max_rows) * level.encoder.width()});
  }
  model.AddLogitsTo(size, LogitsRows(config, max_rows));
}

template <typename T>
void RecursiveDecoder<T>::DecodeExact(const Compute<T>& compute, const DecodeBatch& batch, float* x,
                                      float* states, OnSampled on_sampled) const {
  const int top = model_.config().num_levels() - 1;
  compute.work.Run("load_latents", [&](cudaStream_t stream) {
    return LaunchLoadLatents(batch.condition_pages, pages_.latents(), pages_.latent_stride(),
                             model_.start_latent(), pages_.latent_width(), conditions_.data(),
                             batch.num_rows, stream);
  });
  DecodeGroup(compute, batch, top, 0, conditions_.data(), x, on_sampled);
  Fold(compute, batch, top, 0, scratch_[top].units.data(), x, {states, pages_.latent_width()});
}

template <typename T>
void RecursiveDecoder<T>::DecodeGroup(const Compute<T>& compute, const DecodeBatch& batch, int i,
                                      int slot, const float* conditions, float* x,
                                      OnSampled on_sampled) const {
  const ModelConfig& config = model_.config();
  const int chunk_size = config.levels[i].chunk_size, rows = batch.num_rows;
  const int unit_tokens = config.tokens_per_unit(i - 1), meta = config.meta_tokens();
  const int64_t children_stride = chunk_size * unit_width(i);
  const Scratch& scratch = scratch_[i];
  const Rows predictions{scratch.predictions.data(), decoder_width(i)};

  Prime(compute, i, rows, conditions, x, predictions);
  for (int j = 0; j < chunk_size; ++j) {
    const int unit_slot = slot + j * unit_tokens;
    const Rows unit{scratch.units.data() + j * unit_width(i), children_stride};
    if (i == 0) {
      Sample(compute, batch, {.first = unit_slot}, rows);
      on_sampled(unit_slot + 1);
    } else {
      DecodeGroup(compute, batch, i - 1, unit_slot, predictions.data, x, on_sampled);
      Fold(compute, batch, i - 1, unit_slot, scratch_[i - 1].units.data(), x, unit);
    }
    if (j + 1 == chunk_size) break;
    if (i == 0) {
      model_.EmbedForDecoder(compute.work, batch.tokens + unit_slot, 1, meta, rows, x);
    } else {
      CopyToX(compute, unit, unit_width(i), rows, x);
    }
    Advance(compute, i, rows, j, x, predictions);
  }
  if (i == 0) {
    model_.EmbedForEncoder(compute.work, batch.tokens + slot, chunk_size, meta, rows * chunk_size,
                           scratch.units.data());
  }
}

template <typename T>
void RecursiveDecoder<T>::DecodeParallel(const Compute<T>& compute, const DecodeBatch& batch,
                                         float* x, OnSampled on_sampled) const {
  const ModelConfig& config = model_.config();
  const int top = config.num_levels() - 1;
  compute.work.Run("load_latents", [&](cudaStream_t stream) {
    return LaunchLoadLatents(batch.condition_pages, pages_.latents(), pages_.latent_stride(),
                             model_.start_latent(), pages_.latent_width(), conditions_.data(),
                             batch.num_rows, stream);
  });

  // Above the tokens: each level's predictions are its own content, and the conditions of the level
  // below, where lane n's slot j is lane n * C + j.
  const float* conditions = conditions_.data();
  int lanes = batch.num_rows;
  for (int i = top; i > 0; --i) {
    const int chunk_size = config.levels[i].chunk_size;
    const int64_t width = decoder_width(i);
    const auto slot = [&](int j) -> Rows {
      return {scratch_[i].predictions.data() + j * width, chunk_size * width};
    };
    Prime(compute, i, lanes, conditions, x, slot(0));
    for (int j = 0; j + 1 < chunk_size; ++j) {
      CopyToX(compute, slot(j), width, lanes, x);
      Advance(compute, i, lanes, j, x, slot(j + 1));
    }
    conditions = scratch_[i].predictions.data();
    lanes *= chunk_size;
  }

  // The tokens: slot j of every level-1 group at once.
  const int chunk_size = config.levels[0].chunk_size, meta = config.meta_tokens();
  const Rows predictions{scratch_[0].predictions.data(), decoder_width(0)};
  Prime(compute, 0, lanes, conditions, x, predictions);
  for (int j = 0; j < chunk_size; ++j) {
    Sample(compute, batch, {.per_row = meta / chunk_size, .stride = chunk_size, .first = j}, lanes);
    // Text order: the first group's tokens as they come, the rest when the last slot is done.
    on_sampled(j + 1 < chunk_size ? j + 1 : meta);
    if (j + 1 == chunk_size) break;
    model_.EmbedForDecoder(compute.work, batch.tokens + j, 1, chunk_size, lanes, x);
    Advance(compute, 0, lanes, j, x, predictions);
  }
}

template <typename T>
void RecursiveDecoder<T>::FoldPredictions(const Compute<T>& compute, const DecodeBatch& batch,
                                          float* x, float* states) const {
  const int top = model_.config().num_levels() - 1;
  Fold(compute, batch, top, 0, scratch_[top].predictions.data(), x,
       {states, pages_.latent_width()});
}

template <typename T>
void RecursiveDecoder<T>::Prime(const Compute<T>& compute, int i, int lanes,
                                const float* conditions, float* x, Rows predictions) const {
  const LevelConfig& level = model_.config().levels[i];
  const Level<T>& modules = model_.level(i);
  modules.converter.Forward(compute, conditions, lanes, x);
  modules.decoder.Forward(
      compute, x, lanes, {.count = level.converter_width},
      modules.decoder.Windows(scratch_[i].windows.data(), level.converter_width + level.chunk_size),
      {.to = predictions.data, .stride = predictions.stride, .last_only = true});
}

template <typename T>
void RecursiveDecoder<T>::Advance(const Compute<T>& compute, int i, int lanes, int j, float* x,
                                  Rows predictions) const {
  const LevelConfig& level = model_.config().levels[i];
  const Level<T>& modules = model_.level(i);
  modules.decoder.Forward(
      compute, x, lanes, {.first = level.converter_width + j},
      modules.decoder.Windows(scratch_[i].windows.data(), level.converter_width + level.chunk_size),
      {.to = predictions.data, .stride = predictions.stride});
}

template <typename T>
void RecursiveDecoder<T>::Fold(const Compute<T>& compute, const DecodeBatch& batch, int i, int slot,
                               const float* units, float* x, Rows states) const {
  const ModelConfig& config = model_.config();
  const Level<T>& modules = model_.level(i);
  const int tokens_per_unit = config.tokens_per_unit(i), rows = batch.num_rows;
  const typename TransformerStack<T>::Output output{.to = states.data, .stride = states.stride};
  modules.chunker.Forward(compute, units, rows, x);
  if (config.level_grows(i)) {
    const RowPositions positions{.metas = batch.metas,
                                 .units_per_meta = config.meta_tokens() / tokens_per_unit,
                                 .first = slot / tokens_per_unit};
    modules.encoder.Forward(compute, x, rows, positions,
                            pages_.Kv(i, modules.encoder, batch.page_ids), output);
  } else {
    const int block = config.levels[i + 1].chunk_size;
    modules.encoder.Forward(compute, x, rows, {.first = slot / tokens_per_unit % block},
                            modules.encoder.Windows(scratch_[i].blocks.data(), block), output);
  }
}

template <typename T>
void RecursiveDecoder<T>::Sample(const Compute<T>& compute, const DecodeBatch& batch,
                                 const SlotMap& slots, int lanes) const {
  const int64_t stride = model_.logits_stride();
  for (int first = 0; first < lanes; first += max_logits_rows_) {
    const int n = std::min(max_logits_rows_, lanes - first);
    model_.Logits(compute, scratch_[0].predictions.data() + first * decoder_width(0), n,
                  logits_.data());
    compute.work.Run("sample_tokens", [&](cudaStream_t stream) {
      return LaunchSampleTokens(logits_.data(), stride, model_.config().vocab_size, batch.sampling,
                                slots, first, n, batch.output, stream);
    });
    if (batch.on_logits) batch.on_logits(logits_.data(), first, n, slots);
  }
}

template <typename T>
void RecursiveDecoder<T>::CopyToX(const Compute<T>& compute, Rows from, int64_t width, int rows,
                                  float* x) const {
  compute.work.Run("copy_rows", [&](cudaStream_t stream) {
    return LaunchCopyRows(from.data, from.stride, x, width, static_cast<int>(width), rows, stream);
  });
}

template class RecursiveDecoder<float>;
template class RecursiveDecoder<__nv_bfloat16>;

}  // namespace photon::cuda
