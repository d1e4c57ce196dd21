#include "scheduler/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "scheduler/page_allocator.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kMetaTokens = 2;
constexpr int kPageTokens = 6;
constexpr TenantId kTenant{1};
constexpr TenantId kStranger{2};

// A letter stands for a meta-context, so three letters are a full page.
std::vector<TokenId> Tokens(std::string_view letters) {
  std::vector<TokenId> tokens;
  for (const char letter : letters) {
    tokens.push_back(letter);
    tokens.push_back(letter + 1000);
  }
  return tokens;
}

class PrefixIndexTest : public ::testing::Test {
 protected:
  using Node = PrefixIndex::Node;

  ~PrefixIndexTest() override { index_.CheckInvariants(); }

  PageId NewPage() { return pages_.Allocate(1).value().front(); }

  Node* Insert(Node* parent, std::string_view letters, TenantId tenant = kTenant) {
    Node* const node = index_.Insert(tenant, parent, NewPage(), Tokens(letters));
    index_.CheckInvariants();
    return node;
  }

  Node* Append(Node* node, std::string_view letters) {
    Node* const appended = index_.Append(node, Tokens(letters));
    index_.CheckInvariants();
    return appended;
  }

  // What a sequence of these tokens does that shares no page with what is there.
  std::vector<Node*> InsertPath(std::string_view letters, TenantId tenant = kTenant) {
    std::vector<Node*> path;
    for (size_t i = 0; i < letters.size(); i += 3) {
      path.push_back(Insert(path.empty() ? nullptr : path.back(), letters.substr(i, 3), tenant));
    }
    return path;
  }

  void Acquire(const std::vector<Node*>& path) {
    for (Node* node : path) index_.Acquire(node);
    index_.CheckInvariants();
  }

  void Release(const std::vector<Node*>& path) {
    for (size_t i = path.size(); i-- > 0;) index_.Release(path[i]);
    index_.CheckInvariants();
  }

  PrefixIndex::Match Find(std::string_view letters, TenantId tenant = kTenant) {
    return index_.Find(tenant, Tokens(letters));
  }

  // Meta-contexts of these that the index holds.
  int NumFound(std::string_view letters, TenantId tenant = kTenant) {
    const PrefixIndex::Match match = Find(letters, tenant);
    return (static_cast<int>(match.full.size()) * kPageTokens + match.partial_tokens) / kMetaTokens;
  }

  bool Evict() {
    const bool evicted = index_.Evict();
    index_.CheckInvariants();
    return evicted;
  }

  int PagesTaken() const { return pages_.num_pages() - pages_.num_free(); }

  PageAllocator pages_{64};
  PrefixIndex index_{&pages_, kMetaTokens, kPageTokens};
};

TEST_F(PrefixIndexTest, AnEmptyIndexFindsNothing) {
  const PrefixIndex::Match match = Find("abcdef");
  EXPECT_THAT(match.full, IsEmpty());
  EXPECT_EQ(match.partial, nullptr);
  EXPECT_EQ(match.partial_tokens, 0);
}

TEST_F(PrefixIndexTest, FindsFullPagesAndThePageInWhichAPromptParts) {
  const std::vector<Node*> path = InsertPath("abcdefghi");
  const PrefixIndex::Match same = Find("abcdefghi");
  EXPECT_EQ(same.full, path);
  EXPECT_EQ(same.partial, nullptr);

  const PrefixIndex::Match parts = Find("abcdeXghi");
  EXPECT_THAT(parts.full, ElementsAre(path[0]));
  EXPECT_EQ(parts.partial, path[1]);
  EXPECT_EQ(parts.partial_tokens, 2 * kMetaTokens);
}

TEST_F(PrefixIndexTest, AMatchKnowsItsPagesAndTheirTokens) {
  const PageId first = NewPage(), second = NewPage();
  Node* const full = index_.Insert(kTenant, nullptr, first, Tokens("abc"));
  Node* const partial = index_.Insert(kTenant, full, second, Tokens("d"));
  EXPECT_EQ(PrefixIndex::page(full), first);
  EXPECT_EQ(PrefixIndex::num_tokens(full), kPageTokens);
  EXPECT_EQ(PrefixIndex::page(partial), second);
  EXPECT_EQ(PrefixIndex::num_tokens(partial), kMetaTokens);
}

