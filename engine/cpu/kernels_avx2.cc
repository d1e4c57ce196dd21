#define PHOTON_KERNELS_NAMESPACE avx2
#include "engine/cpu/kernels_body.h"
