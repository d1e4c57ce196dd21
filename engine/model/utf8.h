// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <string>
#include <string_view>

namespace photon {

// U+FFFD, which stands for bytes that are no character.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Bytes of the character that `text` starts with, 1 .. 4, or 0 where it starts with none.
inline int Utf8CharLength(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (lead == 0xE0 && byte(1) < 0xA0) return 0;  // overlong
  if (lead == 0xED && byte(1) > 0x9F) return 0;  // surrogates
  if (lead == 0xF0 && byte(1) < 0x90) return 0;  // overlong
  if (lead == 0xF4 && byte(1) > 0x8F) return 0;  // above U+10FFFF
  return static_cast<int>(length);
}

inline bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const int length = Utf8CharLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

// True if `bytes` (1 .. 3 of them) are a truncated character: more bytes could complete it.
inline bool IsUtf8Prefix(std::string_view bytes) {
  if (Utf8CharLength(bytes) != 0) return false;
  // What a second byte may be is an interval that holds 0x80 or 0xBF, whatever the first byte.
  for (const char filler : {'\x80', '\xBF'}) {
    std::string padded(bytes);
    padded.resize(4, filler);
    if (Utf8CharLength(padded) > static_cast<int>(bytes.size())) return true;
  }
  return false;
}

}  // namespace photon
