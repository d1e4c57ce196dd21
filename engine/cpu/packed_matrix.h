// A weight matrix laid out for the CPU's matrix product.
#pragma once

#include <span>
#include <vector>

#include "engine/cpu/aligned_buffer.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/model/tensor.h"

namespace photon {

// W [n, k] (out, in) as panels of kPanelColumns outputs, each contiguous so that a product streams
// it once. Inside a panel: for float [k][kPanelColumns]; for BFloat16 [k / 2][kPanelColumns][2], k
// rounded up. What the shape does not fill is zero.
template <typename T>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // Stacks `parts` [n_i, k] along the outputs; any DType, rounded to T.
  PackedMatrix(std::span<const TensorView> parts, ThreadPool& pool);

  int n() const { return n_; }
  int k() const { return k_; }
  int num_panels() const { return (n_ + kPanelColumns - 1) / kPanelColumns; }
  const T* panels() const { return panels_.data(); }
  int64_t bytes() const { return panels_.size() * static_cast<int64_t>(sizeof(T)); }

 private:
  int n_ = 0;
  int k_ = 0;
  AlignedBuffer<T> panels_;
};

// y = W x + b for many rows.
template <typename T>
struct Linear {
  PackedMatrix<T> weight;
  std::vector<float> bias;  // [n], or empty

  // y[m, n] (+)= a[m, k] W^T + b. Rows of `a` are `lda` apart, prepared as Kernels<T>::gemm asks.
  void Apply(const Kernels<T>& kernels, ThreadPool& pool, const T* a, int64_t lda, int m, bool add,
             float* y, int64_t ldy) const;
};

}  // namespace photon
