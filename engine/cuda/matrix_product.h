// y = a W^T for many rows, by cuBLASLt.
//
// The algorithm is the first that cuBLASLt's heuristic names for the shape, so the same shape gives
// the same bits in every run. Another number of rows may take another algorithm, and round
// differently.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/device_memory.h"

namespace photon::cuda {

// W [n, k] on the device, rows k apart. n and k are multiples of kRowElements, what the model does
// not fill is zero.
template <typename T>
struct Matrix {
  const T* data = nullptr;
  int n = 0;
  int k = 0;
  const float* bias = nullptr;  // [n], or null
};

// Rows that a product of `rows` rows computes: rounded up so that many numbers of rows share an
// algorithm. The rows beyond hold garbage; buffers of activations have room for them.
int ProductRows(int rows);

class MatrixProduct {
 public:
  static absl::StatusOr<std::unique_ptr<MatrixProduct>> Create(DeviceAllocator& allocator);

  // y[rows, n] = a[rows, k] W^T (+ bias), or y += a W^T with `add`. fp32 accumulation; fp32 inputs
  // are not rounded. Rows of `a` are k apart, rows of `y` n. ProductRows(rows) are read and
  // written.
  template <typename T, typename Out>
  void Run(Work& work, const Matrix<T>& w, const T* a, int rows, bool add, Out* y);

 private:
  struct Plan {
    UniqueHandle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product;
    UniqueHandle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> w, a, y;
    cublasLtMatmulAlgo_t algorithm;
  };
  struct Shape {
    cudaDataType_t in, out;
    int n, k, rows;
    bool has_bias;
    auto operator<=>(const Shape&) const = default;
  };

  MatrixProduct() = default;
  // `bias` is any that a product of this shape takes.
  absl::StatusOr<const Plan*> PlanFor(const Shape& shape, const float* bias);

  UniqueHandle<cublasLtHandle_t, cublasLtDestroy> handle_;
  UniqueHandle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference_;
  DeviceBuffer<std::byte> workspace_;
  std::map<Shape, Plan> plans_;
};

}  // namespace photon::cuda
