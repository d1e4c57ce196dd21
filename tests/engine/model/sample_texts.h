// Strings that are hard on a tokenizer, made from a seed.
#pragma once

#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <string_view>

namespace photon {

// Draws words and lines in many scripts. The same seed gives the same strings everywhere: only
// std::mt19937 itself is used, not the distributions, which differ between libraries.
class SampleTexts {
 public:
  explicit SampleTexts(uint32_t seed) : random_(seed) {}

  // In 0 .. bound - 1.
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }

  // Words with single spaces, valid UTF-8, short enough to train on.
  std::string Sentence();

  // Anything but '\n': odd spaces, emoji sequences, controls, spelled-out control pieces and, with
  // `broken`, bytes that are no UTF-8.
  std::string Line(bool broken);

 private:
  std::string Word();
  std::string Character(uint32_t first, uint32_t last);

  std::mt19937 random_;
};

inline std::string Utf8(uint32_t code_point) {
  const auto trail = [](uint32_t bits) { return static_cast<char>(0x80 | (bits & 0x3F)); };
  std::string text;
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += {static_cast<char>(0xC0 | code_point >> 6), trail(code_point)};
  } else if (code_point < 0x10000) {
    text += {static_cast<char>(0xE0 | code_point >> 12), trail(code_point >> 6), trail(code_point)};
  } else {
    text += {static_cast<char>(0xF0 | code_point >> 18), trail(code_point >> 12),
             trail(code_point >> 6), trail(code_point)};
  }
  return text;
}

inline std::string SampleTexts::Character(uint32_t first, uint32_t last) {
  // Early letters come more often, so that training finds pairs to merge.
  return Utf8(first + Below(1 + Below(last - first + 1)));
}

inline std::string SampleTexts::Word() {
  static constexpr struct {
    uint32_t first, last;
  } kScripts[] = {
      {'a', 'z'},       {'a', 'z'},         {'a', 'z'},         {'A', 'Z'},       {'0', '9'},
      {0xE0, 0x17E},    {0x3B1, 0x3C9},     {0x430, 0x44F},     {0x5D0, 0x5EA},   {0x627, 0x64A},
      {0x905, 0x94D},   {0xE01, 0xE3A},     {0x3041, 0x3096},   {0x30A1, 0x30FA}, {0x4E00, 0x4E80},
      {0xAC00, 0xAC80}, {0x1F600, 0x1F64F}, {0x1D400, 0x1D433}, {0xFF21, 0xFF5A}, {0xFB00, 0xFB06},
  };
  const auto& script = kScripts[Below(std::size(kScripts))];
  std::string word;
  for (uint32_t n = 1 + Below(8); n > 0; --n) word += Character(script.first, script.last);
  return word;
}

inline std::string SampleTexts::Sentence() {
  std::string sentence = Word();
  for (uint32_t n = Below(20); n > 0; --n) {
    sentence += ' ';
    sentence += Word();
  }
  return sentence;
}

inline std::string SampleTexts::Line(bool broken) {
  using namespace std::string_view_literals;
  static constexpr std::string_view kOddities[] = {
      " ",
      "  ",
      "   ",
      "\t",
      "\r",
      "\v",
      "\0"sv,
      "\x01",
      "\x1B[0m",
      "\x7F",
      "\u00A0",
      "\u00AD",
      "\u0085",
      "\u2003",
      "\u2028",
      "\u3000",
      "\u200B",
      "\u200D",
      "\u200F",
      "\uFEFF",
      "\u2581",
      "\u2581\u2581",
      " \u2581",
      "\uFFFD",
      "\uFFFF",
      "\U0010FFFF",
      "\u2047",
      "e\u0301",
      "a\u0308\u0323",
      "\u0915\u094D\u0937\u093F",
      "\u0E01\u0E33",
      "\u1100\u1161\u11A8",
      "\uFDFA",
      "\U0001F468\u200D\U0001F469\u200D\U0001F467",
      "\U0001F44D\U0001F3FD",
      "\U0001F1E9\U0001F1EA",
      "\u2764\uFE0F",
      "<s>",
      "</s>",
      "<unk>",
      "<pad>",
      "<0x41>",
      "<0xE2>",
      "<|user|>",
      "<|end|>",
      "[a]",
      "[ab]",
      "[abc",
      "\u2460",
      "\u00BD",
      "\u2126",
      "\uFF21",
      "\uFB01",
      "\u2026",
      "...",
      "don't",
      "1,234.50",
      "2024-01-31",
  };
  std::string line;
  for (uint32_t n = Below(12); n > 0; --n) {
    switch (Below(broken ? 5 : 4)) {
      case 0:
        line += kOddities[Below(std::size(kOddities))];
        break;
      case 4:
        for (uint32_t bytes = 1 + Below(4); bytes > 0; --bytes) {
          const char byte = static_cast<char>(Below(256));
          line += byte == '\n' ? ' ' : byte;
        }
        break;
      default:
        line += Word();
        if (Below(3) > 0) line += ' ';
    }
  }
  return line;
}

}  // namespace photon