TEST_F(PrefixIndexTest, APromptThatEndsInsideAPageMatchesItInPart) {
  const std::vector<Node*> path = InsertPath("abcdef");
  const PrefixIndex::Match match = Find("abcd");
  EXPECT_THAT(match.full, ElementsAre(path[0]));
  EXPECT_EQ(match.partial, path[1]);
  EXPECT_EQ(match.partial_tokens, kMetaTokens);
}

TEST_F(PrefixIndexTest, APromptThatGoesOnBeyondAPartialPageMatchesAllOfIt) {
  const std::vector<Node*> path = InsertPath("abcd");
  const PrefixIndex::Match match = Find("abcdefghi");
  EXPECT_THAT(match.full, ElementsAre(path[0]));
  EXPECT_EQ(match.partial, path[1]);
  EXPECT_EQ(match.partial_tokens, kMetaTokens);
}

TEST_F(PrefixIndexTest, OnlyWholeMetaContextsMatch) {
  InsertPath("abc");
  std::vector<TokenId> tokens = Tokens("ab");
  tokens.pop_back();  // half of "b"
  EXPECT_EQ(index_.Find(kTenant, tokens).partial_tokens, kMetaTokens);
  tokens.push_back(7);  // not "b", though it begins like it
  EXPECT_EQ(index_.Find(kTenant, tokens).partial_tokens, kMetaTokens);
  tokens.resize(kMetaTokens - 1);
  EXPECT_EQ(index_.Find(kTenant, tokens).partial, nullptr);
  EXPECT_EQ(index_.Find(kTenant, {}).partial, nullptr);
}

TEST_F(PrefixIndexTest, OfManySiblingsThatBeginAlikeTheOneThatAgreesLongestIsFound) {
  const std::vector<Node*> path = InsertPath("abc");
  // One prompt, many samples: all begin with "d", and 26 groups part after it.
  for (char second = 'A'; second <= 'Z'; ++second) {
    for (const char third : {'A', 'B'}) {
      const char letters[] = {'d', second, third, 0};
      Insert(path[0], letters);
    }
  }
  Node* const wanted = Find("abcdMA").full[1];
  EXPECT_EQ(Find("abcdMA").full, (std::vector<Node*>{path[0], wanted}));
  EXPECT_EQ(NumFound("abcdMB"), 6);
  EXPECT_EQ(NumFound("abcdMC"), 5);
  EXPECT_EQ(NumFound("abcd_C"), 4);
  EXPECT_EQ(NumFound("abc_MA"), 3);
}

TEST_F(PrefixIndexTest, TokensOfAnySizeAndSignAreToldApart) {
  // The order of siblings is that of bytes; what is found must not depend on it.
  const std::vector<TokenId> all = {0, 1, 255, 256, 257, 65536, 1 << 24, (1 << 24) + 1, -1, -256};
  std::vector<Node*> nodes;
  for (const TokenId a : all) {
    nodes.push_back(
        index_.Insert(kTenant, nullptr, NewPage(), std::vector<TokenId>{a, 5, 6, 7, 8, 9}));
  }
  index_.CheckInvariants();
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_THAT(index_.Find(kTenant, std::vector<TokenId>{all[i], 5, 6, 7, 8, 9}).full,
                ElementsAre(nodes[i]));
    const auto match = index_.Find(kTenant, std::vector<TokenId>{all[i], 5, 6, 7, 8, 10});
    EXPECT_EQ(match.partial, nodes[i]);
    EXPECT_EQ(match.partial_tokens, 2 * kMetaTokens);
  }
}

TEST_F(PrefixIndexTest, TenantsNeverShare) {
  const std::vector<Node*> mine = InsertPath("abcde");
  EXPECT_EQ(NumFound("abcde", kStranger), 0);
  const std::vector<Node*> theirs = InsertPath("abcde", kStranger);
  EXPECT_EQ(Find("abcde").full, (std::vector<Node*>{mine[0]}));
  EXPECT_EQ(Find("abcde", kStranger).full, (std::vector<Node*>{theirs[0]}));
  EXPECT_EQ(index_.num_nodes(), 4);

  Release(mine);
  index_.Clear();
  EXPECT_EQ(NumFound("abcde"), 0);
  EXPECT_EQ(NumFound("abcde", kStranger), 5);
}

