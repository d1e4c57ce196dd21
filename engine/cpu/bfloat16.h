// Storage type for bfloat16: the upper half of an IEEE float.
#pragma once

#include <cstdint>
#include <cstring>

namespace photon {

struct BFloat16 {
  uint16_t bits = 0;
};

inline float ToFloat(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline float ToFloat(float value) {
  return value;
}

// Rounds to nearest, ties to even. `value` must not be NaN.
inline BFloat16 ToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace photon
