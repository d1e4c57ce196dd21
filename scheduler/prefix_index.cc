#include "scheduler/prefix_index.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace photon {
namespace {

void Check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "PrefixIndex: %s\n", what);
  std::abort();
}

// Any total order will do in which a beginning precedes what it begins.
bool Precedes(std::span<const TokenId> a, std::span<const TokenId> b) {
  const int order = std::memcmp(a.data(), b.data(), std::min(a.size_bytes(), b.size_bytes()));
  return order != 0 ? order < 0 : a.size() < b.size();
}

bool IsPrefix(std::span<const TokenId> prefix, std::span<const TokenId> tokens) {
  return prefix.size() <= tokens.size() &&
         std::memcmp(prefix.data(), tokens.data(), prefix.size_bytes()) == 0;
}

}  // namespace

class PrefixIndex::Node {
 public:
  Node(TenantId tenant, Node* parent, PageId page) : tenant(tenant), parent(parent), page(page) {}

  bool kept() const { return users > 0 || pins > 0; }

  const TenantId tenant;
  Node* parent;  // null: the tenant's root
  const PageId page;
  std::vector<TokenId> tokens;
  int users = 0;
  int pins = 0;  // of this node and of those below it
  Siblings children;
  Siblings::iterator place;                   // among its siblings
  std::list<Node*>::iterator eviction_place;  // in evictable_, unless kept
};

bool PrefixIndex::TokenOrder::operator()(const Node* a, const Node* b) const {
  return Precedes(a->tokens, b->tokens);
}

bool PrefixIndex::TokenOrder::operator()(const Node* a, std::span<const TokenId> b) const {
  return Precedes(a->tokens, b);
}

PrefixIndex::PrefixIndex(PageAllocator* pages, int meta_tokens, int page_tokens)
    : pages_(pages),
      meta_tokens_(meta_tokens),
      page_tokens_(page_tokens),
      nodes_(pages->num_pages()) {
  Check(meta_tokens > 0 && page_tokens > 0 && page_tokens % meta_tokens == 0,
        "a page does not hold whole meta-contexts");
}

PrefixIndex::~PrefixIndex() {
  for (const std::unique_ptr<Node>& node : nodes_) {
    if (node != nullptr) pages_->Free({&node->page, 1});
  }
}

PrefixIndex::Match PrefixIndex::Find(TenantId tenant, std::span<const TokenId> tokens) const {
  Match match;
  const auto root = roots_.find(tenant);
  if (root == roots_.end()) return match;
  const Siblings* siblings = &root->second;
  while (true) {
    const size_t whole = tokens.size() / meta_tokens_ * meta_tokens_;
    const std::span<const TokenId> wanted = tokens.first(std::min<size_t>(whole, page_tokens_));
    if (wanted.empty()) return match;
    const auto after = siblings->lower_bound(wanted);
    if (after != siblings->end() && static_cast<int>(wanted.size()) == page_tokens_ &&
        IsPrefix(wanted, (*after)->tokens)) {
      match.full.push_back(*after);
      siblings = &(*after)->children;
      tokens = tokens.subspan(page_tokens_);
      continue;
    }
    // In a sorted row, agreement with `wanted` falls with the distance from its place.
    const auto consider = [&](Node* node) {
      const size_t limit = std::min(wanted.size(), node->tokens.size());
      size_t agreed = 0;
      while (agreed < limit && std::memcmp(&wanted[agreed], &node->tokens[agreed],
                                           meta_tokens_ * sizeof(TokenId)) == 0) {
        agreed += meta_tokens_;
      }
      if (static_cast<int>(agreed) <= match.partial_tokens) return;
      match.partial = node;
      match.partial_tokens = static_cast<int>(agreed);
    };
    if (after != siblings->end()) consider(*after);
    if (after != siblings->begin()) consider(*std::prev(after));
    return match;
  }
}

PageId PrefixIndex::page(const Node* node) {
  return node->page;
}

int PrefixIndex::num_tokens(const Node* node) {
  return static_cast<int>(node->tokens.size());
}

bool PrefixIndex::is_pinned(const Node* node) {
  return node->pins > 0;
}