TEST_F(PrefixIndexTest, AppendedTokensAreFound) {
  Node* const node = Insert(nullptr, "a");
  EXPECT_EQ(NumFound("abc"), 1);
  EXPECT_EQ(Append(node, "b"), node);
  EXPECT_EQ(NumFound("abc"), 2);
  EXPECT_EQ(Append(node, "c"), node);
  EXPECT_THAT(Find("abc").full, ElementsAre(node));
  EXPECT_EQ(Append(node, ""), node);
}

TEST_F(PrefixIndexTest, ANodeThatGrowsKeepsItsPlaceAmongItsSiblings) {
  Node* const growing = Insert(nullptr, "a");
  Insert(nullptr, "ab");
  Insert(nullptr, "az");
  Append(growing, "m");
  EXPECT_EQ(Find("am").partial, growing);
  EXPECT_EQ(NumFound("ab"), 2);
  EXPECT_EQ(NumFound("az"), 2);
}

TEST_F(PrefixIndexTest, InsertingAFullPageThatASiblingHoldsReturnsTheSiblingAndFreesThePage) {
  Node* const first = Insert(nullptr, "abc");
  const int taken = PagesTaken();
  EXPECT_EQ(Insert(nullptr, "abc"), first);
  EXPECT_EQ(PagesTaken(), taken);
  EXPECT_EQ(index_.num_nodes(), 1);
  // Both are users of it now.
  index_.Release(first);
  EXPECT_EQ(index_.num_used(), 1);
  EXPECT_FALSE(Evict());
  index_.Release(first);
  EXPECT_TRUE(Evict());
}

TEST_F(PrefixIndexTest, FillingAPageThatASiblingHoldsReturnsTheSiblingAndFreesThePage) {
  Node* const first = Insert(nullptr, "ab");
  Node* const second = Insert(nullptr, "ab");
  EXPECT_EQ(Append(first, "c"), first);
  EXPECT_EQ(PagesTaken(), 2);
  EXPECT_EQ(Append(second, "c"), first);
  EXPECT_EQ(PagesTaken(), 1);
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(index_.num_used(), 1);
}

TEST_F(PrefixIndexTest, APageThatOthersReadOutlivesTheMoveOfItsWriterToASibling) {
  Node* const sibling = Insert(nullptr, "abc");
  Node* const written = Insert(nullptr, "ab");
  index_.Acquire(written);  // as the source of a copy
  EXPECT_EQ(Append(written, "c"), sibling);
  EXPECT_EQ(index_.num_nodes(), 2);
  EXPECT_EQ(PrefixIndex::num_tokens(written), 2 * kMetaTokens);
  index_.Release(written);  // the copy is done
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(PagesTaken(), 1);
}

TEST_F(PrefixIndexTest, AFullPageTakesOverWhatFollowsASiblingThatNobodyKeeps) {
  const std::vector<Node*> old = InsertPath("abcdefgh");
  Release(old);
  Node* const inserted = Insert(nullptr, "abc");
  EXPECT_NE(inserted, old[0]);
  EXPECT_EQ(Find("abcdefgh").full, (std::vector<Node*>{inserted, old[1]}));
  EXPECT_EQ(NumFound("abcdefgh"), 8);
  EXPECT_EQ(PagesTaken(), 3);

  Node* const written = Insert(inserted, "de");
  EXPECT_EQ(Append(written, "f"), written);
  EXPECT_EQ(Find("abcdefgh").full, (std::vector<Node*>{inserted, written}));
  EXPECT_EQ(NumFound("abcdefgh"), 8);
  EXPECT_EQ(PagesTaken(), 3);
  Release({inserted, written});
  index_.Clear();
  EXPECT_EQ(PagesTaken(), 0);
}

TEST_F(PrefixIndexTest, FillingAPageNeverTakesAnEvictableOneAway) {
  // Memory may be promised against what can be evicted, so sharing must not use it up.
  Release({Insert(nullptr, "abc")});
  Node* const written = Insert(nullptr, "ab");
  index_.Acquire(written);
  const int available = pages_.num_free() + index_.num_evictable();
  Append(written, "c");
  EXPECT_EQ(pages_.num_free() + index_.num_evictable(), available);
}

