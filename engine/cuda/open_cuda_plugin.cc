#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/cuda/cuda_plugin.h"

namespace photon {
namespace {

std::string DefaultPath() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  for (const char* beside : {"", "../lib", "../engine/cuda"}) {
    const std::filesystem::path path = program.parent_path() / beside / kCudaPluginFile;
    if (!program.empty() && std::filesystem::exists(path, error)) return path;
  }
  return kCudaPluginFile;
}

template <typename... Parts>
absl::Status Unusable(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat("cuda: ", parts...));
}

}  // namespace

absl::StatusOr<CudaPlugin> CudaPlugin::Open(const std::string& path) {
  const std::string file = path.empty() ? DefaultPath() : path;
  // Never closed: the engines' code is in it.
  void* module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) return Unusable(dlerror());
  const auto* entries = static_cast<const CudaPluginEntries*>(dlsym(module, kCudaPluginSymbol));
  if (entries == nullptr) return Unusable(file, " is no engine of this program: ", dlerror());
  if (entries->version != kCudaPluginVersion) {
    return Unusable(file, " has version ", entries->version, ", the program ", kCudaPluginVersion,
                    "; both must come from one build");
  }
  return CudaPlugin(entries);
}

absl::StatusOr<int> CudaPlugin::CountDevices() const {
  int count = 0;
  absl::Status status;
  entries_->count_devices(&count, &status);
  if (!status.ok()) return status;
  return count;
}

absl::StatusOr<std::unique_ptr<Engine>> CudaPlugin::CreateEngine(
    const Checkpoint& checkpoint, const CudaEngineOptions& options) const {
  Engine* engine = nullptr;
  absl::Status status;
  entries_->create(&checkpoint, &options, &engine, &status);
  if (!status.ok()) return status;
  return std::unique_ptr<Engine>(engine);
}

bool HasCudaDriver() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return false;
  dlclose(driver);
  return true;
}

}  // namespace photon
