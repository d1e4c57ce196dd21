#include "engine/cuda/cuda_plugin.h"

namespace photon {
namespace {

void CountDevices(int* count, absl::Status* status) {
  const absl::StatusOr<int> counted = CountCudaDevices();
  *status = counted.status();
  if (counted.ok()) *count = *counted;
}

void Create(const Checkpoint* checkpoint, const CudaEngineOptions* options, Engine** engine,
            absl::Status* status) {
  auto created = CreateCudaEngine(*checkpoint, *options);
  *status = created.status();
  if (created.ok()) *engine = created->release();
}

}  // namespace
}  // namespace photon

extern "C" __attribute__((visibility("default")))
const photon::CudaPluginEntries photon_cuda_plugin = {.count_devices = photon::CountDevices,
                                                      .create = photon::Create};
