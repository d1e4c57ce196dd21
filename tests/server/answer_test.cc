#include "server/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/utf8.h"

namespace photon {
namespace {

using ::testing::HasSubstr;

AnswerExtractor Pattern(const std::string& pattern) {
  auto extractor = AnswerExtractor::RegularExpression(pattern);
  EXPECT_TRUE(extractor.ok()) << extractor.status();
  return *std::move(extractor);
}

AnswerExtractor Pointer(const std::string& pointer) {
  auto extractor = AnswerExtractor::JsonPointer(pointer);
  EXPECT_TRUE(extractor.ok()) << extractor.status();
  return *std::move(extractor);
}

TEST(LastNumber, IsTheLastOneWithWhatBelongsToIt) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"7 apples and 5 pears make 12.", "12"},
      {"It costs $1,234.50 today", "1,234.50"},
      {"minus: -3", "-3"},
      {"minus: \xE2\x88\x92"
       "3",
       "\xE2\x88\x92"
       "3"},
      {"+3e8 m/s", "+3e8"},
      {"1e-9.", "1e-9"},
      {"3-4", "4"},
      {"x-4", "4"},
      {"(-4)", "-4"},
      {".5", ".5"},
      {"-.5", "-.5"},
      {"2.", "2"},
      {"1,23", "23"},
      {"1234,567", "567"},
      {"12,345,678", "12,345,678"},
      {"2em", "2"},
      {"50%", "50"},
      {"007", "007"},
  };
  const AnswerExtractor extractor = AnswerExtractor::LastNumber();
  for (const auto& [text, answer] : cases) EXPECT_EQ(extractor.Extract(text), answer) << text;
  for (const char* text : {"", "none", "-", "one . two", ",,"}) {
    EXPECT_EQ(extractor.Extract(text), std::nullopt) << text;
  }
}

TEST(RegularExpression, GivesItsFirstGroupOrTheWholeMatch) {
  const std::string text = "So: the answer is (B). The answer is (C).";
  EXPECT_EQ(Pattern(R"(answer is \((\w)\))").Extract(text), "B");
  EXPECT_EQ(Pattern(R"((?s).*answer is \((\w)\))").Extract(text), "C");
  EXPECT_EQ(Pattern(R"(\([A-Z]\))").Extract(text), "(B)");
  EXPECT_EQ(Pattern("nothing").Extract(text), std::nullopt);
  // A match without a character is no answer, nor a group that took no part.
  EXPECT_EQ(Pattern("x*").Extract(text), std::nullopt);
  EXPECT_EQ(Pattern("So|(never)").Extract(text), std::nullopt);
}

TEST(RegularExpression, RefusesWhatIsNoPatternOrTooLarge) {
  for (const std::string& bad :
       {std::string("("), std::string("a{1000}{1000}"), std::string("(?=look)"), std::string(),
        std::string(kMaxPatternBytes + 1, 'a'), std::string("\\1")}) {
    const auto status = AnswerExtractor::RegularExpression(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(status.message().empty());
  }
}

TEST(RegularExpression, TakesLinearTimeWhateverThePattern) {
  // Each of these takes ages where matching backtracks.
  const std::string text(kMaxAnswerTextBytes, 'a');
  for (const char* hostile : {"(a*)*b", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)b", "(a?){50}a{50}b",
                              "((a+)+)+$b", "(x+x+)+y|(a|aa)+$^"}) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(Pattern(hostile).Extract(text), std::nullopt) << hostile;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << hostile;
  }
}

TEST(JsonPointer, FindsAValueInJsonThatStandsInOtherText) {
  const std::string text =
      "Sure [1]:\n```json\n"
      R"({"a": {"b/c": [10, {"~": " x "}]}, "n": null, "t": true, "f": 1.50})"
      "\n``` done";
  // "[1]" is JSON too, and comes first.
  EXPECT_EQ(Pointer("/0").Extract(text), "1");
  const std::string object = text.substr(text.find("```"));
  EXPECT_EQ(Pointer("/a/b~1c/0").Extract(object), "10");
  EXPECT_EQ(Pointer("/a/b~1c/1/~0").Extract(object), "x");
  EXPECT_EQ(Pointer("/t").Extract(object), "true");
  EXPECT_EQ(Pointer("/f").Extract(object), "1.5");
  EXPECT_EQ(Pointer("/a").Extract(object), R"({"b/c":[10,{"~":" x "}]})");
  for (const char* nowhere : {"/n", "/b", "/a/b~1c/2", "/a/b~1c/-", "/a/b~1c/00", "/t/x", "/"}) {
    EXPECT_EQ(Pointer(nowhere).Extract(object), std::nullopt) << nowhere;
  }
}