PrefixIndex::Node* PrefixIndex::Insert(TenantId tenant, Node* parent, PageId page,
                                       std::span<const TokenId> tokens) {
  Check(!tokens.empty() && tokens.size() % meta_tokens_ == 0 &&
            static_cast<int>(tokens.size()) <= page_tokens_,
        "Insert: not whole meta-contexts of one page");
  Check(parent == nullptr || (parent->users > 0 && parent->tenant == tenant &&
                              static_cast<int>(parent->tokens.size()) == page_tokens_),
        "Insert: the parent is not full and in use by this tenant");
  std::unique_ptr<Node>& slot = nodes_.at(static_cast<int>(page));
  Check(slot == nullptr, "Insert: the index already holds the page");

  Siblings& siblings = parent == nullptr ? roots_[tenant] : parent->children;
  Node* const same = FindFull(siblings, tokens);
  if (same != nullptr && same->kept()) {
    pages_->Free({&page, 1});
    Acquire(same);
    return same;
  }
  slot = std::make_unique<Node>(tenant, parent, page);
  Node* const node = slot.get();
  node->tokens.reserve(page_tokens_);
  node->tokens.assign(tokens.begin(), tokens.end());
  node->place = siblings.insert(node);
  node->users = 1;
  ++num_nodes_;
  ++num_used_;
  if (same != nullptr) {
    Merge(same, node);
  } else {
    DropDominatedBy(node);
  }
  return node;
}

PrefixIndex::Node* PrefixIndex::Append(Node* node, std::span<const TokenId> tokens) {
  Check(node->users > 0, "Append: the node is not in use");
  Check(tokens.size() % meta_tokens_ == 0 &&
            static_cast<int>(node->tokens.size() + tokens.size()) <= page_tokens_,
        "Append: not whole meta-contexts within the page");
  if (tokens.empty()) return node;

  Siblings& siblings = SiblingsOf(node);
  // Out of the row while its key changes.
  Siblings::node_type place = siblings.extract(node->place);
  node->tokens.insert(node->tokens.end(), tokens.begin(), tokens.end());
  Node* const same = FindFull(siblings, node->tokens);
  if (same != nullptr && same->kept()) {
    // Others who keep the page go on with what it held before.
    node->tokens.resize(node->tokens.size() - tokens.size());
    node->place = siblings.insert(std::move(place));
    Acquire(same);
    Release(node);
    return same;
  }
  node->place = siblings.insert(std::move(place));
  if (same != nullptr) {
    Merge(same, node);
  } else {
    DropDominatedBy(node);
  }
  return node;
}

void PrefixIndex::Acquire(Node* node) {
  Check(node->parent == nullptr || node->parent->users > 0, "Acquire: the parent is not in use");
  if (!node->kept()) StartKeeping(node);
  if (node->users++ == 0) ++num_used_;
}

void PrefixIndex::Release(Node* node) {
  Check(node->users > 0, "Release: the node is not in use");
  if (--node->users > 0) return;
  --num_used_;
  if (!node->kept()) StopKeeping(node);
}

void PrefixIndex::Pin(Node* node) {
  for (; node != nullptr; node = node->parent) {
    if (!node->kept()) StartKeeping(node);
    if (node->pins++ == 0) ++num_pinned_;
  }
}

void PrefixIndex::Unpin(Node* node) {
  while (node != nullptr) {
    Node* const parent = node->parent;
    Check(node->pins > 0, "Unpin: the node is not pinned");
    if (--node->pins == 0) {
      --num_pinned_;
      if (!node->kept()) StopKeeping(node);
    }
    node = parent;
  }
}

bool PrefixIndex::Evict() {
  if (evictable_.empty()) return false;
  Remove(evictable_.front());
  ++evictions_;
  return true;
}

void PrefixIndex::Clear() {
  while (Evict()) {
  }
}

PrefixIndex::Siblings& PrefixIndex::SiblingsOf(const Node* node) {
  return node->parent == nullptr ? roots_.at(node->tenant) : node->parent->children;
}

bool PrefixIndex::IsDominated(const Node* node) {
  const Siblings& siblings = SiblingsOf(node);
  // What begins with these tokens follows them immediately. Only equals can precede them.
  const auto next = std::next(node->place);
  return (next != siblings.end() && IsPrefix(node->tokens, (*next)->tokens)) ||
         (node->place != siblings.begin() &&
          IsPrefix(node->tokens, (*std::prev(node->place))->tokens));
}

PrefixIndex::Node* PrefixIndex::FindFull(const Siblings& siblings,
                                         std::span<const TokenId> tokens) const {
  if (static_cast<int>(tokens.size()) < page_tokens_) return nullptr;
  const auto found = siblings.lower_bound(tokens);
  return found != siblings.end() && IsPrefix(tokens, (*found)->tokens) ? *found : nullptr;
}

