// The engines of photon-server: which devices compute, and with what. Beside main.cc, all that
// knows backends by name.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/cpu/host_memory.h"
#include "engine/engine.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"

namespace photon {

// What --device says: devices of one kind, each of which holds a replica of the model.
struct Devices {
  enum class Kind : uint8_t {
    kAuto,  // every GPU; one replica on the processor where there is no driver or no GPU
    kCpu,
    kCuda,
  };
  Kind kind = Kind::kAuto;
  int cpu_replicas = 1;           // of kCpu
  std::vector<int> cuda_devices;  // of kCuda, as CUDA numbers them; empty: every one

  // "auto", "cpu", "cuda", or a list: "cuda:0,cuda:1", or "cpu,cpu" for two replicas that share
  // the processor. kInvalidArgument says what is wrong with `text`.
  static absl::StatusOr<Devices> Parse(std::string_view text);
};

// What is absent is up to the kind of device, see CpuEngineOptions and CudaEngineOptions.
struct EngineOptions {
  enum class Compute : uint8_t { kBF16, kF32 };
  enum class Quantization : uint8_t { kNone, kFp8 };  // kFp8: of GPUs alone

  Devices devices;
  Compute compute = Compute::kBF16;
  Quantization quantization = Quantization::kNone;
  int threads = 0;  // of each replica on the processor; 0: they share the processors
  // Of each device. A share is one of what is free there; replicas on the processor divide it.
  std::optional<MemoryBudget> kv_memory;
  std::optional<int> page_tokens;
  std::optional<int> max_rows;            // of a device
  std::optional<int> max_prefill_tokens;  // likewise
  // Engines that are opened with it leave each other's pools the memory that these still may take:
  // a model that replaces another one finds that one's as good as full.
  std::shared_ptr<AllottedMemory> allotted = std::make_shared<AllottedMemory>();
  std::string cuda_plugin;  // the CUDA engine's module; empty: see CudaPlugin::Open
};

// An engine for each device, in the order in which they are named. `checkpoint` must outlive them.
// Errors are those of CreateCpuEngine and CreateCudaEngine; also
// kInvalidArgument: an option that has no effect on the devices.
// kFailedPrecondition: GPUs are asked for and there are none, or not these, or their module is
// unusable. So it is with kAuto where a driver is installed: nothing is slow without a word.
absl::StatusOr<std::vector<std::unique_ptr<Engine>>> OpenEngines(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options);

}  // namespace photon
