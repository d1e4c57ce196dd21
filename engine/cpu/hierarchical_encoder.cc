#include "engine/cpu/hierarchical_encoder.h"

#include <algorithm>
#include <utility>

namespace photon {

template <typename T>
HierarchicalEncoder<T>::HierarchicalEncoder(CpuModel<T>& model, LatentPages<T>& pages,
                                            const BatchLimits& limits)
    : model_(model), pages_(pages) {
  const ModelConfig& config = model.config();
  const int meta = config.meta_tokens();
  max_metas_ = limits.max_encode_tokens / meta;
  int64_t widest = int64_t{max_metas_} * meta * config.encoder_embedding_width();
  for (int i = 0; i < config.num_levels(); ++i) {
    const int64_t units = int64_t{max_metas_} * (meta / config.tokens_per_unit(i));
    widest = std::max(widest, units * config.levels[i].encoder.hidden_size);
    if (config.level_grows(i)) {
      blocks_.emplace_back();
    } else {
      const int block = config.levels[i + 1].chunk_size;
      blocks_.emplace_back(model.levels()[i].encoder, units / block, block);
    }
  }
  units_ = AlignedBuffer<float>(widest);
  states_ = AlignedBuffer<float>(widest);
}

template <typename T>
void HierarchicalEncoder<T>::Encode(std::span<const EncodeJob> jobs) {
  const int meta = model_.config().meta_tokens();
  metas_.clear();
  for (const EncodeJob& job : jobs) {
    for (size_t t = 0; t < job.tokens.size(); t += meta) {
      metas_.push_back(
          {job.tokens.data() + t, job.first_token + static_cast<int64_t>(t), job.pages});
    }
  }
  for (size_t begin = 0; begin < metas_.size(); begin += max_metas_) {
    const size_t count = std::min<size_t>(max_metas_, metas_.size() - begin);
    EncodeBatch(std::span<const MetaContext>(metas_).subspan(begin, count));
  }
}

template <typename T>
void HierarchicalEncoder<T>::EncodeBatch(std::span<const MetaContext> metas) {
  const ModelConfig& config = model_.config();
  const int meta = config.meta_tokens(), embedding_width = config.encoder_embedding_width();
  for (size_t m = 0; m < metas.size(); ++m) {
    for (int t = 0; t < meta; ++t) {
      model_.EmbedForEncoder(metas[m].tokens[t], units_.data() + (m * meta + t) * embedding_width);
    }
  }
  for (int i = 0; i < config.num_levels(); ++i) {
    CpuLevel<T>& level = model_.levels()[i];
    const int tokens_per_unit = config.tokens_per_unit(i), units_per_meta = meta / tokens_per_unit;
    const int num_units = static_cast<int>(metas.size()) * units_per_meta;
    level.chunker.Forward(units_.data(), num_units, states_.data());
    rows_.clear();
    for (int u = 0; u < num_units; ++u) {
      if (config.level_grows(i)) {
        const MetaContext& m = metas[u / units_per_meta];
        const int64_t position = m.first_token / tokens_per_unit + u % units_per_meta;
        rows_.push_back({pages_.Kv(i, m.pages), static_cast<int>(position)});
      } else {
        const int block = config.levels[i + 1].chunk_size;
        rows_.push_back({blocks_[i][u / block], u % block});
      }
    }
    level.encoder.Forward(rows_, states_.data());
    std::swap(units_, states_);
  }
  // Later meta-contexts of a page replace the top state of earlier ones.
  const int width = pages_.latent_width();
  for (size_t m = 0; m < metas.size(); ++m) {
    std::copy_n(units_.data() + m * width, width,
                pages_.Latent(metas[m].pages, metas[m].first_token));
  }
}

template class HierarchicalEncoder<float>;
template class HierarchicalEncoder<BFloat16>;

}  // namespace photon
