#include "engine/cuda/latent_pages.h"

namespace photon::cuda {
namespace {

int64_t RoundUp(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

PageLayout::PageLayout(const ModelConfig& config, int page_tokens, size_t element_bytes)
    : page_tokens(page_tokens) {
  for (int i = 0; i < config.num_levels(); ++i) {
    const StackConfig& stack = config.levels[i].encoder;
    const int positions = config.level_grows(i) ? page_tokens / config.tokens_per_unit(i) : 0;
    level_positions.push_back(positions);
    level_offsets.push_back(page_bytes);
    const int64_t elements =
        int64_t{positions} * stack.num_layers * 2 * stack.num_kv_heads * stack.head_dim;
    page_bytes = RoundUp(page_bytes + elements * static_cast<int64_t>(element_bytes));
  }
  latent_offset = page_bytes;
  page_bytes = RoundUp(page_bytes + Padded(config.levels.back().encoder.hidden_size) *
                                        static_cast<int64_t>(sizeof(float)));
}

}  // namespace photon::cuda
