// Hierarchical prefill: the bottom-up half of the model. Docs: docs/model.md, "Inference".
#pragma once

#include <span>
#include <vector>

#include "engine/cpu/cpu_model.h"
#include "engine/cpu/latent_pages.h"

namespace photon {

// Whole meta-contexts that follow what a sequence's pages already hold.
struct EncodeJob {
  std::span<const TokenId> tokens;  // a multiple of P_L
  int64_t first_token = 0;          // position of tokens[0] in the sequence, a multiple of P_L
  const PageId* pages = nullptr;    // of the sequence, from its first token on
};

template <typename T>
class HierarchicalEncoder {
 public:
  HierarchicalEncoder(CpuModel<T>& model, LatentPages<T>& pages, const BatchLimits& limits);

  // Runs every encoder over the jobs' tokens, writes the growing levels' keys and values and the
  // top states into the pages.
  void Encode(std::span<const EncodeJob> jobs);

 private:
  // One meta-context of a job.
  struct MetaContext {
    const TokenId* tokens;
    int64_t first_token;
    const PageId* pages;
  };

  void EncodeBatch(std::span<const MetaContext> metas);

  CpuModel<T>& model_;
  LatentPages<T>& pages_;
  int max_metas_;                        // of one batch
  std::vector<KvWindows<T>> blocks_;     // per level with block span: one per block of the batch
  AlignedBuffer<float> units_, states_;  // of the level below, and of this level
  // Of the call that runs; kept, so that it allocates nothing.
  std::vector<MetaContext> metas_;
  std::vector<StackRow<T>> rows_;
};

}  // namespace photon
