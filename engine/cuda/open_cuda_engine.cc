#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/cuda/cuda_plugin.h"

namespace photon {
namespace {

std::string PluginPath() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  for (const char* beside : {"", "../lib", "../engine/cuda"}) {
    const std::filesystem::path path = program.parent_path() / beside / kCudaPluginFile;
    if (!program.empty() && std::filesystem::exists(path, error)) return path;
  }
  return kCudaPluginFile;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> OpenCudaEngine(const Checkpoint& checkpoint,
                                                       const CudaEngineOptions& options) {
  // Never closed: the engine's code is in it.
  void* module = dlopen(PluginPath().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) return absl::FailedPreconditionError(absl::StrCat("cuda: ", dlerror()));
  const auto create = reinterpret_cast<CudaPluginEntry>(dlsym(module, kCudaPluginEntry));
  if (create == nullptr) return absl::FailedPreconditionError(absl::StrCat("cuda: ", dlerror()));
  Engine* engine = nullptr;
  absl::Status status;
  create(kCudaPluginVersion, &checkpoint, &options, &engine, &status);
  if (!status.ok()) return status;
  return std::unique_ptr<Engine>(engine);
}

}  // namespace photon
