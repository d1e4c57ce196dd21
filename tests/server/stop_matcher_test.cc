#include "server/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace photon {
namespace {

// The text up to the stop string that completes first, by trying every end.
std::string Expected(const std::string& text, const std::vector<std::string>& stops,
                     std::optional<size_t>* match) {
  for (size_t end = 1; end <= text.size(); ++end) {
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!text.substr(0, end).ends_with(stops[i])) continue;
      if (!match->has_value() || stops[i].size() > stops[**match].size()) *match = i;
    }
    if (match->has_value()) return text.substr(0, end - stops[**match].size());
  }
  return text;
}

TEST(StopMatcher, PassesTextThroughWithoutStopStrings) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Append("abc"), "abc");
  EXPECT_EQ(matcher.Finish(), "");
  EXPECT_FALSE(matcher.match().has_value());
}

TEST(StopMatcher, FindsAStopStringThatStraddlesPieces) {
  StopMatcher matcher({"\n\nQ:", "END"});
  EXPECT_EQ(matcher.Append("one\n"), "one");
  EXPECT_EQ(matcher.Append("two\n"), "\ntwo");
  EXPECT_EQ(matcher.Append("\n"), "");
  EXPECT_EQ(matcher.Append("Q"), "");
  EXPECT_EQ(matcher.Append(": three"), "");
  EXPECT_EQ(matcher.match(), 0u);
  EXPECT_EQ(matcher.Append("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, GivesBackABeginningThatCameToNothing) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Append("a sto"), "a ");
  EXPECT_EQ(matcher.Append("ry st"), "story ");
  EXPECT_EQ(matcher.Finish(), "st");
  EXPECT_FALSE(matcher.match().has_value());
}

TEST(StopMatcher, PrefersTheFirstToCompleteAndThenTheLongest) {
  StopMatcher inner({"abcd", "bc"});
  EXPECT_EQ(inner.Append("xabcd"), "xa");
  EXPECT_EQ(inner.match(), 1u);
  StopMatcher both({"bc", "abc"});
  EXPECT_EQ(both.Append("xabc"), "x");
  EXPECT_EQ(both.match(), 1u);
}

TEST(StopMatcher, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 random(3);
  const auto word = [&](int max_size) {
    std::string text;
    for (int i = 1 + static_cast<int>(random() % max_size); i > 0; --i) text += "ab"[random() % 2];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::string text = word(40);
    std::vector<std::string> stops;
    for (int i = 1 + static_cast<int>(random() % 3); i > 0; --i) stops.push_back(word(8));
    std::optional<size_t> expected_match;
    const std::string expected = Expected(text, stops, &expected_match);

    StopMatcher matcher(stops);
    std::string output;
    for (size_t begin = 0; begin < text.size();) {
      const size_t size = 1 + random() % 6;
      output += matcher.Append(text.substr(begin, size));
      begin += size;
      ASSERT_TRUE(expected.starts_with(output)) << text;
    }
    output += matcher.Finish();
    ASSERT_EQ(output, expected) << text;
    ASSERT_EQ(matcher.match().has_value(), expected_match.has_value());
    if (expected_match.has_value()) {
      ASSERT_EQ(stops[*matcher.match()], stops[*expected_match]);
    }
  }
}

}  // namespace
}  // namespace photon
