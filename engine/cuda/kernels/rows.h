// Moving rows: embeddings into the residual stream, states between buffers, states from and to
// pages. Widths and strides are multiples of kRowElements.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

// out[i] = table[token(i)] * scale, token(i) = tokens[i / group * stride + i % group].
//   table [vocab, width], out [rows, width]
template <typename T>
cudaError_t LaunchEmbed(const int32_t* tokens, int group, int64_t stride, const T* table, int width,
                        float scale, float* out, int rows, cudaStream_t stream);

// to[i] = from[i], rows `from_stride` and `to_stride` apart.
cudaError_t LaunchCopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                           int width, int rows, cudaStream_t stream);

// Top states live in pages: that of page p is at latents + p * page_stride (floats).
// out[i] = top state of page pages[i], or `start` where pages[i] < 0.   out [rows, width]
cudaError_t LaunchLoadLatents(const int32_t* pages, const float* latents, int64_t page_stride,
                              const float* start, int width, float* out, int rows,
                              cudaStream_t stream);
// Top state of page pages[i] = states[i], where pages[i] >= 0. No page is named twice.
//   pages  on the device or in page-locked host memory; states [rows, width]
cudaError_t LaunchStoreLatents(const float* states, const int32_t* pages, float* latents,
                               int64_t page_stride, int width, int rows, cudaStream_t stream);

}  // namespace photon::cuda
