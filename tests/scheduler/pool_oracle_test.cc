// Random sequences share the pages of a small pool. What PageAllocator and PrefixIndex do is
// compared, after every event, with an oracle: a flat list of who holds which tokens, searched from
// end to end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "scheduler/page_allocator.h"
#include "scheduler/prefix_index.h"

namespace photon {
namespace {

using Node = PrefixIndex::Node;
using Tokens = std::vector<TokenId>;

bool Begins(const Tokens& beginning, const Tokens& tokens) {
  return beginning.size() <= tokens.size() &&
         std::equal(beginning.begin(), beginning.end(), tokens.begin());
}

Tokens First(const Tokens& tokens, int count) {
  return Tokens(tokens.begin(), tokens.begin() + count);
}

// What the index is to hold, by its contract.
class Oracle {
 public:
  struct Entry {
    TenantId tenant{};
    Tokens text;  // from the beginning of the sequence to the end of what the page holds
    PageId page{};
    int users = 0;
    int pins = 0;
    int64_t left_at = 0;  // when its last user or pin went
    bool kept() const { return users > 0 || pins > 0; }
  };

  Oracle(int meta_tokens, int page_tokens) : meta_tokens_(meta_tokens), page_tokens_(page_tokens) {}

  const std::vector<Entry>& entries() const { return entries_; }

  Entry& At(PageId page) {
    for (Entry& entry : entries_) {
      if (entry.page == page) return entry;
    }
    ADD_FAILURE() << "no entry has page " << static_cast<int>(page);
    std::abort();
  }

  int CountFound(TenantId tenant, const Tokens& tokens) const {
    int longest = 0;
    for (const Entry& entry : entries_) {
      if (entry.tenant != tenant) continue;
      int common = 0;
      while (common < static_cast<int>(std::min(tokens.size(), entry.text.size())) &&
             tokens[common] == entry.text[common]) {
        ++common;
      }
      longest = std::max(longest, common / meta_tokens_ * meta_tokens_);
    }
    return longest;
  }

  // The page that its writer goes on with.
  PageId Insert(TenantId tenant, const Tokens& text, PageId page) {
    if (const std::optional<PageId> kept = Resolve(tenant, text)) return *kept;
    entries_.push_back({.tenant = tenant, .text = text, .page = page, .users = 1});
    DropDominated();
    return page;
  }

  PageId Append(PageId page, const Tokens& text) {
    if (const std::optional<PageId> kept = Resolve(At(page).tenant, text)) {
      Release(page);
      return *kept;
    }
    At(page).text = text;
    DropDominated();
    return page;
  }

  void Acquire(PageId page) { ++At(page).users; }

  void Release(PageId page) {
    Entry& entry = At(page);
    --entry.users;
    Leave(entry);
    DropDominated();
  }

  void Pin(PageId page) {
    for (const PageId part : PathTo(page)) ++At(part).pins;
  }

  void Unpin(PageId page) {
    for (const PageId part : PathTo(page)) {
      --At(part).pins;
      Leave(At(part));
    }
    DropDominated();
  }

  std::optional<PageId> Evict() {
    auto victim = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->kept()) continue;
      if (victim == entries_.end() || entry->left_at < victim->left_at) victim = entry;
    }
    if (victim == entries_.end()) return std::nullopt;
    const PageId page = victim->page;
    entries_.erase(victim);
    return page;
  }

  int num_dominated() const { return num_dominated_; }
  int num_adopted() const { return num_adopted_; }
  int num_merged() const { return num_merged_; }

 private:
  size_t PagesOf(const Tokens& text) const {
    return (text.size() + page_tokens_ - 1) / page_tokens_;
  }
  bool IsFull(const Tokens& text) const { return text.size() % page_tokens_ == 0; }

