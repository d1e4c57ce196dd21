// Attention over growing contexts, whose keys and values lie in the latent pool's pages.
//
// Two kernels, since a row may attend to keys of other rows of its batch: first every row's keys
// and values are stored, then every row attends. Where rows and heads are too few to fill the
// device, the context of each is split among several blocks, whose results a third kernel merges.
// Where many rows come in runs, tiles of them attend together (tiled_attention.h).
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

// Blocks that the context of one row and head is split among.
int PagedAttentionSplits(int rows, int num_heads);
// Most floats of `partial` that any number of rows needs.
int64_t PagedAttentionPartialElements(int num_heads, int head_dim);

// Normalises and rotates k, and stores k and v of each row at its position.
//   qkv   [n, Padded((num_heads + 2 * num_kv_heads) * head_dim)]
//   kv    with page ids;  rows  with metas
template <typename T>
cudaError_t LaunchStoreKeysValues(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                  const RowPositions& rows, int n, cudaStream_t stream);

// Normalises and rotates q, and attends over positions 0 .. p of the row's context.
//   partial  scratch of PagedAttentionPartialElements() floats
//   out      [n, Padded(num_heads * head_dim)]
template <typename T>
cudaError_t LaunchPagedAttention(const AttentionShape& shape, const T* qkv, const KvLayer<T>& kv,
                                 const RowPositions& rows, int n, float* partial, T* out,
                                 cudaStream_t stream);

}  // namespace photon::cuda
