// Which pages of the latent pool hold which tokens: a radix tree over meta-contexts, one per
// tenant.
//
// A node is one page. Its key is the tokens that the page holds, whole meta-contexts; only a full
// page has children. A sequence whose prompt starts like another's takes the full pages that they
// share as they are, and copies the page in which they part:
//
//   root --[page 7: "The king ..." full]--[page 9: full]--[page 4: 3 meta-contexts]  written by A
//                                                     \---[page 6: 5 meta-contexts]  B parted here
//
// Every page has one owner: the sequence that allocated it, until Insert() hands it to the index.
// The index counts a node's users (running sequences) and pins (documents). A node in use or pinned
// is *kept*, and so are its ancestors, because whoever uses a node uses the path to it. All others
// are evicted as memory is needed, the least recently used first; that is always a leaf, because a
// path is released from its end.
//
// Nothing is cached twice: siblings never hold the same full page, and a page that nobody keeps
// goes at once if a sibling holds the same tokens, or these and more.
//
// Tenants never share: what is cached for one cannot be seen, or timed, by another.
//
// Costs: siblings are sorted by their tokens, so that the one that agrees longest with a prompt is
// next to where the prompt itself would stand, however many begin alike. Find() takes O(log
// siblings) bulk comparisons per page of the match, Insert() and Append() as many once, Pin() and
// Unpin() the length of the path, the rest constant time.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/types.h"
#include "scheduler/page_allocator.h"
#include "scheduler/sequence.h"

namespace photon {

class PrefixIndex {
 public:
  // Lives until its page is given up: at least as long as it is kept.
  class Node;

  // What the tree holds of a prompt. Nothing is acquired, so it is good until the index changes.
  struct Match {
    std::vector<Node*> full;  // full pages that the prompt goes through, in order
    // A page that goes on like the prompt, but parts from it or ends within the page; the one that
    // agrees the longest.
    Node* partial = nullptr;
    int partial_tokens = 0;  // that agree: whole meta-contexts, at least one, less than a page
  };

  // Pages that the index gives up return to `pages`, which outlives it.
  PrefixIndex(PageAllocator* pages, int meta_tokens, int page_tokens);

  // Gives up all pages; nobody uses them any more.
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // The longest prefix of `tokens` that `tenant`'s tree holds, in whole meta-contexts.
  Match Find(TenantId tenant, std::span<const TokenId> tokens) const;

  static PageId page(const Node* node);
  static int num_tokens(const Node* node);  // that its page is known to hold
  static bool is_pinned(const Node* node);

  // Hands `page`, which holds `tokens` (whole meta-contexts, at least one, at most a page), to the
  // index as a child of `parent`; null: of the tenant's root. `parent` is full and in use. The new
  // node has one user: the caller, which alone may write the page beyond `tokens`, and says so by
  // Append().
  //
  // If a full page comes to hold what a sibling already holds, in Insert() or in Append(), one of
  // the two goes. A sibling that is kept is returned, acquired, instead, and the caller's page goes
  // back to the allocator (in Append() only when its last user has released it): the caller goes on
  // with the sibling's page. Otherwise the caller's node takes over what follows the sibling.
  // Neither makes kept pages of pages that were not.
  Node* Insert(TenantId tenant, Node* parent, PageId page, std::span<const TokenId> tokens);

  // The caller, a user of the node, has written more whole meta-contexts to its page.
  Node* Append(Node* node, std::span<const TokenId> tokens);

  // Counts a user of the node, which keeps it. Its ancestors are kept by their own users: acquire a
  // path from the root.
  void Acquire(Node* node);

  // Takes a user away. Release a path from its end. A node left without users and pins can be
  // evicted from now on; one that holds nothing but the beginning of what a sibling holds goes at
  // once.
  void Release(Node* node);

  // Keeps the path to `node` until Unpin(). Pins count.
  void Pin(Node* node);
  void Unpin(Node* node);

  // Frees the page of the least recently used node that is not kept. False: there is none.
  bool Evict();

  // Evicts everything that is not kept.
  void Clear();

  int num_nodes() const { return num_nodes_; }    // pages held; each is used, pinned or evictable
  int num_used() const { return num_used_; }      // of them, with users
  int num_pinned() const { return num_pinned_; }  // of them, pinned; some of these are used as well
  int num_evictable() const { return static_cast<int>(evictable_.size()); }  // of them, not kept
  int64_t evictions() const { return evictions_; }  // pages evicted since creation

  // Aborts unless users, pins, children, tokens and the order of eviction fit together. For tests:
  // looks at everything.
  void CheckInvariants() const;

 private:
  // By tokens, in the order of memcmp; a beginning comes before what it begins. So the nodes that
  // begin with some tokens stand next to each other.
  struct TokenOrder {
    using is_transparent = void;
    bool operator()(const Node* a, const Node* b) const;
    bool operator()(const Node* a, std::span<const TokenId> b) const;
  };
  using Siblings = std::multiset<Node*, TokenOrder>;

  Siblings& SiblingsOf(const Node* node);
  // Whether a sibling holds all that `node` holds.
  bool IsDominated(const Node* node);
  // The full sibling that holds `tokens`, a full page; null: none.
  Node* FindFull(const Siblings& siblings, std::span<const TokenId> tokens) const;
  // After `node`, which is in use, has got more tokens and its place among its siblings.
  void DropDominatedBy(Node* node);
  // Moves the children of `from`, which is not kept, under `to`, and gives `from` up.
  void Merge(Node* from, Node* to);
  // Before the first and after the last of a node's users and pins. The latter may give it up.
  void StartKeeping(Node* node);
  void StopKeeping(Node* node);
  // Gives up a leaf.
  void Remove(Node* node);

  PageAllocator* const pages_;
  const int meta_tokens_;
  const int page_tokens_;
  std::vector<std::unique_ptr<Node>> nodes_;      // by page; null: the index does not hold the page
  std::unordered_map<TenantId, Siblings> roots_;  // of tenants that have nodes
  // Nodes that are not kept, in the order in which that came about. The head is a leaf: whatever
  // keeps a node keeps its ancestors for at least as long, so a node enters after all its
  // descendants have, and gets no new ones while it is here.
  std::list<Node*> evictable_;
  int num_nodes_ = 0;
  int num_used_ = 0;
  int num_pinned_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace photon