  // Of two entries with the same full page one stays.
  std::optional<PageId> Resolve(TenantId tenant, const Tokens& text) {
    if (!IsFull(text)) return std::nullopt;
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->tenant != tenant || entry->text != text) continue;
      if (entry->kept()) {
        ++entry->users;
        ++num_adopted_;
        return entry->page;
      }
      entries_.erase(entry);
      ++num_merged_;
      return std::nullopt;
    }
    return std::nullopt;
  }

  void Leave(Entry& entry) {
    if (!entry.kept()) entry.left_at = ++time_;
  }

  // The last page first.
  std::vector<PageId> PathTo(PageId page) {
    const Entry& end = At(page);
    std::vector<PageId> path = {page};
    for (size_t pages = PagesOf(end.text) - 1; pages > 0; --pages) {
      const Tokens text = First(end.text, static_cast<int>(pages) * page_tokens_);
      for (const Entry& entry : entries_) {
        if (entry.tenant == end.tenant && entry.text == text) path.push_back(entry.page);
      }
    }
    return path;
  }

  void DropDominated() {
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->kept()) continue;
      for (const Entry& other : entries_) {
        if (&other == &*entry || other.tenant != entry->tenant) continue;
        if (PagesOf(other.text) != PagesOf(entry->text) || !Begins(entry->text, other.text))
          continue;
        entries_.erase(entry);
        ++num_dominated_;
        return DropDominated();
      }
    }
  }

  const int meta_tokens_;
  const int page_tokens_;
  std::vector<Entry> entries_;
  int64_t time_ = 0;
  int num_dominated_ = 0;
  int num_adopted_ = 0;
  int num_merged_ = 0;
};

// A sequence, as the scheduler treats it.
struct Live {
  TenantId tenant{};
  Tokens tokens;      // the prompt, then what was generated
  int shareable = 0;  // the first so many may be shared
  int written = 0;    // whole meta-contexts in its pages
  std::vector<PageId> pages;
  std::vector<Node*> nodes;  // of the first pages
  Node* copy_source = nullptr;
};

class Simulation {
 public:
  struct Limits {
    int meta_tokens;
    int page_tokens;
    int num_pages;
    int vocab_size;
    int max_tokens;
  };

  Simulation(uint32_t seed, const Limits& limits)
      : random_(seed),
        limits_(limits),
        pages_(limits.num_pages),
        content_(limits.num_pages),
        index_(&pages_, limits.meta_tokens, limits.page_tokens),
        oracle_(limits.meta_tokens, limits.page_tokens) {}

  void RandomEvent() {
    const int kind = Uniform(0, 99);
    if (kind < 12) {
      Admit(RandomTenant(), RandomTokens());
    } else if (kind < 19) {
      Fork();
    } else if (kind < 73) {
      if (!live_.empty()) Extend(RandomLive());
    } else if (kind < 90) {
      if (!live_.empty()) Finish(RandomLive());
    } else if (kind < 92) {
      Evict();
    } else if (kind < 95) {
      Pin();
    } else if (kind < 99) {
      if (!pins_.empty()) Unpin(Uniform(0, static_cast<int>(pins_.size()) - 1));
    } else if (Uniform(0, 9) == 0) {
      index_.Clear();
      while (oracle_.Evict().has_value()) ++evictions_;
    }
  }

  void Check() {
    index_.CheckInvariants();
    // Every page has one owner, and none is lost.
    std::vector<int> owners(limits_.num_pages);
    int own = 0;
    for (const Live& sequence : live_) {
      for (size_t i = sequence.nodes.size(); i < sequence.pages.size(); ++i, ++own) {
        ++owners[static_cast<int>(sequence.pages[i])];
      }
    }
    int used = 0, pinned = 0, evictable = 0;
    for (const Oracle::Entry& entry : oracle_.entries()) {
      ++owners[static_cast<int>(entry.page)];
      if (entry.users > 0) ++used;
      if (entry.pins > 0) ++pinned;
      if (!entry.kept()) ++evictable;
    }
    for (const int count : owners) ASSERT_LE(count, 1);
    ASSERT_EQ(index_.num_nodes(), static_cast<int>(oracle_.entries().size()));
    ASSERT_EQ(pages_.num_pages() - pages_.num_free(), own + index_.num_nodes());
    ASSERT_EQ(index_.num_used(), used);
    ASSERT_EQ(index_.num_pinned(), pinned);
    ASSERT_EQ(index_.num_evictable(), evictable);
    ASSERT_EQ(index_.evictions(), evictions_);

    // Whoever holds tokens has them.
    for (const Live& sequence : live_) {
      ASSERT_EQ(Read(sequence.pages, sequence.written), First(sequence.tokens, sequence.written));
    }
    for (const Oracle::Entry& entry : oracle_.entries()) {
      const PrefixIndex::Match match = CheckedFind(entry.tenant, entry.text);
      if (entry.text.size() % limits_.page_tokens == 0) {
        ASSERT_EQ(PrefixIndex::page(match.full.back()), entry.page);
      }
      const int begin =
          (static_cast<int>(entry.text.size()) - 1) / limits_.page_tokens * limits_.page_tokens;
      ASSERT_TRUE(Begins(Tokens(entry.text.begin() + begin, entry.text.end()),
                         content_[static_cast<int>(entry.page)]));
    }
  }

