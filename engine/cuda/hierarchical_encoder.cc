#include "engine/cuda/hierarchical_encoder.h"

#include <algorithm>

namespace photon::cuda {

template <typename T>
HierarchicalEncoder<T>::HierarchicalEncoder(const CudaModel<T>& model, const LatentPages<T>& pages,
                                            int max_metas, DeviceAllocator& allocator)
    : model_(model), pages_(pages) {
  const ModelConfig& config = model.config();
  const int64_t tokens = int64_t{max_metas} * config.meta_tokens();
  int64_t widest = tokens * Padded(config.encoder_embedding_width());
  for (int i = 0; i < config.num_levels(); ++i) {
    const int64_t units = tokens / config.tokens_per_unit(i);
    const TransformerStack<T>& encoder = model.level(i).encoder;
    widest = std::max(widest, units * encoder.width());
    blocks_.push_back(allocator.Allocate<T>(
        config.level_grows(i) ? 0 : units * encoder.kv_elements(), "blocks of encoders"));
  }
  units_ = allocator.Allocate<float>(widest, "units of encoders");
}

template <typename T>
void HierarchicalEncoder<T>::AddTo(const CudaModel<T>& model, int max_metas, ScratchSize& size,
                                   int64_t& x) {
  const ModelConfig& config = model.config();
  for (int i = 0; i < config.num_levels(); ++i) {
    const int units = max_metas * (config.meta_tokens() / config.tokens_per_unit(i));
    const Level<T>& level = model.level(i);
    level.chunker.AddTo(size, units);
    level.encoder.AddTo(size, units);
    x = std::max(x, ProductRows(units) * level.encoder.width());
  }
}

template <typename T>
void HierarchicalEncoder<T>::Encode(const Compute<T>& compute, const int32_t* tokens,
                                    const MetaContext* metas, int num_metas,
                                    const int32_t* page_ids, bool in_runs, float* x,
                                    float* states) const {
  const ModelConfig& config = model_.config();
  const int meta = config.meta_tokens(), top = config.num_levels() - 1;
  model_.EmbedForEncoder(compute.work, tokens, meta, meta, num_metas * meta, units_.data());
  for (int i = 0; i <= top; ++i) {
    const Level<T>& level = model_.level(i);
    const int units_per_meta = meta / config.tokens_per_unit(i);
    const int units = num_metas * units_per_meta;
    level.chunker.Forward(compute, units_.data(), units, x);
    const typename TransformerStack<T>::Output output{.to = i == top ? states : units_.data(),
                                                      .stride = level.encoder.width()};
    if (config.level_grows(i)) {
      const RowPositions positions{.metas = metas,
                                   .units_per_meta = units_per_meta,
                                   .count = units_per_meta,
                                   .in_runs = in_runs};
      level.encoder.Forward(compute, x, num_metas, positions, pages_.Kv(i, level.encoder, page_ids),
                            output);
    } else {
      const int block = config.levels[i + 1].chunk_size;
      level.encoder.Forward(compute, x, units / block, {.count = block},
                            level.encoder.Windows(blocks_[i].data(), block), output);
    }
  }
}

template class HierarchicalEncoder<float>;
template class HierarchicalEncoder<__nv_bfloat16>;

}  // namespace photon::cuda
