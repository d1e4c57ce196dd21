#include "engine/model/utf8.h"

#include <cstdint>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "tests/engine/model/sample_texts.h"

namespace photon {
namespace {

bool IsScalarValue(uint32_t code_point) {
  return code_point <= 0x10FFFF && (code_point < 0xD800 || code_point > 0xDFFF);
}

TEST(Utf8, EveryScalarValueAndNoOtherIsACharacter) {
  for (uint32_t code_point = 0; code_point < 0x200000; ++code_point) {
    const std::string text = Utf8(code_point);
    ASSERT_EQ(Utf8CharLength(text), IsScalarValue(code_point) ? static_cast<int>(text.size()) : 0)
        << code_point;
  }
}

TEST(Utf8, OverlongStrayAndTruncatedBytesAreNone) {
  for (const char* text :
       {"", "\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF",
        "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF", "\xF5\x80\x80\x80", "\xFF", "\xC3", "\xE2\x82",
        "\xF0\x9F\x98", "\xC3(", "\xE2\x28\xA1"}) {
    EXPECT_EQ(Utf8CharLength(text), 0);
  }
  EXPECT_TRUE(IsValidUtf8("a\u00E9\u20AC\U0001F600"));
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_FALSE(IsValidUtf8("a\xC3"));
}

TEST(Utf8, PrefixesAreExactlyTheStartsOfCharacters) {
  std::set<std::string> starts;
  for (uint32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    if (!IsScalarValue(code_point)) continue;
    const std::string text = Utf8(code_point);
    if (text.back() != '\x80') continue;  // others start alike
    for (size_t size = 1; size < text.size(); ++size) starts.insert(text.substr(0, size));
  }
  for (int a = 0; a < 256; ++a) {
    const std::string one(1, static_cast<char>(a));
    ASSERT_EQ(IsUtf8Prefix(one), starts.contains(one)) << a;
    for (int b = 0; b < 256; ++b) {
      const std::string two = one + static_cast<char>(b);
      ASSERT_EQ(IsUtf8Prefix(two), starts.contains(two)) << a << " " << b;
      if (a < 0xE0) continue;
      for (int c = 0; c < 256; ++c) {
        const std::string three = two + static_cast<char>(c);
        ASSERT_EQ(IsUtf8Prefix(three), starts.contains(three)) << a << " " << b << " " << c;
      }
    }
  }
}

}  // namespace
}  // namespace photon
