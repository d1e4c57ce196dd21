#include "scheduler/latent_pool.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace photon {

int PagesNeeded(const EngineShape& shape, int tokens) {
  // Pages hold whole meta-contexts, so rounding up to a meta-context first would change nothing.
  return (tokens + shape.page_tokens - 1) / shape.page_tokens;
}

LatentPool::LatentPool(const EngineShape& shape)
    : meta_tokens_(shape.meta_tokens),
      page_tokens_(shape.page_tokens),
      allocator_(shape.num_pages),
      index_(&allocator_, shape.meta_tokens, shape.page_tokens) {}

int LatentPool::CountCached(TenantId tenant, std::span<const TokenId> tokens) const {
  const PrefixIndex::Match match = index_.Find(tenant, tokens);
  const int partial = match.partial == nullptr ? 0 : match.partial_tokens - meta_tokens_;
  return static_cast<int>(match.full.size()) * page_tokens_ + partial;
}

int LatentPool::CountPinned(TenantId tenant, std::span<const TokenId> tokens) const {
  const PrefixIndex::Match match = index_.Find(tenant, tokens);
  return static_cast<int>(
      std::count_if(match.full.begin(), match.full.end(), PrefixIndex::is_pinned));
}

bool LatentPool::Open(PageTable& table, TenantId tenant, std::span<const TokenId> tokens,
                      int reserved_tokens) {
  PrefixIndex::Match match = index_.Find(tenant, tokens);
  const int full = static_cast<int>(match.full.size());
  const int needed = std::max(0, (reserved_tokens + page_tokens_ - 1) / page_tokens_ - full);
  // What is acquired can no longer be evicted, so it counts as taken.
  for (PrefixIndex::Node* node : match.full) index_.Acquire(node);
  PrefixIndex::Node* source = match.partial_tokens > meta_tokens_ ? match.partial : nullptr;
  if (source != nullptr) {
    index_.Acquire(source);
    if (num_available() < needed) {
      // Recomputing its tokens takes no page more.
      index_.Release(source);
      source = nullptr;
    }
  }
  if (num_available() < needed) {
    for (int i = full - 1; i >= 0; --i) index_.Release(match.full[i]);
    return false;
  }

  table = PageTable();
  table.tenant = tenant;
  table.nodes = std::move(match.full);
  for (const PrefixIndex::Node* node : table.nodes) table.pages.push_back(index_.page(node));
  table.cached_tokens = full * page_tokens_;
  table.reserved = needed;
  reserved_ += needed;
  if (source != nullptr) {
    table.copy_source = source;
    Grow(table, table.cached_tokens + 1);
    table.copy = PageCopy{.from = index_.page(source), .to = table.pages.back()};
    table.cached_tokens += match.partial_tokens - meta_tokens_;
  }
  return true;
}

bool LatentPool::Grow(PageTable& table, int tokens) {
  const size_t needed = (tokens + page_tokens_ - 1) / page_tokens_;
  while (table.pages.size() < needed) {
    if (table.reserved == 0 && num_available() < 1) return false;
    if (allocator_.num_free() == 0) index_.Evict();
    table.pages.push_back(allocator_.Allocate(1)->front());
    ++num_private_;
    if (table.reserved > 0) {
      --table.reserved;
      --reserved_;
    }
  }
  return true;
}

void LatentPool::Advance(PageTable& table, int cached_tokens) {
  if (table.copy.has_value()) {
    index_.Release(table.copy_source);
    table.copy_source = nullptr;
    table.copy.reset();
  }
  table.cached_tokens = cached_tokens;
}

void LatentPool::Commit(PageTable& table, std::span<const TokenId> tokens, int cached_tokens,
                        int shareable_tokens) {
  Advance(table, cached_tokens);
  shareable_tokens = WholeMetaContexts(std::min(cached_tokens, shareable_tokens));

  int shared = 0;
  if (!table.nodes.empty()) {
    shared = static_cast<int>(table.nodes.size() - 1) * page_tokens_ +
             index_.num_tokens(table.nodes.back());
  }
  while (shared < shareable_tokens) {
    const size_t page = shared / page_tokens_;
    const int end = std::min(shareable_tokens, static_cast<int>(page + 1) * page_tokens_);
    const std::span<const TokenId> written = tokens.subspan(shared, end - shared);
    if (page == table.nodes.size()) {
      PrefixIndex::Node* parent = table.nodes.empty() ? nullptr : table.nodes.back();
      table.nodes.push_back(index_.Insert(table.tenant, parent, table.pages[page], written));
      --num_private_;
    } else {
      table.nodes.back() = index_.Append(table.nodes.back(), written);
    }
    // Somebody else may have written the same page before.
    table.pages[page] = index_.page(table.nodes.back());
    shared = end;
  }
}

void LatentPool::Close(PageTable& table) {
  if (table.copy_source != nullptr) index_.Release(table.copy_source);
  const std::span<const PageId> own = std::span(table.pages).subspan(table.nodes.size());
  allocator_.Free(own);
  num_private_ -= static_cast<int>(own.size());
  while (!table.nodes.empty()) {
    index_.Release(table.nodes.back());
    table.nodes.pop_back();
  }
  reserved_ -= table.reserved;
  table = PageTable();
}

void LatentPool::Pin(PinId pin, const PageTable& table) {
  PrefixIndex::Node* node = table.nodes.empty() ? nullptr : table.nodes.back();
  if (node != nullptr) index_.Pin(node);
  pins_.emplace(pin, node);
}

void LatentPool::Unpin(PinId pin) {
  const auto found = pins_.find(pin);
  if (found == pins_.end()) return;
  if (found->second != nullptr) index_.Unpin(found->second);
  pins_.erase(found);
}

void LatentPool::CheckInvariants(std::span<const PageTable* const> tables) const {
  const auto check = [](bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "LatentPool: %s\n", what);
    std::abort();
  };
  index_.CheckInvariants();
  int reserved = 0, own = 0;
  std::vector<bool> taken(num_pages());
  for (const PageTable* table : tables) {
    reserved += table->reserved;
    for (size_t i = table->nodes.size(); i < table->pages.size(); ++i, ++own) {
      const int page = static_cast<int>(table->pages[i]);
      check(!taken[page], "a page is in two tables and not shared");
      taken[page] = true;
    }
    for (size_t i = 0; i < table->nodes.size(); ++i) {
      check(table->pages[i] == index_.page(table->nodes[i]), "a table's page is not its node's");
    }
  }
  check(reserved == reserved_, "promises do not add up");
  check(own == num_private_, "unshared pages do not add up");
  check(own + index_.num_nodes() + num_free() == num_pages(), "a page was lost, or has two owners");
  check(num_available() >= 0, "more is promised than there is");
}

}  // namespace photon
