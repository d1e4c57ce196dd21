// The door between a program and the CUDA engine, which is a module of its own: programs open it
// when a GPU is asked for, and link none of the CUDA libraries.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cuda_engine.h"

namespace photon {

// Changes with every change of CudaPluginEntries or of a type that passes through them.
inline constexpr uint32_t kCudaPluginVersion = 5;

inline constexpr char kCudaPluginFile[] = "libphoton_cuda_plugin.so";
inline constexpr char kCudaPluginSymbol[] = "photon_cuda_plugin";

// What a module exports as kCudaPluginSymbol. Program and module come from one build, so their
// types are the same; `version`, which stays first, tells where they do not.
struct CudaPluginEntries {
  uint32_t version = kCudaPluginVersion;
  // CountCudaDevices().
  void (*count_devices)(int* count, absl::Status* status) = nullptr;
  // CreateCudaEngine(). On success *engine is the caller's to delete.
  void (*create)(const Checkpoint* checkpoint, const CudaEngineOptions* options, Engine** engine,
                 absl::Status* status) = nullptr;
};

// The module, open for the rest of the program's life.
class CudaPlugin {
 public:
  // `path`; or, where it is empty, kCudaPluginFile beside the program and then where the system
  // looks for libraries. kFailedPrecondition: the module or a library that it needs is missing, or
  // it comes from another build.
  static absl::StatusOr<CudaPlugin> Open(const std::string& path);

  // The functions of the same names that are in cuda_engine.h.
  absl::StatusOr<int> CountDevices() const;
  absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const Checkpoint& checkpoint,
                                                       const CudaEngineOptions& options) const;

 private:
  explicit CudaPlugin(const CudaPluginEntries* entries) : entries_(entries) {}

  const CudaPluginEntries* entries_;
};

// Whether NVIDIA's driver is installed; without it there is no use in opening a module.
bool HasCudaDriver();

}  // namespace photon
