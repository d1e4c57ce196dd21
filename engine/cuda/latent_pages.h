// The latent pool's memory on the device: pages of keys and values of the growing levels, and of
// top states. One page more than the engine's users see takes what rows without a sequence write.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/model/config.h"
#include "engine/types.h"

namespace photon::cuda {

// Where things are inside a page. Growing level i keeps page_tokens / P_i positions, layer after
// layer as KvLayer lays them out; then comes one top state (float [Padded(D_L)]), the newest one
// written.
struct PageLayout {
  PageLayout(const ModelConfig& config, int page_tokens, size_t element_bytes);

  int page_tokens = 0;
  std::vector<int> level_positions;    // per level; 0 for levels that do not grow
  std::vector<int64_t> level_offsets;  // bytes
  int64_t latent_offset = 0;           // bytes
  int64_t page_bytes = 0;              // a multiple of 256
};

template <typename T>
class LatentPages {
 public:
  LatentPages(const PageLayout& layout, int latent_width)
      : layout_(layout), latent_width_(static_cast<int>(Padded(latent_width))) {}

  // Takes the memory. Comes last at start, since the pool may take all that is left.
  void Allocate(int num_pages, DeviceAllocator& allocator) {
    num_pages_ = num_pages;
    memory_ =
        allocator.Allocate<std::byte>((int64_t{num_pages} + 1) * layout_.page_bytes, "latent pool");
  }

  const PageLayout& layout() const { return layout_; }
  int32_t spare_page() const { return num_pages_; }
  int latent_width() const { return latent_width_; }  // padded

  // Keys and values of growing level `level`, for contexts whose page ids are in `page_ids`.
  KvCache<T> Kv(int level, const TransformerStack<T>& stack, const int32_t* page_ids) const {
    const int positions = layout_.level_positions[level];
    return {
        .first_layer = {.base = reinterpret_cast<T*>(memory_.data() + layout_.level_offsets[level]),
                        .page_ids = page_ids,
                        .stride = layout_.page_bytes / static_cast<int64_t>(sizeof(T)),
                        .segment_positions = positions,
                        .kv_dim = stack.kv_dim()},
        .layer_stride = int64_t{positions} * 2 * stack.kv_dim()};
  }

  // Top state of page 0; the next page's is latent_stride() floats further.
  float* latents() const {
    return reinterpret_cast<float*>(memory_.data() + layout_.latent_offset);
  }
  int64_t latent_stride() const { return layout_.page_bytes / static_cast<int64_t>(sizeof(float)); }

  // Puts top states [count, latent_width()] into the pages of `page_ids`, which the device reads;
  // those below zero are left out.
  void StoreLatents(Work& work, const float* states, const int32_t* page_ids, int count) const {
    work.Run("store_latents", [&](cudaStream_t stream) {
      return LaunchStoreLatents(states, page_ids, latents(), latent_stride(), latent_width_, count,
                                stream);
    });
  }

  void Copy(Work& work, PageId from, PageId to) const {
    if (from == to) return;
    work.Run("page copy", [&](cudaStream_t stream) {
      return cudaMemcpyAsync(Page(to), Page(from), layout_.page_bytes, cudaMemcpyDeviceToDevice,
                             stream);
    });
  }

 private:
  std::byte* Page(PageId page) const {
    return memory_.data() + static_cast<int32_t>(page) * layout_.page_bytes;
  }

  PageLayout layout_;
  int latent_width_;
  int num_pages_ = 0;
  DeviceBuffer<std::byte> memory_;
};

}  // namespace photon::cuda