TEST_F(PrefixIndexTest, APageThatHoldsTheBeginningOfASiblingGoesWithItsLastUser) {
  Node* const longer = Insert(nullptr, "abc");
  Node* const shorter = Insert(nullptr, "ab");
  index_.Release(shorter);
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(PagesTaken(), 1);
  EXPECT_THAT(Find("abc").full, ElementsAre(longer));
  EXPECT_EQ(index_.evictions(), 0);
}

TEST_F(PrefixIndexTest, OfEqualPagesTheFirstReleasedGoes) {
  for (const int which : {0, 1}) {
    Node* const nodes[] = {Insert(nullptr, "ab"), Insert(nullptr, "ab")};
    EXPECT_EQ(PagesTaken(), 2);
    Node* const first = nodes[which];
    Node* const second = nodes[1 - which];
    Release({first});
    EXPECT_EQ(Find("ab").partial, second);
    EXPECT_EQ(PagesTaken(), 1);
    Release({second});
    EXPECT_EQ(Find("ab").partial, second);
    index_.Clear();
  }
}

TEST_F(PrefixIndexTest, ACachedPageGoesWhenASiblingComesToHoldItsTokens) {
  Release({Insert(nullptr, "ab")});
  Node* const node = Insert(nullptr, "a");
  EXPECT_EQ(index_.num_nodes(), 2);
  Append(node, "b");
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(Find("ab").partial, node);
  Release({node});
  Insert(nullptr, "abc");
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(PagesTaken(), 1);
}

TEST_F(PrefixIndexTest, PagesThatPartFromTheirSiblingsStay) {
  Node* const node = Insert(nullptr, "ab");
  Insert(nullptr, "ac");
  index_.Release(node);
  EXPECT_EQ(NumFound("ab"), 2);
  EXPECT_EQ(index_.num_evictable(), 1);
}

TEST_F(PrefixIndexTest, EvictsTheLeastRecentlyUsedFirst) {
  for (const std::string_view letters : {"abc", "def", "ghi"}) InsertPath(letters);
  for (const std::string_view letters : {"def", "abc", "ghi"}) Release(Find(letters).full);
  const std::vector<Node*> again = Find("def").full;
  Acquire(again);
  Release(again);
  for (const std::string_view next : {"abc", "ghi", "def"}) {
    EXPECT_EQ(NumFound(next), 3);
    EXPECT_TRUE(Evict());
    EXPECT_EQ(NumFound(next), 0) << next;
  }
  EXPECT_FALSE(Evict());
  EXPECT_EQ(index_.evictions(), 3);
  EXPECT_EQ(PagesTaken(), 0);
}

TEST_F(PrefixIndexTest, FindingAloneUsesNothing) {
  Release(InsertPath("abc"));
  Release(InsertPath("def"));
  EXPECT_EQ(NumFound("abc"), 3);
  EXPECT_TRUE(Evict());
  EXPECT_EQ(NumFound("abc"), 0);
}

TEST_F(PrefixIndexTest, APathIsEvictedFromItsEnd) {
  Release(InsertPath("abcdefgh"));
  for (const int left : {6, 3, 0}) {
    EXPECT_TRUE(Evict());
    EXPECT_EQ(NumFound("abcdefgh"), left);
  }
}

TEST_F(PrefixIndexTest, UsersKeepTheirPath) {
  const std::vector<Node*> path = InsertPath("abcdefghi");
  Acquire({path[0], path[1]});
  Release(path);
  EXPECT_EQ(index_.num_used(), 2);
  EXPECT_EQ(index_.num_evictable(), 1);
  index_.Clear();
  EXPECT_EQ(Find("abcdefghi").full, (std::vector<Node*>{path[0], path[1]}));
  Release({path[0], path[1]});
  index_.Clear();
  EXPECT_EQ(index_.num_nodes(), 0);
  EXPECT_EQ(PagesTaken(), 0);
}

TEST_F(PrefixIndexTest, APinKeepsThePathToIt) {
  const std::vector<Node*> path = InsertPath("abcdefg");
  index_.Pin(path[1]);
  Release(path);
  EXPECT_EQ(index_.num_pinned(), 2);
  EXPECT_EQ(index_.num_used(), 0);
  index_.Clear();
  EXPECT_EQ(Find("abcdefg").full, (std::vector<Node*>{path[0], path[1]}));
  EXPECT_EQ(index_.num_nodes(), 2);
  index_.Unpin(path[1]);
  EXPECT_EQ(index_.num_pinned(), 0);
  EXPECT_EQ(index_.num_evictable(), 2);
  index_.Clear();
  EXPECT_EQ(PagesTaken(), 0);
}

