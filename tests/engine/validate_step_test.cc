#include "engine/validate_step.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

// Pages of four meta-contexts of four tokens.
EngineShape Shape() {
  return {.device = "none",
          .vocab_size = 100,
          .meta_tokens = 4,
          .max_context = 1024,
          .page_tokens = 16,
          .num_pages = 200,
          .max_rows = 8,
          .max_prefill_tokens = 256,
          .modes = {GenerationMode::kExact}};
}

class StepValidation : public testing::Test {
 protected:
  std::string Message(std::span<const PageCopy> copies, std::span<const Row> rows,
                      PageChecks checks = PageChecks::kAll) {
    const absl::Status status = StepValidator(Shape(), checks).Validate(copies, rows);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status.ToString();
    return std::string(status.message());
  }
  std::string CopiesMessage(std::vector<PageCopy> copies) { return Message(copies, {}); }

  const std::vector<TokenId> tokens_ = std::vector<TokenId>(64, 1);
};

TEST_F(StepValidation, RowsMayShareWhatTheyOnlyRead) {
  const std::vector<PageId> a = {PageId{0}, PageId{1}, PageId{2}};
  const std::vector<PageId> b = {PageId{0}, PageId{1}, PageId{3}};
  const Row rows[] = {{.cached_tokens = 32, .pages = a}, {.cached_tokens = 36, .pages = b}};
  EXPECT_EQ(Message({}, rows), "");
  EXPECT_EQ(Message({}, rows, PageChecks::kWritten), "");
}

TEST_F(StepValidation, APageHasOneWriter) {
  const std::vector<PageId> a = {PageId{0}, PageId{1}}, b = {PageId{2}, PageId{1}};
  const Row rows[] = {{.cached_tokens = 16, .pages = a}, {.cached_tokens = 28, .pages = b}};
  for (const PageChecks checks : {PageChecks::kWritten, PageChecks::kAll}) {
    EXPECT_THAT(Message({}, rows, checks), HasSubstr("rows[1].pages: page 1 is written twice"));
  }
  const std::vector<PageId> twice = {PageId{5}, PageId{5}};
  const Row row{.input = std::span(tokens_).first(20), .pages = twice};
  EXPECT_THAT(Message({}, std::span(&row, 1), PageChecks::kWritten),
              HasSubstr("rows[0].pages: page 5 is written twice"));
}

TEST_F(StepValidation, APageThatARowWritesIsReadByNoOther) {
  const std::vector<PageId> writer = {PageId{0}, PageId{1}};
  const std::vector<PageId> near = {PageId{9}, PageId{1}, PageId{3}};
  const std::vector<PageId> far = {PageId{1}, PageId{9}, PageId{3}};
  for (const int cached : {16, 20}) {
    // Whoever comes first.
    const Row near_rows[] = {{.cached_tokens = 32, .pages = near},
                             {.cached_tokens = cached, .pages = writer}};
    EXPECT_THAT(Message({}, near_rows), HasSubstr("rows[0].pages: page 1 is read, and written"));
    // The last page read is always looked at.
    EXPECT_THAT(Message({}, near_rows, PageChecks::kWritten), HasSubstr("page 1 is read, and"));
    const Row far_rows[] = {{.cached_tokens = cached, .pages = writer},
                            {.cached_tokens = 32, .pages = far}};
    EXPECT_THAT(Message({}, far_rows), HasSubstr("rows[1].pages: page 1 is read, and written"));
    EXPECT_EQ(Message({}, far_rows, PageChecks::kWritten), "");
  }
}

TEST_F(StepValidation, ARowDoesNotReadThePageItWrites) {
  const std::vector<PageId> pages = {PageId{4}, PageId{6}, PageId{4}};
  const Row row{.cached_tokens = 32, .pages = pages};
  EXPECT_THAT(Message({}, std::span(&row, 1)), HasSubstr("page 4 is read, and written"));
}

TEST_F(StepValidation, ARowWithoutWorkWritesNothing) {
  const std::vector<PageId> pages = {PageId{0}};
  const Row rows[] = {{.cached_tokens = 4, .pages = pages, .decode = false},
                      {.cached_tokens = 4, .pages = pages, .decode = false}};
  EXPECT_EQ(Message({}, rows), "");
}

TEST_F(StepValidation, PagesOutsideThePoolAreRefused) {
  for (const int bad : {-1, 200}) {
    const std::vector<PageId> read = {PageId{bad}, PageId{0}, PageId{1}};
    const std::vector<PageId> written = {PageId{2}, PageId{0}, PageId{bad}};
    const std::string message = "pages: " + std::to_string(bad) + " is outside the pool of 200";
    const Row reading{.cached_tokens = 32, .pages = read};
    EXPECT_THAT(Message({}, std::span(&reading, 1)), HasSubstr(message));
    const Row writing{.cached_tokens = 32, .pages = written};
    EXPECT_THAT(Message({}, std::span(&writing, 1), PageChecks::kWritten), HasSubstr(message));
    EXPECT_THAT(CopiesMessage({{PageId{0}, PageId{1}}, {PageId{bad}, PageId{3}}}),
                HasSubstr("copies[1]: outside the pool"));
    EXPECT_THAT(CopiesMessage({{PageId{0}, PageId{bad}}}), HasSubstr("copies[0]: outside"));
  }
}

