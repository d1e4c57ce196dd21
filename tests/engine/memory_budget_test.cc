#include "engine/memory_budget.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

int64_t ParsedBytes(std::string_view text) {
  const auto budget = MemoryBudget::Parse(text);
  EXPECT_TRUE(budget.ok()) << budget.status().ToString();
  if (!budget.ok()) return -1;
  EXPECT_FALSE(budget->is_share()) << text;
  return budget->Resolve(12345);
}

TEST(MemoryBudget, BytesComeWithAnyUnit) {
  EXPECT_EQ(ParsedBytes("1"), 1);
  EXPECT_EQ(ParsedBytes("1073741824"), int64_t{1} << 30);
  EXPECT_EQ(ParsedBytes("7b"), 7);
  EXPECT_EQ(ParsedBytes("3k"), 3 << 10);
  EXPECT_EQ(ParsedBytes("3KB"), 3 << 10);
  EXPECT_EQ(ParsedBytes("512MiB"), 512 << 20);
  EXPECT_EQ(ParsedBytes("512 MiB"), 512 << 20);
  EXPECT_EQ(ParsedBytes("1.5g"), 3 << 29);
  EXPECT_EQ(ParsedBytes("2TiB"), int64_t{2} << 40);
}

TEST(MemoryBudget, ASharePartsWhatIsFree) {
  const auto budget = MemoryBudget::Parse("60%");
  ASSERT_TRUE(budget.ok());
  EXPECT_TRUE(budget->is_share());
  EXPECT_EQ(budget->Resolve(1000), 600);
  EXPECT_EQ(*MemoryBudget::Parse("12.5 %"), MemoryBudget::ShareOfFree(0.125));
  EXPECT_EQ(MemoryBudget::Parse("100%")->Resolve(1000), 1000);
}

TEST(MemoryBudget, WhatMakesNoSenseIsRefusedWithItsReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "is no number"},
      {"GiB", "is no number"},
      {"nan", "is no number"},
      {"inf%", "is no number"},
      {"0", "less than a byte"},
      {"-1g", "less than a byte"},
      {"0.1", "less than a byte"},
      {"12x", "unknown unit \"x\""},
      {"12mbit", "unknown unit \"mbit\""},
      {"12 3", "unknown unit \"3\""},
      {"1e3", "unknown unit \"e3\""},
      {"0%", "not above 0%"},
      {"-5%", "not above 0%"},
      {"100.5%", "up to 100%"},
      {"9999999999T", "more than any machine has"},
  };
  for (const auto& [text, reason] : cases) {
    const absl::Status status = MemoryBudget::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason)) << text;
  }
}

TEST(MemoryBudget, ItSaysWhatItIs) {
  EXPECT_EQ(MemoryBudget::Bytes(1024).ToString(), "1024 bytes");
  EXPECT_EQ(MemoryBudget::ShareOfFree(0.25).ToString(), "25% of what is free");
}

TEST(MemoryBudget, PartsTakenOneAfterTheOtherAreEqual) {
  for (const double share : {0.001, 0.4, 1.0}) {
    const int64_t free_bytes = 1'000'000'000;
    int64_t left = free_bytes;
    for (int i = 0; i < 3; ++i) {
      const MemoryBudget part = MemoryBudget::ShareOfFree(share).Part(i, 3);
      EXPECT_TRUE(part.is_valid());
      EXPECT_NEAR(static_cast<double>(part.Resolve(left)), share * free_bytes / 3, 10);
      left -= part.Resolve(left);
    }
  }
  EXPECT_EQ(MemoryBudget::Bytes(900).Part(2, 3), MemoryBudget::Bytes(300));
}

TEST(MemoryBudget, OnlyPositiveAmountsAreValid) {
  EXPECT_TRUE(MemoryBudget::Bytes(1).is_valid());
  EXPECT_FALSE(MemoryBudget::Bytes(0).is_valid());
  EXPECT_FALSE(MemoryBudget::Bytes(-1).is_valid());
  EXPECT_TRUE(MemoryBudget::ShareOfFree(1).is_valid());
  EXPECT_FALSE(MemoryBudget::ShareOfFree(1.01).is_valid());
  EXPECT_FALSE(MemoryBudget::ShareOfFree(-0.5).is_valid());
}

}  // namespace
}  // namespace photon
