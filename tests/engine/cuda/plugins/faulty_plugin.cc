// A module that stands in for the CUDA engine's on machines without a GPU: its devices are CPU
// engines of one thread, and fail on demand. The environment says how:
//
//   FAULTY_PLUGIN_DEVICES      how many there are; default 2. With 0 there is no driver
//   FAULTY_PLUGIN_FULL_DEVICE  the device on which the weights find no memory
//   FAULTY_PLUGIN_LOST_DEVICE  the device that is lost in step FAULTY_PLUGIN_LOST_STEP (from 1)
//   FAULTY_PLUGIN_STUCK_STEP   the step of device 0 that never ends
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/cpu/cpu_engine.h"
#include "engine/cuda/cuda_plugin.h"

namespace photon {
namespace {

int Setting(const char* name, int default_value) {
  const char* value = std::getenv(name);
  return value == nullptr ? default_value : std::atoi(value);
}

// Another engine, up to a step.
class LosableEngine final : public Engine {
 public:
  // `lost_step` and `stuck_step`: 0 for never.
  LosableEngine(std::unique_ptr<Engine> engine, int device, int lost_step, int stuck_step)
      : engine_(std::move(engine)),
        shape_(engine_->shape()),
        lost_step_(lost_step),
        stuck_step_(stuck_step) {
    shape_.device = absl::StrCat("cuda:", device, " (", shape_.device, ")");
  }

  const EngineShape& shape() const override { return shape_; }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    if (++step_ == lost_step_) {
      return absl::InternalError("decode: unspecified launch failure (719)");
    }
    while (step_ == stuck_step_) pause();
    return engine_->Step(copies, rows, sink);
  }

 private:
  const std::unique_ptr<Engine> engine_;
  EngineShape shape_;
  const int lost_step_;
  const int stuck_step_;
  int step_ = 0;
};

void CountDevices(int* count, absl::Status* status) {
  *count = Setting("FAULTY_PLUGIN_DEVICES", 2);
  *status = *count > 0 ? absl::OkStatus()
                       : absl::NotFoundError("cuda: no CUDA-capable device is detected (100)");
}

void Create(const Checkpoint* checkpoint, const CudaEngineOptions* options, Engine** engine,
            absl::Status* status) {
  const int count = Setting("FAULTY_PLUGIN_DEVICES", 2);
  if (options->device >= count) {
    *status = absl::FailedPreconditionError(
        absl::StrCat("cuda: no device ", options->device, ", there are ", count));
    return;
  }
  if (options->device == Setting("FAULTY_PLUGIN_FULL_DEVICE", -1)) {
    *status = absl::ResourceExhaustedError(
        "weights: 1.20 GiB needed, 0.75 GiB free of 79.10 GiB, 0.03 GiB taken before");
    return;
  }
  // Shares of a GPU's memory mean nothing here.
  const MemoryBudget kv_memory =
      options->kv_memory.is_share() ? MemoryBudget::Bytes(64 << 20) : options->kv_memory;
  auto created = CreateCpuEngine(*checkpoint, {.threads = 1,
                                               .kv_memory = kv_memory,
                                               .page_tokens = options->page_tokens,
                                               .max_rows = options->max_rows,
                                               .max_prefill_tokens = options->max_prefill_tokens});
  *status = created.status();
  if (!created.ok()) return;
  const bool is_lost = options->device == Setting("FAULTY_PLUGIN_LOST_DEVICE", -1);
  *engine = new LosableEngine(*std::move(created), options->device,
                              is_lost ? Setting("FAULTY_PLUGIN_LOST_STEP", 1) : 0,
                              options->device == 0 ? Setting("FAULTY_PLUGIN_STUCK_STEP", 0) : 0);
}

}  // namespace
}  // namespace photon

extern "C" __attribute__((visibility("default")))
const photon::CudaPluginEntries photon_cuda_plugin = {.count_devices = photon::CountDevices,
                                                      .create = photon::Create};