TEST_F(StepValidation, PagesBehindTheRowsNeedAreNotLookedAt) {
  const std::vector<PageId> a = {PageId{0}, PageId{1}, PageId{-7}}, b = {PageId{1}};
  const Row rows[] = {{.cached_tokens = 12, .pages = a}, {.pages = b}};
  EXPECT_EQ(Message({}, rows), "");
}

TEST_F(StepValidation, TheLastTokenOfAPageNeedsNoOtherPage) {
  const std::vector<PageId> one = {PageId{0}};
  Row row{.cached_tokens = 12, .pages = one};
  EXPECT_EQ(Message({}, std::span(&row, 1)), "");
  row.cached_tokens = 16;
  EXPECT_THAT(Message({}, std::span(&row, 1)), HasSubstr("pages: 2 needed, got 1"));
}

TEST_F(StepValidation, CopiesAreIndependentOfEachOther) {
  EXPECT_EQ(CopiesMessage({{PageId{0}, PageId{1}}, {PageId{0}, PageId{2}}}), "");
  EXPECT_THAT(CopiesMessage({{PageId{0}, PageId{2}}, {PageId{1}, PageId{2}}}),
              HasSubstr("copies[1]: page 2 is a target twice"));
  // A chain, in either order, and a page onto itself.
  EXPECT_THAT(CopiesMessage({{PageId{0}, PageId{1}}, {PageId{1}, PageId{2}}}),
              HasSubstr("copies[0]: page 1 is a target and a source"));
  EXPECT_THAT(CopiesMessage({{PageId{1}, PageId{2}}, {PageId{0}, PageId{1}}}),
              HasSubstr("copies[1]: page 1 is a target and a source"));
  EXPECT_THAT(CopiesMessage({{PageId{3}, PageId{3}}}),
              HasSubstr("page 3 is a target and a source"));
}

TEST_F(StepValidation, RowsMayWriteTheSourceAndUseTheTargetOfACopy) {
  const std::vector<PageId> a = {PageId{0}, PageId{1}}, b = {PageId{0}, PageId{2}};
  const std::vector<PageId> c = {PageId{3}, PageId{4}}, d = {PageId{3}, PageId{5}};
  const PageCopy copies[] = {{PageId{1}, PageId{2}}, {PageId{0}, PageId{3}}};
  const Row rows[] = {{.cached_tokens = 24, .pages = a},
                      {.cached_tokens = 20, .pages = b},
                      {.cached_tokens = 16, .pages = c},
                      {.cached_tokens = 16, .pages = d}};
  EXPECT_EQ(Message(copies, rows), "");
}

TEST_F(StepValidation, AStepIsJudgedOnItsOwn) {
  StepValidator validator(Shape());
  const std::vector<PageId> a = {PageId{0}, PageId{65}}, b = {PageId{65}, PageId{0}};
  const Row writes[] = {{.input = std::span(tokens_).first(32), .pages = a, .decode = false}};
  const Row reads[] = {{.cached_tokens = 16, .pages = b}};
  const Row twice[] = {writes[0], writes[0]};
  const PageCopy there{PageId{1}, PageId{2}}, back{PageId{2}, PageId{1}};
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(validator.Validate(std::span(&there, 1), writes).ok());
    EXPECT_FALSE(validator.Validate({}, twice).ok());
    EXPECT_TRUE(validator.Validate(std::span(&back, 1), reads).ok());
  }
}

TEST_F(StepValidation, StepsBeyondTheShapeAreRefused) {
  std::vector<std::vector<PageId>> pages;
  for (int r = 0; r < 9; ++r) pages.push_back({PageId{2 * r}, PageId{2 * r + 1}, PageId{50 + r}});
  std::vector<Row> rows;
  for (int r = 0; r < 9; ++r) rows.push_back({.pages = pages[r]});
  EXPECT_THAT(Message({}, rows), HasSubstr("at most 8 in a step, got 9"));
  rows.resize(8);
  EXPECT_EQ(Message({}, rows), "");
  for (Row& row : rows) row.input = std::span(tokens_).first(33);  // 32 of them whole
  EXPECT_EQ(Message({}, rows), "");
  rows[3].input = std::span(tokens_).first(36);
  EXPECT_THAT(Message({}, rows), HasSubstr("at most 256 whole-meta-context input tokens in a step, "
                                           "got 260"));
}

}  // namespace
}  // namespace photon
