// Matrix products with what surrounds them: the norm before, bias, residual and SwiGLU after. Few
// rows go to the kernel that folds all of it in, more to cuBLASLt and kernels around it.
//
// Where weights are quantised, few rows read them as e4m3 and compute in bf16; more rows are
// quantised as well, by the kernel that makes them. Such products come out in bf16 and cannot be
// added to the fp32 stream at once: they stay *pending* until the next norm adds them on its way.
#pragma once

#include <cstdint>

#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/kernels/quantised_rows.h"
#include "engine/cuda/matrix_product.h"

namespace photon::cuda {

// Buffers that modules share: nothing in them outlives a module's call.
template <typename T>
struct Scratch {
  DeviceBuffer<T> act;                        // inputs of matrix products
  DeviceBuffer<__nv_fp8_e4m3> quantised_act;  // likewise
  DeviceBuffer<float> act_scales;             // of their rows
  DeviceBuffer<T> wide;                       // outputs inside a stack
  DeviceBuffer<float> expanded;               // outputs of converters
  DeviceBuffer<float> partial;                // of split attention
};

// Sizes a Scratch: the largest that any module asks for.
struct ScratchSize {
  int64_t act = 0, quantised_act = 0, act_scales = 0, wide = 0, expanded = 0, partial = 0;

  // What a product of `rows` rows takes in; quantised, also what it may put out.
  template <typename T>
  void AddProduct(const Matrix<T>& w, int rows);

  template <typename T>
  Scratch<T> Allocate(DeviceAllocator& allocator) const;
};

// What computing needs besides weights; borrowed.
template <typename T>
struct Compute {
  Work& work;
  MatrixProduct& product;
  const Scratch<T>& scratch;
};

// Rows that a product normalises on the way in; without a weight it only rounds them.
template <typename T>
struct NormedRows {
  const float* x;
  const float* norm;
  int width;
  float eps;
  // Added to x beforehand, the sum put where x is: what AddProduct() or AddFeedForward() returned.
  const T* pending = nullptr;
  float* sum = nullptr;
};

// y = scratch.act W^T (+ bias).
template <typename T>
void Product(const Compute<T>& compute, const Matrix<T>& w, int rows, float* y);

// x += scratch.act W^T; or null is not returned, and that is still to be added.
template <typename T>
[[nodiscard]] const T* AddProduct(const Compute<T>& compute, const Matrix<T>& w, int rows,
                                  float* x);

// y = RMSNorm(x) W^T (+ bias, where Out is float).
template <typename T, typename Out>
void NormedProduct(const Compute<T>& compute, const Matrix<T>& w, const NormedRows<T>& in, int rows,
                   Out* y);

// x += (silu(RMSNorm(x) W_gate^T) * (RMSNorm(x) W_up^T)) W_down^T, `width` wide between; or as
// AddProduct().
template <typename T>
[[nodiscard]] const T* AddFeedForward(const Compute<T>& compute, const Matrix<T>& gate_up,
                                      const Matrix<T>& down, const NormedRows<T>& in, int rows,
                                      int width, float* x);

// x += pending [rows, width], unless it is null.
template <typename T>
void AddPending(const Compute<T>& compute, const T* pending, int width, int rows, float* x);

}  // namespace photon::cuda