  // Everything ends: nothing may be left.
  void Wind() {
    while (!live_.empty()) Finish(0);
    while (!pins_.empty()) Unpin(0);
    Check();
    while (Evict()) Check();
    ASSERT_EQ(pages_.num_free(), limits_.num_pages);
  }

  const Oracle& oracle() const { return oracle_; }
  int64_t evictions() const { return evictions_; }
  int num_copies() const { return num_copies_; }
  int num_refused() const { return num_refused_; }
  int num_shared_pages() const { return num_shared_pages_; }

 private:
  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  size_t RandomLive() { return Uniform(0, static_cast<int>(live_.size()) - 1); }
  TenantId RandomTenant() { return TenantId(Uniform(1, 2)); }
  TokenId RandomToken() { return Uniform(0, limits_.vocab_size - 1); }

  Tokens RandomTokens() {
    Tokens tokens(Uniform(0, limits_.max_tokens));
    // Long runs of one token, so that prompts agree for more than a page now and then.
    TokenId token = RandomToken();
    for (TokenId& next : tokens) next = Uniform(0, 3) == 0 ? token = RandomToken() : token;
    return tokens;
  }

  Tokens Read(std::span<const PageId> pages, int count) const {
    Tokens tokens;
    for (const PageId page : pages) {
      const Tokens& content = content_[static_cast<int>(page)];
      tokens.insert(tokens.end(), content.begin(), content.end());
    }
    tokens.resize(std::min<size_t>(tokens.size(), count));
    return tokens;
  }

  PrefixIndex::Match CheckedFind(TenantId tenant, const Tokens& tokens) {
    PrefixIndex::Match match = index_.Find(tenant, tokens);
    const int full = static_cast<int>(match.full.size()) * limits_.page_tokens;
    EXPECT_EQ(full + match.partial_tokens, oracle_.CountFound(tenant, tokens));
    EXPECT_EQ(match.partial == nullptr, match.partial_tokens == 0);
    EXPECT_LT(match.partial_tokens, limits_.page_tokens);
    std::vector<PageId> pages;
    for (const Node* node : match.full) pages.push_back(PrefixIndex::page(node));
    if (match.partial != nullptr) pages.push_back(PrefixIndex::page(match.partial));
    EXPECT_EQ(Read(pages, full + match.partial_tokens), First(tokens, full + match.partial_tokens));
    for (const PageId page : pages) EXPECT_EQ(oracle_.At(page).tenant, tenant);
    return match;
  }

  void Acquire(Node* node) {
    index_.Acquire(node);
    oracle_.Acquire(PrefixIndex::page(node));
  }

  void Release(Node* node) {
    const PageId page = PrefixIndex::page(node);  // the node may go
    index_.Release(node);
    oracle_.Release(page);
  }

  bool Evict() {
    const std::optional<PageId> expected = oracle_.Evict();
    const bool evicted = index_.Evict();
    EXPECT_EQ(evicted, expected.has_value());
    if (!evicted) return false;
    ++evictions_;
    // The page freed last is handed out first.
    const std::vector<PageId> freed = *pages_.Allocate(1);
    EXPECT_EQ(freed.front(), *expected);
    pages_.Free(freed);
    return true;
  }

  // Takes a page for the sequence. False: all are kept.
  bool AddPage(Live& sequence) {
    if (pages_.num_free() == 0 && !Evict()) return false;
    sequence.pages.push_back(pages_.Allocate(1)->front());
    content_[static_cast<int>(sequence.pages.back())].clear();
    return true;
  }

