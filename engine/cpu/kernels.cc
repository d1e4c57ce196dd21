#include "engine/cpu/kernels.h"

#include <initializer_list>

namespace photon {

#define PHOTON_DECLARE_KERNELS(isa)           \
  namespace isa {                             \
  const Kernels<float>& FloatKernels();       \
  const Kernels<BFloat16>& BFloat16Kernels(); \
  }
PHOTON_DECLARE_KERNELS(portable)
#if defined(__x86_64__)
PHOTON_DECLARE_KERNELS(avx2)
PHOTON_DECLARE_KERNELS(avx512)
PHOTON_DECLARE_KERNELS(avx512_bf16)
#endif
#undef PHOTON_DECLARE_KERNELS

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

bool IsaSupported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa BestIsa() {
  for (Isa isa : {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2}) {
    if (IsaSupported(isa)) return isa;
  }
  return Isa::kPortable;
}

template <>
const Kernels<float>& KernelsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::FloatKernels();
    case Isa::kAvx512:
      return avx512::FloatKernels();
    case Isa::kAvx512Bf16:
      return avx512_bf16::FloatKernels();
#endif
    default:
      return portable::FloatKernels();
  }
}

template <>
const Kernels<BFloat16>& KernelsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::BFloat16Kernels();
    case Isa::kAvx512:
      return avx512::BFloat16Kernels();
    case Isa::kAvx512Bf16:
      return avx512_bf16::BFloat16Kernels();
#endif
    default:
      return portable::BFloat16Kernels();
  }
}

}  // namespace photon
