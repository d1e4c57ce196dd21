// Attention over the pages where rows follow each other in their sequences, as in a prefill:
// sixteen rows at a time, on the tensor cores. Part of paged_attention.h, whose
// LaunchPagedAttention() chooses it.
//
// The scheme of FlashAttention-2 (Dao, "FlashAttention-2: Faster Attention with Better Parallelism
// and Work Partitioning", 2023). Queries and weights are rounded to bf16 on their way into the
// products; scores, sums and values are fp32.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

// Heads are multiples of four elements, up to this many.
inline constexpr int kMaxTiledHeadDim = 128;

// As LaunchPagedAttention(), for keys and values that are finite.
cudaError_t LaunchTiledAttention(const AttentionShape& shape, const __nv_bfloat16* qkv,
                                 int64_t qkv_stride, const KvLayer<__nv_bfloat16>& kv,
                                 const RowPositions& rows, int n, __nv_bfloat16* out,
                                 int64_t out_stride, cudaStream_t stream);

}  // namespace photon::cuda
