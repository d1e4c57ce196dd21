#include "engine/cuda/cuda_plugin.h"

#include "absl/strings/str_cat.h"

extern "C" __attribute__((visibility("default"))) void PhotonCreateCudaEngine(
    uint32_t version, const photon::Checkpoint* checkpoint,
    const photon::CudaEngineOptions* options, photon::Engine** engine, absl::Status* status) {
  if (version != photon::kCudaPluginVersion) {
    *status = absl::FailedPreconditionError(
        absl::StrCat("cuda: ", photon::kCudaPluginFile, " has version ", photon::kCudaPluginVersion,
                     ", the program ", version));
    return;
  }
  auto created = photon::CreateCudaEngine(*checkpoint, *options);
  *status = created.status();
  if (created.ok()) *engine = created->release();
}
