#include "scheduler/page_allocator.h"

#include <cstdio>
#include <cstdlib>

namespace photon {

PageAllocator::PageAllocator(int num_pages) : owned_(num_pages, false) {
  free_.reserve(num_pages);
  for (int page = num_pages - 1; page >= 0; --page) free_.push_back(PageId{page});
}

std::optional<std::vector<PageId>> PageAllocator::Allocate(int count) {
  if (count > num_free()) return std::nullopt;
  std::vector<PageId> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - count);
  for (PageId page : pages) owned_[static_cast<int>(page)] = true;
  return pages;
}

void PageAllocator::Free(std::span<const PageId> pages) {
  for (PageId page : pages) {
    const int id = static_cast<int>(page);
    if (id < 0 || id >= num_pages() || !owned_[id]) {
      std::fprintf(stderr, "PageAllocator::Free: page %d is not owned\n", id);
      std::abort();
    }
    owned_[id] = false;
    free_.push_back(page);
  }
}

}  // namespace photon
