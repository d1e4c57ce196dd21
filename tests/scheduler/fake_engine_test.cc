// The fake engine is what other tests trust: each mistake that it must find.
#include "tests/scheduler/fake_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>
#include <utility>
#include <vector>

namespace photon {
namespace {

using ::testing::HasSubstr;

// Meta-contexts of 4 tokens, pages of 8.
class FakeEngineTest : public ::testing::Test {
 protected:
  class IgnoreTokens : public TokenSink {
   public:
    bool OnTokens(int, std::span<const SampledToken>) override { return true; }
  };

  Row MakeRow(int cached, std::vector<TokenId> input, std::vector<int> pages, bool decode = true) {
    inputs_.push_back(std::make_unique<std::vector<TokenId>>(std::move(input)));
    pages_.push_back(std::make_unique<std::vector<PageId>>());
    for (int page : pages) pages_.back()->push_back(PageId{page});
    Row row;
    row.cached_tokens = cached;
    row.input = *inputs_.back();
    row.pages = *pages_.back();
    row.decode = decode;
    return row;
  }

  std::string Error(std::vector<Row> rows, std::vector<PageCopy> copies = {}) {
    IgnoreTokens sink;
    return std::string(engine_.Step(copies, rows, sink).message());
  }

  FakeEngine engine_;
  std::vector<std::unique_ptr<std::vector<TokenId>>> inputs_;
  std::vector<std::unique_ptr<std::vector<PageId>>> pages_;
};

TEST_F(FakeEngineTest, RefusesReadsOfWhatWasNotWritten) {
  EXPECT_EQ(Error({MakeRow(0, {1, 2, 3, 4}, {0}, false)}), "");
  EXPECT_EQ(Error({MakeRow(4, {}, {0})}), "");
  EXPECT_THAT(Error({MakeRow(8, {}, {1, 2})}), HasSubstr("page 1, which holds 0"));
}

TEST_F(FakeEngineTest, RefusesATopStateThatThePageNoLongerHas) {
  EXPECT_EQ(Error({MakeRow(0, {1, 2, 3, 4, 5, 6, 7, 8}, {0}, false)}), "");
  EXPECT_THAT(Error({MakeRow(4, {}, {0})}), HasSubstr("whose top state is that of token 8"));
  EXPECT_EQ(Error({MakeRow(4, {5, 6, 7, 8}, {0, 1})}), "");
}

TEST_F(FakeEngineTest, RefusesPagesOfAnotherText) {
  EXPECT_EQ(Error({MakeRow(0, {1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9}, {0, 1}, false)}), "");
  EXPECT_EQ(Error({MakeRow(0, {8, 7, 6, 5, 4, 3, 2, 1}, {2}, false)}), "");
  EXPECT_THAT(Error({MakeRow(12, {}, {2, 1})}), HasSubstr("page 1 was written after another text"));
  EXPECT_EQ(Error({MakeRow(12, {}, {0, 1})}), "");
}

TEST_F(FakeEngineTest, RefusesPredictionsOfOthersAndInOtherModes) {
  Row own = MakeRow(0, {1, 2, 3, 4}, {0});
  own.mode = GenerationMode::kRecGen;
  own.sampling.query = 1;
  EXPECT_EQ(Error({own}), "");
  Row other = MakeRow(8, {}, {0, 1});
  EXPECT_THAT(Error({other}), HasSubstr("another sequence's predictions"));
  other.mode = GenerationMode::kRecGen;
  EXPECT_THAT(Error({other}), HasSubstr("another sequence's predictions"));
  other.sampling.query = 1;
  EXPECT_EQ(Error({other}), "");
  Row input = MakeRow(8, {1, 2, 3, 4}, {0, 1, 2});
  input.mode = GenerationMode::kRecGen;
  input.sampling.query = 1;
  EXPECT_THAT(Error({input}), HasSubstr("no lower levels"));
}

TEST_F(FakeEngineTest, RefusesPagesWithTwoUsersOfWhichOneWrites) {
  EXPECT_EQ(Error({MakeRow(0, {1, 2, 3, 4, 5, 6, 7, 8}, {0}, false)}), "");
  EXPECT_THAT(Error({MakeRow(8, {}, {0, 1}), MakeRow(8, {}, {0, 1})}), HasSubstr("written twice"));
  EXPECT_THAT(Error({MakeRow(8, {}, {0, 1}), MakeRow(4, {1, 2, 3, 4}, {0}, false)}),
              HasSubstr("read and written"));
  EXPECT_EQ(Error({MakeRow(8, {}, {0, 1}), MakeRow(8, {}, {0, 2})}), "");
}

TEST_F(FakeEngineTest, CopiesBeforeItReadsAndWrites) {
  EXPECT_EQ(Error({MakeRow(0, {1, 2, 3, 4, 5, 6, 7, 8}, {0}, false)}), "");
  const PageCopy copy{PageId{0}, PageId{1}};
  // The source is rewritten in the same step.
  EXPECT_EQ(
      Error({MakeRow(0, {9, 9, 9, 9}, {0}, false), MakeRow(4, {5, 5, 5, 5}, {1}, false)}, {copy}),
      "");
  EXPECT_EQ(Error({MakeRow(8, {}, {1, 2})}), "");
  EXPECT_THAT(Error({MakeRow(8, {}, {1, 2})}, {copy}), HasSubstr("copied to and not written"));
  EXPECT_THAT(Error({MakeRow(8, {}, {1, 2})}, {copy, copy}), HasSubstr("target of two"));
  EXPECT_THAT(Error({MakeRow(8, {}, {1, 2})}, {copy, {PageId{1}, PageId{2}}}),
              HasSubstr("copied from and to"));
}

}  // namespace
}  // namespace photon
