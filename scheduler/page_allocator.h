// Which pages of an engine's latent pool are free.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace photon {

// A free list. Every page is either free or owned by exactly one caller. One thread at a time.
class PageAllocator {
 public:
  explicit PageAllocator(int num_pages);

  int num_pages() const { return static_cast<int>(owned_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }

  // `count` pages, or none of them if fewer are free. The page freed last is handed out first: its
  // memory is the most likely to be warm.
  std::optional<std::vector<PageId>> Allocate(int count);

  // Aborts on a page that is not owned: it would end up with two owners.
  void Free(std::span<const PageId> pages);

 private:
  std::vector<PageId> free_;  // a stack
  std::vector<bool> owned_;   // by page id
};

}  // namespace photon
