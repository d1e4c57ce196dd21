// The chunker's way in: concatenates the units of each group, normalised if asked.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

enum class UnitNorm {
  kNone,
  kUnit,    // RMSNorm of each unit; weight [width]
  kConcat,  // RMSNorm of the concatenation; weight [chunk_size * width]
};

//   units  [groups, chunk_size, Padded(width)]
//   out    [groups, Padded(chunk_size * width)], the concatenation without gaps
template <typename Out>
cudaError_t LaunchChunkUnits(const float* units, int chunk_size, int width, UnitNorm norm,
                             const float* weight, float eps, Out* out, int groups,
                             cudaStream_t stream);

}  // namespace photon::cuda
