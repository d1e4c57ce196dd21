// The latent pool's memory: pages of keys and values of the growing levels, and of top states.
#pragma once

#include <cstring>
#include <vector>

#include "engine/cpu/aligned_buffer.h"
#include "engine/cpu/transformer_stack.h"
#include "engine/model/config.h"

namespace photon {

// Where things are inside a page. Growing level i keeps page_tokens / P_i positions of all its
// layers as KvContext lays them out; then comes one top state (float [D_L]), the newest one
// written.
struct PageLayout {
  PageLayout(const ModelConfig& config, int page_tokens, size_t element_bytes);

  int page_tokens = 0;
  std::vector<int> level_positions;    // per level; 0 for levels that do not grow
  std::vector<int64_t> level_offsets;  // bytes
  int64_t latent_offset = 0;           // bytes
  int64_t page_bytes = 0;              // a multiple of 64
};

template <typename T>
class LatentPages {
 public:
  LatentPages(const PageLayout& layout, int num_pages, int latent_width)
      : layout_(layout), latent_width_(latent_width), memory_(layout.page_bytes * num_pages) {}

  const PageLayout& layout() const { return layout_; }

  const std::byte* data() const { return memory_.data(); }
  int64_t size_bytes() const { return memory_.size(); }

  // Keys and values of growing level `level` for the sequence that owns `pages`.
  KvContext<T> Kv(int level, const PageId* pages) {
    return {.base = reinterpret_cast<T*>(memory_.data() + layout_.level_offsets[level]),
            .pages = pages,
            .page_stride = layout_.page_bytes / static_cast<int64_t>(sizeof(T)),
            .segment_positions = layout_.level_positions[level]};
  }

  // The top state after the newest meta-context of the page that holds `token`. [D_L]
  float* Latent(const PageId* pages, int64_t token) {
    return reinterpret_cast<float*>(Page(pages[token / layout_.page_tokens]) +
                                    layout_.latent_offset);
  }

  void Copy(PageId from, PageId to) {
    if (from != to) std::memcpy(Page(to), Page(from), layout_.page_bytes);
  }

  int latent_width() const { return latent_width_; }

 private:
  std::byte* Page(PageId page) {
    return memory_.data() + static_cast<int32_t>(page) * layout_.page_bytes;
  }

  PageLayout layout_;
  int latent_width_;
  AlignedBuffer<std::byte> memory_;
};

// Separate causal contexts of a fixed small size: block-encoder blocks and decoder windows. They
// live inside a step only.
template <typename T>
class KvWindows {
 public:
  KvWindows() = default;
  KvWindows(const TransformerStack<T>& stack, int64_t count, int positions)
      : positions_(positions),
        window_elements_(positions * stack.kv_elements()),
        memory_(count * window_elements_) {}

  KvContext<T> operator[](int64_t window) {
    return {.base = memory_.data() + window * window_elements_, .segment_positions = positions_};
  }

 private:
  int positions_ = 0;
  int64_t window_elements_ = 0;
  AlignedBuffer<T> memory_;
};

}  // namespace photon
