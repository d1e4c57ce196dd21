// The engine on one NVIDIA GPU (compute capability 8.0 or newer): bf16 or fp32, matrix products of
// more than a few rows by cuBLASLt, everything else by the kernels in engine/cuda/kernels. Seen
// running on an H100 and an H200; for other GPUs it has only been compiled.
//
// It computes what the CPU engine computes, up to rounding: products of another number of rows may
// sum in another order, so a row's logits in a crowd can differ from those alone in the last bits.
// Draws are the same functions of (seed, query, sample, position).
//
// All memory is taken at start. Decoding is recorded per mode and number of rows as CUDA graphs,
// one for each point at which tokens reach the host, so that a step costs a few launches. Rows that
// end early are computed to the end of their meta-context, unreported.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/memory_budget.h"
#include "engine/model/checkpoint.h"

namespace photon {

struct CudaEngineOptions {
  enum class Compute {
    kBF16,  // bf16 weights, activations and cache; fp32 sums, residual stream and statistics
    kF32,   // fp32 throughout, products included
  };
  enum class Quantization {
    kNone,
    // Weights of the stacks, converters and linear chunkers in e4m3, with an fp32 scale for each
    // output; where a step has more than a few rows, the inputs of their products too, with one for
    // each row. Sums, residual stream, cache, embeddings and head as without. Products whose sizes
    // are not multiples of 16 stay in bf16. With kBF16, on compute capability 9.0.
    kFp8,
  };
  int device = 0;  // as CUDA numbers them
  Compute compute = Compute::kBF16;
  Quantization quantization = Quantization::kNone;
  // The latent pool. A share is one of what the weights and everything else leave free.
  MemoryBudget kv_memory = MemoryBudget::ShareOfFree(0.9);
  int page_tokens = 256;          // rounded up to whole meta-contexts
  int max_rows = 256;             // rows of one step
  int max_prefill_tokens = 8192;  // of one step, at least one meta-context
  bool use_graphs = true;         // false: launch every kernel for itself
  // Called as graphs are recorded: how many are, of how many, and the device memory they take.
  using OnRecorded = std::function<void(int recorded, int total, int64_t bytes)>;
  OnRecorded on_recorded;
};

// GPUs that this process sees; at least one.
// kNotFound: no driver, one too old for the module, or no GPU. kInternal: the driver failed.
absl::StatusOr<int> CountCudaDevices();

// Uploads the weights and records the graphs, which takes seconds; `checkpoint` may be dropped
// afterwards.
// kFailedPrecondition: no driver, no such device, or one too old, or without what `quantization`
// needs.
// kInvalidArgument: an option out of range, or a checkpoint beyond a limit of the kernels.
// kResourceExhausted: too little memory, saying what was needed for what, and what was free.
absl::StatusOr<std::unique_ptr<Engine>> CreateCudaEngine(const Checkpoint& checkpoint,
                                                         const CudaEngineOptions& options);

}  // namespace photon
