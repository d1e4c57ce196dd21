// e4m3 as CUDA's header of this name has it, as far as engine/cuda uses it.
#pragma once

#include <cmath>

#include "cuda_runtime_api.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x;
};

// To nearest, ties to even; what is beyond 448 becomes 448, NaN stays NaN.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t,
                                                __nv_fp8_interpretation_t) {
  const int sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude != magnitude) return 0x7f;
  if (magnitude >= 448) return static_cast<__nv_fp8_storage_t>(sign | 0x7e);
  // Eighths of the power of two below; of 2^-6 for all that is less. Eight of them, or sixteen, are
  // the next power's first.
  const int exponent = std::max(-6, magnitude == 0 ? -6 : std::ilogb(magnitude));
  const int eighths = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return static_cast<__nv_fp8_storage_t>(sign | ((exponent + 6) * 8 + eighths));
}

// The lower byte is x.
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 values, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t format) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(values.x, saturation, format) |
                                           __nv_cvt_float_to_fp8(values.y, saturation, format)
                                               << 8);
}
