// The latent pool: who holds which page, and how much is promised.
//
// A sequence's part of the pool is a PageTable. Open() fills it with what the prefix index holds of
// the sequence's tokens and reserves the pages that it can need at most; Grow() turns reserved
// pages into real ones just before they are written; Advance() says that they were, and Commit()
// shares them, too; Close() returns everything.
//
//   available = free + evictable - reserved
//
// never goes below zero, so that Grow() within a reservation always succeeds, by evicting cached
// pages if it must.
//
// Integers only: the memory itself is the engine's. One thread at a time.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "scheduler/page_allocator.h"
#include "scheduler/prefix_index.h"
#include "scheduler/sequence.h"

namespace photon {

// Pages that `tokens` tokens take at most.
int PagesNeeded(const EngineShape& shape, int tokens);

// One sequence's pages. Opened, grown, committed and closed by a LatentPool.
struct PageTable {
  TenantId tenant{};
  std::vector<PageId> pages;  // in the order of the text
  int cached_tokens = 0;      // that they hold, whole meta-contexts
  // Whether a copy is due before the next step of this sequence: the page in which its tokens part
  // from what is cached. The last meta-context that both share is computed again, for its top
  // state.
  std::optional<PageCopy> copy;

  // LatentPool's own.
  std::vector<PrefixIndex::Node*> nodes;     // of the first pages, as far as they are shared
  PrefixIndex::Node* copy_source = nullptr;  // kept until the copy is done
  int reserved = 0;                          // pages promised and not yet taken
};

class LatentPool {
 public:
  explicit LatentPool(const EngineShape& shape);

  // Opens an empty table for `tokens` with pages for `reserved_tokens` of them and of those to come
  // reserved. False: so many are not available now; nothing has changed.
  bool Open(PageTable& table, TenantId tenant, std::span<const TokenId> tokens,
            int reserved_tokens);

  // Tokens that Open() would find cached, were there memory.
  int CountCached(TenantId tenant, std::span<const TokenId> tokens) const;

  // Full pages that Open() would share and that pins keep.
  int CountPinned(TenantId tenant, std::span<const TokenId> tokens) const;

  // Takes pages until the table covers `tokens` tokens. False: beyond the reservation nothing is
  // left; the table keeps what it got.
  bool Grow(PageTable& table, int tokens);

  // The table's pages hold the first `cached_tokens` tokens now; the copy, if one was due, is done.
  void Advance(PageTable& table, int cached_tokens);

  // Likewise of `tokens`, and shares the first `shareable_tokens` of them, which are as a prefill
  // of these tokens would have written them.
  void Commit(PageTable& table, std::span<const TokenId> tokens, int cached_tokens,
              int shareable_tokens);

  // Returns the table's pages and promises. What Commit shared stays cached until its memory is
  // needed.
  void Close(PageTable& table);

  // Keeps the shared pages of `table` until Unpin(pin). `pin` is new.
  void Pin(PinId pin, const PageTable& table);
  // Unknown pins are ignored.
  void Unpin(PinId pin);

  // Gives up what only the prefix index holds.
  void DropCached() { index_.Clear(); }

  int num_pages() const { return allocator_.num_pages(); }
  int num_free() const { return allocator_.num_free(); }
  int num_available() const { return num_free() + index_.num_evictable() - reserved_; }
  int num_cached() const { return index_.num_evictable(); }
  int num_in_use() const { return num_private_ + index_.num_used(); }  // held by tables
  int num_pinned() const { return index_.num_nodes() - index_.num_evictable() - index_.num_used(); }
  int num_kept() const { return index_.num_pinned(); }  // by pins, in use or not
  int num_pins() const { return static_cast<int>(pins_.size()); }
  int64_t evictions() const { return index_.evictions(); }

  // Aborts unless every page is free, in one table alone or in the index, and the promises add up.
  // For tests.
  void CheckInvariants(std::span<const PageTable* const> tables) const;

 private:
  int WholeMetaContexts(int tokens) const { return tokens / meta_tokens_ * meta_tokens_; }

  const int meta_tokens_;
  const int page_tokens_;
  PageAllocator allocator_;
  PrefixIndex index_;
  int reserved_ = 0;                          // over all tables
  int num_private_ = 0;                       // pages of tables that are not in the index
  std::map<PinId, PrefixIndex::Node*> pins_;  // null: nothing was there to keep
};

}  // namespace photon
