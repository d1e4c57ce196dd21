#define PHOTON_KERNELS_NAMESPACE avx512_bf16
#include "engine/cpu/kernels_body.h"