TEST(JsonPointer, GoesOnWhereABracketBeginsNoJson) {
  EXPECT_EQ(Pointer("/x").Extract("a {set} of [things]: {\"x\": \"}\\\"{\"}"), "}\"{");
  EXPECT_EQ(Pointer("").Extract("[1, 2]"), "[1,2]");
  EXPECT_EQ(Pointer("").Extract("no json"), std::nullopt);
  EXPECT_EQ(Pointer("").Extract("{\"cut\": [1, 2"), std::nullopt);
}

TEST(JsonPointer, SurvivesDeepAndHostileJson) {
  EXPECT_EQ(Pointer("").Extract(std::string(kMaxAnswerTextBytes, '[')), std::nullopt);
  EXPECT_EQ(Pointer("/0").Extract(std::string(100, '[') + std::string(100, ']')), std::nullopt);
  EXPECT_EQ(Pointer("/a").Extract(R"({"a": 1, "a": 2})"), std::nullopt);
  EXPECT_EQ(Pointer("/a").Extract("{\"a\": \"\xff\"}"), std::nullopt);
}

TEST(JsonPointer, RefusesWhatIsNoPointer) {
  for (const std::string& bad : {std::string("a"), std::string("/~"), std::string("/~2"),
                                 std::string(kMaxPatternBytes + 1, '/')}) {
    EXPECT_EQ(AnswerExtractor::JsonPointer(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

TEST(WholeText, IsTheTextWithoutWhiteSpaceAround) {
  EXPECT_EQ(AnswerExtractor::WholeText().Extract(" \n Yes, it is.\t"), "Yes, it is.");
  EXPECT_EQ(AnswerExtractor::WholeText().Extract(" \n"), std::nullopt);
}

TEST(Answer, IsSearchedInTheEndOfALongText) {
  const std::string text = "1 " + std::string(kMaxAnswerTextBytes, 'x') + " 2 " +
                           std::string(kMaxAnswerTextBytes - 10, 'y');
  EXPECT_EQ(AnswerExtractor::LastNumber().Extract(text), "2");
  EXPECT_EQ(Pattern("x").Extract("x" + std::string(kMaxAnswerTextBytes, 'y')), std::nullopt);
}

TEST(NormalizeAnswer, LooksThroughCaseAndWhiteSpace) {
  EXPECT_EQ(NormalizeAnswer("  The\n\t Fox "), "the fox");
  EXPECT_EQ(NormalizeAnswer("ÄB"), "Äb");  // only ASCII letters have a case here
  EXPECT_EQ(NormalizeAnswer(" \n "), "");
}

TEST(NormalizeAnswer, GivesNumbersOneNotation) {
  const std::vector<std::vector<const char*>> same = {
      {"1024.5", "1,024.50", "+1024.5", "1.0245e3", "1.0245E+3", "001024.5", "10245e-1"},
      {"0", "-0", "0.00", "0e5", "+0", ".0"},
      {"-3",
       "\xE2\x88\x92"
       "3",
       "-3.0", "-0.3e1"},
      {"0.05", ".05", "5e-2", "0.0500"},
      {"1000", "1e3", "1,000", "1,000.0"},
      {"123456789012345678901234567890", "123,456,789,012,345,678,901,234,567,890"},
  };
  for (const auto& group : same) {
    for (const char* text : group) EXPECT_EQ(NormalizeAnswer(text), group[0]) << text;
  }
  EXPECT_EQ(NormalizeAnswer("1e9999"), NormalizeAnswer("10e9998"));
  EXPECT_NE(NormalizeAnswer("1e9999"), NormalizeAnswer("1e9998"));
  EXPECT_EQ(NormalizeAnswer("1e99999999999999999999"), "1e99999999999999999999");
  for (const char* text : {"1 000", "12 apples", "1.2.3", "0x10", "1,00", "-", "+"}) {
    EXPECT_EQ(NormalizeAnswer(text), text);
  }
}

TEST(TruncateUtf8, CutsBetweenCharacters) {
  const std::string text = "aä𝐛";  // 1, 2 and 4 bytes
  for (size_t bytes = 0; bytes <= text.size(); ++bytes) {
    const std::string_view cut = TruncateUtf8(text, bytes);
    EXPECT_LE(cut.size(), bytes);
    EXPECT_TRUE(IsValidUtf8(cut));
    EXPECT_TRUE(text.starts_with(cut));
  }
  EXPECT_EQ(TruncateUtf8(text, 100), text);
}

}  // namespace
}  // namespace photon
