// Attention inside small causal contexts that live in a step only: decoder windows of R + C
// positions, and blocks of block-span encoders.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

// Each context's next rows.count positions, from rows.first on: normalises and rotates q and k,
// stores k and v, and attends over positions 0 .. p of the context.
//   qkv   [contexts * rows.count, Padded((num_heads + 2 * num_kv_heads) * head_dim)]
//   kv    without page ids; positions before rows.first are in place, as this function has left
//         them: the order of a head's elements there is its own
//   rows  without metas
//   out   [contexts * rows.count, Padded(num_heads * head_dim)]
template <typename T>
cudaError_t LaunchLocalAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int contexts, T* out,
                                 cudaStream_t stream);

}  // namespace photon::cuda
