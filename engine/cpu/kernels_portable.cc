#define PHOTON_KERNELS_NAMESPACE portable
#include "engine/cpu/kernels_body.h"