  void Admit(TenantId tenant, Tokens tokens) {
    const PrefixIndex::Match match = CheckedFind(tenant, tokens);
    Live sequence;
    sequence.tenant = tenant;
    // Half of them generate what may not be shared.
    sequence.shareable = Uniform(0, 1) == 0 ? static_cast<int>(tokens.size()) : limits_.max_tokens;
    sequence.tokens = std::move(tokens);
    for (Node* node : match.full) {
      Acquire(node);
      sequence.nodes.push_back(node);
      sequence.pages.push_back(PrefixIndex::page(node));
      ++num_shared_pages_;
    }
    sequence.written = static_cast<int>(match.full.size()) * limits_.page_tokens;
    if (match.partial != nullptr) {
      Acquire(match.partial);
      sequence.copy_source = match.partial;
      if (!AddPage(sequence)) {
        ++num_refused_;
        return End(sequence);
      }
      const Tokens& from = content_[static_cast<int>(PrefixIndex::page(match.partial))];
      content_[static_cast<int>(sequence.pages.back())] = First(from, match.partial_tokens);
      sequence.written += match.partial_tokens;
      ++num_copies_;
    }
    live_.push_back(std::move(sequence));
  }

  // A sequence that begins like another one, up to somewhere.
  void Fork() {
    if (live_.empty()) return;
    const Live& from = live_[RandomLive()];
    Tokens tokens = First(from.tokens, Uniform(0, static_cast<int>(from.tokens.size())));
    while (static_cast<int>(tokens.size()) < limits_.max_tokens && Uniform(0, 2) > 0) {
      tokens.push_back(RandomToken());
    }
    Admit(from.tenant, std::move(tokens));
  }

  // A step: the sequence prefills or generates some meta-contexts and shares what it may.
  void Extend(size_t which) {
    Live& sequence = live_[which];
    const int meta_tokens = limits_.meta_tokens, page_tokens = limits_.page_tokens;
    for (int count = Uniform(1, 3); count > 0; --count) {
      if (sequence.written + meta_tokens > limits_.max_tokens) break;
      while (static_cast<int>(sequence.tokens.size()) < sequence.written + meta_tokens) {
        sequence.tokens.push_back(RandomToken());
      }
      if (static_cast<int>(sequence.pages.size()) * page_tokens == sequence.written &&
          !AddPage(sequence)) {
        ++num_refused_;
        return Finish(which);
      }
      const auto first = sequence.tokens.begin() + sequence.written;
      Tokens& page = content_[static_cast<int>(sequence.pages.back())];
      page.resize(sequence.written % page_tokens);
      page.insert(page.end(), first, first + meta_tokens);
      sequence.written += meta_tokens;
    }
    if (Uniform(0, 3) > 0) Share(sequence);  // or later, when more is written
    // Long before or after the tokens are shared: when the copy is done is the engine's affair.
    if (sequence.copy_source != nullptr && Uniform(0, 2) == 0) {
      Release(sequence.copy_source);
      sequence.copy_source = nullptr;
    }
  }

  void Share(Live& sequence) {
    const int page_tokens = limits_.page_tokens;
    int shared = 0;
    if (!sequence.nodes.empty()) {
      shared = static_cast<int>(sequence.nodes.size() - 1) * page_tokens +
               PrefixIndex::num_tokens(sequence.nodes.back());
    }
    const int shareable =
        std::min(sequence.written, sequence.shareable) / limits_.meta_tokens * limits_.meta_tokens;
    while (shared < shareable) {
      const size_t page = shared / page_tokens;
      const int end = std::min(shareable, static_cast<int>(page + 1) * page_tokens);
      const Tokens text = First(sequence.tokens, end);
      const std::span<const TokenId> tokens = std::span(text).subspan(shared);
      PageId expected{};
      if (page == sequence.nodes.size()) {
        Node* const parent = sequence.nodes.empty() ? nullptr : sequence.nodes.back();
        expected = oracle_.Insert(sequence.tenant, text, sequence.pages[page]);
        sequence.nodes.push_back(
            index_.Insert(sequence.tenant, parent, sequence.pages[page], tokens));
      } else {
        expected = oracle_.Append(sequence.pages[page], text);
        sequence.nodes.back() = index_.Append(sequence.nodes.back(), tokens);
      }
      sequence.pages[page] = PrefixIndex::page(sequence.nodes.back());
      EXPECT_EQ(sequence.pages[page], expected);
      shared = end;
    }
  }

