// The door between a program and the CUDA engine, which is a module of its own: programs open it
// when a GPU is asked for, and link none of the CUDA libraries.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cuda_engine.h"

namespace photon {

// Changes with every change of the entry point or of a type that passes it.
inline constexpr uint32_t kCudaPluginVersion = 1;

inline constexpr char kCudaPluginFile[] = "libphoton_cuda_plugin.so";
inline constexpr char kCudaPluginEntry[] = "PhotonCreateCudaEngine";

// The entry point. `version` is the caller's kCudaPluginVersion; program and module come from one
// build, so their types are the same. On success *engine is the caller's to delete.
using CudaPluginEntry = void (*)(uint32_t version, const Checkpoint* checkpoint,
                                 const CudaEngineOptions* options, Engine** engine,
                                 absl::Status* status);

// CreateCudaEngine() of the module, which is looked for beside the program and then where the
// system looks for libraries. kFailedPrecondition also where the module or a library that it needs
// is missing, or comes from another build. The module stays open for the life of the program.
absl::StatusOr<std::unique_ptr<Engine>> OpenCudaEngine(const Checkpoint& checkpoint,
                                                       const CudaEngineOptions& options);

}  // namespace photon
