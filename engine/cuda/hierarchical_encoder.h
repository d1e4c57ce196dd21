// Hierarchical prefill: the bottom-up half of the model. Docs: docs/model.md, "Inference".
#pragma once

#include <vector>

#include "engine/cuda/cuda_model.h"
#include "engine/cuda/latent_pages.h"

namespace photon::cuda {

template <typename T>
class HierarchicalEncoder {
 public:
  // Encodes up to max_metas meta-contexts at a time.
  HierarchicalEncoder(const CudaModel<T>& model, const LatentPages<T>& pages, int max_metas,
                      DeviceAllocator& allocator);

  // Largest needs of this class among those of others. x: floats of the residual stream.
  static void AddTo(const CudaModel<T>& model, int max_metas, ScratchSize& size, int64_t& x);

  // Runs every encoder over whole meta-contexts, in any mix of sequences; those of one sequence in
  // order and without gaps. Writes the growing levels' keys and values, and hands the top states
  // out.
  //   tokens    [metas, P_L] and metas [metas], on the device
  //   page_ids  that `metas` point into, on the device
  //   in_runs   neighbours are mostly of one sequence
  //   x         scratch
  //   states    [metas, Padded(D_L)]
  void Encode(const Compute<T>& compute, const int32_t* tokens, const MetaContext* metas,
              int num_metas, const int32_t* page_ids, bool in_runs, float* x, float* states) const;

 private:
  const CudaModel<T>& model_;
  const LatentPages<T>& pages_;
  std::vector<DeviceBuffer<T>> blocks_;  // per level with block span: the batch's blocks
  DeviceBuffer<float> units_;            // states of one level, input of the next
};

}  // namespace photon::cuda
