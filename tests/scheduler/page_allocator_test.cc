#include "scheduler/page_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace photon {
namespace {

TEST(PageAllocator, HandsOutEveryPageOnce) {
  PageAllocator allocator(5);
  std::set<PageId> seen;
  for (int count : {2, 0, 3}) {
    const auto pages = allocator.Allocate(count);
    ASSERT_TRUE(pages.has_value());
    EXPECT_EQ(static_cast<int>(pages->size()), count);
    for (PageId page : *pages) {
      EXPECT_TRUE(seen.insert(page).second);
      EXPECT_GE(static_cast<int>(page), 0);
      EXPECT_LT(static_cast<int>(page), 5);
    }
  }
  EXPECT_EQ(allocator.num_free(), 0);
}

TEST(PageAllocator, GivesNothingRatherThanTooLittle) {
  PageAllocator allocator(4);
  ASSERT_TRUE(allocator.Allocate(3).has_value());
  EXPECT_FALSE(allocator.Allocate(2).has_value());
  EXPECT_EQ(allocator.num_free(), 1);
  EXPECT_TRUE(allocator.Allocate(1).has_value());
}

TEST(PageAllocator, ReusesFreedPages) {
  PageAllocator allocator(2);
  const auto first = allocator.Allocate(2);
  allocator.Free(*first);
  EXPECT_EQ(allocator.num_free(), 2);
  const auto second = allocator.Allocate(2);
  ASSERT_TRUE(second.has_value());
  EXPECT_THAT(*second, ::testing::UnorderedElementsAreArray(*first));
}

TEST(PageAllocatorDeathTest, AbortsOnADoubleFree) {
  PageAllocator allocator(2);
  const auto pages = allocator.Allocate(1);
  allocator.Free(*pages);
  EXPECT_DEATH(allocator.Free(*pages), "is not owned");
  const PageId unknown[] = {PageId{7}};
  EXPECT_DEATH(allocator.Free(unknown), "page 7 is not owned");
}

}  // namespace
}  // namespace photon
