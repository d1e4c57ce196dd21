// A module of an older build: only its version may be looked at.
#include "engine/cuda/cuda_plugin.h"

extern "C" __attribute__((visibility("default")))
const photon::CudaPluginEntries photon_cuda_plugin = {.version = photon::kCudaPluginVersion - 1};