  void Finish(size_t which) {
    Live sequence = std::move(live_[which]);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(which));
    End(sequence);
  }

  void End(Live& sequence) {
    if (sequence.copy_source != nullptr) Release(sequence.copy_source);
    pages_.Free(std::span(sequence.pages).subspan(sequence.nodes.size()));
    while (!sequence.nodes.empty()) {
      Release(sequence.nodes.back());
      sequence.nodes.pop_back();
    }
  }

  // Pins what a sequence has shared, or what is cached of some text.
  void Pin() {
    if (pins_.size() >= 3) return;
    Node* node = nullptr;
    if (!live_.empty() && Uniform(0, 1) == 0) {
      const Live& sequence = live_[RandomLive()];
      if (!sequence.nodes.empty()) node = sequence.nodes.back();
    } else {
      const PrefixIndex::Match match = CheckedFind(RandomTenant(), RandomTokens());
      if (!match.full.empty()) node = match.full.back();
      if (match.partial != nullptr) node = match.partial;
    }
    if (node == nullptr) return;
    oracle_.Pin(PrefixIndex::page(node));
    index_.Pin(node);
    pins_.push_back(node);
  }

  void Unpin(int which) {
    Node* const node = pins_[which];
    pins_.erase(pins_.begin() + which);
    oracle_.Unpin(PrefixIndex::page(node));
    index_.Unpin(node);
  }

  std::mt19937 random_;
  const Limits limits_;
  PageAllocator pages_;
  std::vector<Tokens> content_;  // by page: what is written there
  PrefixIndex index_;
  Oracle oracle_;
  std::vector<Live> live_;
  std::vector<Node*> pins_;
  int64_t evictions_ = 0;
  int num_copies_ = 0;
  int num_refused_ = 0;
  int num_shared_pages_ = 0;
};

TEST(PoolOracle, EveryEventDoesWhatAFlatListOfTokensSays) {
  constexpr int kEvents = 20'000;
  const Simulation::Limits limits[] = {
      {.meta_tokens = 1, .page_tokens = 1, .num_pages = 16, .vocab_size = 2, .max_tokens = 6},
      {.meta_tokens = 1, .page_tokens = 3, .num_pages = 16, .vocab_size = 2, .max_tokens = 10},
      {.meta_tokens = 1, .page_tokens = 2, .num_pages = 30, .vocab_size = 2, .max_tokens = 12},
      {.meta_tokens = 2, .page_tokens = 4, .num_pages = 14, .vocab_size = 2, .max_tokens = 15},
      {.meta_tokens = 2, .page_tokens = 6, .num_pages = 24, .vocab_size = 3, .max_tokens = 30},
      {.meta_tokens = 3, .page_tokens = 9, .num_pages = 8, .vocab_size = 1, .max_tokens = 27},
      {.meta_tokens = 1, .page_tokens = 4, .num_pages = 60, .vocab_size = 2, .max_tokens = 16},
      {.meta_tokens = 4, .page_tokens = 4, .num_pages = 20, .vocab_size = 2, .max_tokens = 24},
      {.meta_tokens = 1, .page_tokens = 8, .num_pages = 6, .vocab_size = 2, .max_tokens = 17},
      {.meta_tokens = 1, .page_tokens = 3, .num_pages = 100, .vocab_size = 2, .max_tokens = 12},
  };
  int64_t evictions = 0;
  int copies = 0, refused = 0, shared_pages = 0, dominated = 0, adopted = 0, merged = 0;
  uint32_t seed = 0;
  for (const Simulation::Limits& limit : limits) {
    SCOPED_TRACE(::testing::Message() << "seed " << ++seed);
    Simulation simulation(seed, limit);
    for (int event = 0; event < kEvents; ++event) {
      simulation.RandomEvent();
      simulation.Check();
      ASSERT_FALSE(::testing::Test::HasFailure()) << "event " << event;
    }
    simulation.Wind();
    evictions += simulation.evictions();
    copies += simulation.num_copies();
    refused += simulation.num_refused();
    shared_pages += simulation.num_shared_pages();
    dominated += simulation.oracle().num_dominated();
    adopted += simulation.oracle().num_adopted();
    merged += simulation.oracle().num_merged();
  }
  // Each of these is worth nothing if it hardly ever happens.
  EXPECT_GT(evictions, 20'000);
  EXPECT_GT(copies, 8000);
  EXPECT_GT(refused, 3000);
  EXPECT_GT(shared_pages, 15'000);
  EXPECT_GT(dominated, 2000);
  EXPECT_GT(adopted, 1500);
  EXPECT_GT(merged, 300);
}

}  // namespace
}  // namespace photon
