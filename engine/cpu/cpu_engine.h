// The engine on the processor: the embedded default, and the reference that other engines match.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/cpu/host_memory.h"
#include "engine/cpu/kernels.h"
#include "engine/engine.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"

namespace photon {

struct CpuEngineOptions {
  enum class Compute {
    kBF16,  // bf16 weights, activations of products and cache; fp32 accumulation
    kF32,   // fp32 throughout
  };
  Compute compute = Compute::kBF16;
  int threads = 0;  // 0: one per processor
  // The latent pool: one allocation, made at the start. The system hands out its memory as pages
  // are first written, so a pool costs what has been used of it at most; but there must be so much.
  // A share is one of FreeHostMemory() less what `allotted` has to come, once the weights are
  // packed.
  MemoryBudget kv_memory = MemoryBudget::Bytes(int64_t{1} << 30);
  // Engines that share it leave each other the memory that their pools may still take. Null: there
  // are no others.
  std::shared_ptr<AllottedMemory> allotted;
  int page_tokens = 256;          // rounded up to whole meta-contexts
  int max_rows = 64;              // rows of one step
  int max_prefill_tokens = 2048;  // of one step, at least one meta-context
  std::optional<Isa> isa;         // absent: the best of this processor
};

// Packs the weights; `checkpoint` must outlive the engine.
// kInvalidArgument: an option out of range, or an instruction set that this processor lacks.
// kResourceExhausted: the weights or kv_memory do not fit what is free, or kv_memory holds no page;
// says what was needed for what, and what was free.
// kUnavailable: kv_memory is a share and the system does not say what is free.
absl::StatusOr<std::unique_ptr<Engine>> CreateCpuEngine(const Checkpoint& checkpoint,
                                                        const CpuEngineOptions& options);

}  // namespace photon
