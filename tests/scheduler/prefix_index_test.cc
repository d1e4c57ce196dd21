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

}  // namespace
}  // namespace photon
