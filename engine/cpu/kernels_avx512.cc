#define PHOTON_KERNELS_NAMESPACE avx512
#include "engine/cpu/kernels_body.h"