TEST_F(PrefixIndexTest, PinsCount) {
  const std::vector<Node*> path = InsertPath("abcde");
  index_.Pin(path[1]);
  index_.Pin(path[0]);
  index_.Pin(path[1]);
  Release(path);
  index_.Unpin(path[1]);
  index_.Clear();
  EXPECT_EQ(NumFound("abcde"), 5);
  index_.Unpin(path[1]);
  index_.Clear();
  EXPECT_EQ(NumFound("abcde"), 3);
  index_.Unpin(path[0]);
  index_.Clear();
  EXPECT_EQ(NumFound("abcde"), 0);
}

TEST_F(PrefixIndexTest, WhatIsCachedCanBePinned) {
  const std::vector<Node*> path = InsertPath("abcdef");
  Release(path);
  index_.Pin(path[1]);
  index_.CheckInvariants();
  EXPECT_FALSE(Evict());
  index_.Unpin(path[1]);
  EXPECT_TRUE(Evict());
}

TEST_F(PrefixIndexTest, APinnedPageThatASiblingDominatesGoesWhenItIsUnpinned) {
  Node* const shorter = Insert(nullptr, "ab");
  index_.Pin(shorter);
  index_.Release(shorter);
  Insert(nullptr, "abc");
  EXPECT_EQ(index_.num_nodes(), 2);
  index_.Unpin(shorter);
  EXPECT_EQ(index_.num_nodes(), 1);
  EXPECT_EQ(PagesTaken(), 1);
}

TEST_F(PrefixIndexTest, AVeryLongPathIsFoundEvictedAndDestroyed) {
  constexpr int kPages = 100'000;
  PageAllocator pages(2 * kPages);
  {
    PrefixIndex index(&pages, 1, 1);
    const std::vector<TokenId> tokens(kPages, 3);
    for (int copy = 0; copy < 2; ++copy) {
      Node* node = nullptr;
      for (int i = 0; i < kPages; ++i) {
        const PageId page = pages.Allocate(1)->front();
        node = index.Insert(TenantId(copy), node, page, std::span(tokens).first(1));
      }
    }
    std::vector<Node*> path = index.Find(TenantId{0}, tokens).full;
    ASSERT_EQ(path.size(), size_t{kPages});
    while (!path.empty()) {
      index.Release(path.back());
      path.pop_back();
    }
    index.Clear();
    EXPECT_EQ(pages.num_free(), kPages);
  }
  EXPECT_EQ(pages.num_free(), 2 * kPages);
}

using PrefixIndexDeathTest = PrefixIndexTest;

TEST_F(PrefixIndexDeathTest, AbortsOnMisuse) {
  Node* const full = Insert(nullptr, "abc");
  Node* const child = Insert(full, "d");
  EXPECT_DEATH(index_.Insert(kTenant, child, PageId{40}, Tokens("e")), "not full and in use");
  EXPECT_DEATH(index_.Insert(kStranger, full, PageId{40}, Tokens("e")), "by this tenant");
  EXPECT_DEATH(index_.Insert(kTenant, full, PrefixIndex::page(child), Tokens("e")),
               "already holds the page");
  EXPECT_DEATH(index_.Insert(kTenant, full, PageId{40}, std::vector<TokenId>{1}), "whole meta");
  EXPECT_DEATH(index_.Insert(kTenant, full, PageId{40}, {}), "whole meta");
  EXPECT_DEATH(index_.Append(child, Tokens("efg")), "within the page");
  EXPECT_DEATH(index_.Unpin(child), "not pinned");
  index_.Release(child);
  EXPECT_DEATH(index_.Append(child, Tokens("e")), "not in use");
  EXPECT_DEATH(index_.Release(child), "not in use");
  index_.Release(full);
  EXPECT_DEATH(index_.Acquire(child), "parent is not in use");
}

TEST_F(PrefixIndexDeathTest, AbortsRatherThanEvictAPathWhoseEndIsInUse) {
  const std::vector<Node*> path = InsertPath("abcd");
  EXPECT_DEATH(
      {
        index_.Release(path[0]);
        index_.Evict();
      },
      "not released from its end");
}

}  // namespace
}  // namespace photon