void PrefixIndex::DropDominatedBy(Node* node) {
  // One at most, and next to the node: between two nodes stand only such as begin with the first,
  // and of these the nearer would have made the farther go.
  if (node->place == SiblingsOf(node).begin()) return;
  Node* const previous = *std::prev(node->place);
  if (!previous->kept() && IsPrefix(previous->tokens, node->tokens)) Remove(previous);
}

void PrefixIndex::Merge(Node* from, Node* to) {
  to->children.swap(from->children);
  for (Node* child : to->children) child->parent = to;
  Remove(from);
}

void PrefixIndex::StartKeeping(Node* node) {
  evictable_.erase(node->eviction_place);
}

void PrefixIndex::StopKeeping(Node* node) {
  node->eviction_place = evictable_.insert(evictable_.end(), node);
  if (IsDominated(node)) Remove(node);
}

void PrefixIndex::Remove(Node* node) {
  Check(node->children.empty(), "a path was not released from its end");
  evictable_.erase(node->eviction_place);
  Siblings& siblings = SiblingsOf(node);
  siblings.erase(node->place);
  if (node->parent == nullptr && siblings.empty()) roots_.erase(node->tenant);
  const PageId page = node->page;
  nodes_[static_cast<int>(page)].reset();
  pages_->Free({&page, 1});
  --num_nodes_;
}

void PrefixIndex::CheckInvariants() const {
  int num_nodes = 0, num_used = 0, num_pinned = 0;
  size_t num_placed = 0;
  for (const auto& [tenant, siblings] : roots_) {
    Check(!siblings.empty(), "a tenant without nodes is remembered");
    num_placed += siblings.size();
  }
  for (size_t page = 0; page < nodes_.size(); ++page) {
    if (nodes_[page] == nullptr) continue;
    const Node& node = *nodes_[page];
    ++num_nodes;
    if (node.users > 0) ++num_used;
    if (node.pins > 0) ++num_pinned;
    num_placed += node.children.size();
    Check(static_cast<size_t>(node.page) == page, "a node is filed under another page");
    const int num_tokens = static_cast<int>(node.tokens.size());
    Check(num_tokens > 0 && num_tokens <= page_tokens_ && num_tokens % meta_tokens_ == 0,
          "a node's tokens are not whole meta-contexts of one page");
    Check(node.children.empty() || num_tokens == page_tokens_, "a page with children is not full");
    Check(node.users >= 0 && node.pins >= 0, "a count is negative");
    int pins_below = 0;
    for (const Node* child : node.children) {
      Check(child->parent == &node && child->tenant == node.tenant, "a child has another parent");
      Check(child->users == 0 || node.users > 0, "a user of a child does not use the path to it");
      pins_below += child->pins;
    }
    Check(pins_below <= node.pins, "a pin does not pin the whole path");

    const Siblings& siblings =
        node.parent == nullptr ? roots_.at(node.tenant) : node.parent->children;
    Check(*node.place == &node, "a node is not in its place among its siblings");
    int times = 0;
    for (const Node* sibling : siblings) {
      if (sibling == &node) {
        ++times;
        continue;
      }
      const bool dominated = IsPrefix(node.tokens, sibling->tokens);
      Check(!dominated || num_tokens < page_tokens_, "siblings hold the same full page");
      Check(!dominated || node.kept(), "a page is cached though a sibling holds all its tokens");
    }
    Check(times == 1, "a node is not among its siblings once");
    if (const auto next = std::next(node.place); next != siblings.end()) {
      Check(!Precedes((*next)->tokens, node.tokens), "siblings are not sorted");
    }
  }
  Check(num_nodes == num_nodes_ && static_cast<size_t>(num_nodes) == num_placed &&
            num_used == num_used_ && num_pinned == num_pinned_,
        "nodes do not add up");

  std::vector<bool> earlier(nodes_.size());  // by page
  int num_evictable = 0;
  for (auto place = evictable_.begin(); place != evictable_.end(); ++place, ++num_evictable) {
    const Node& node = **place;
    Check(!node.kept() && node.eviction_place == place, "a kept node can be evicted");
    for (const Node* child : node.children) {
      Check(earlier[static_cast<int>(child->page)], "a node is evicted before its children");
    }
    earlier[static_cast<int>(node.page)] = true;
  }
  const auto not_kept = [](const std::unique_ptr<Node>& node) {
    return node != nullptr && !node->kept();
  };
  Check(num_evictable == std::count_if(nodes_.begin(), nodes_.end(), not_kept),
        "a node that is not kept cannot be evicted");
}

}  // namespace photon
