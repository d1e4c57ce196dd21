// y = a W^T for many rows, by cuBLASLt.
//
// The algorithm is the first that cuBLASLt's heuristic names for the shape, so the same shape gives
// the same bits in every run. Another number of rows may take another algorithm, and round
// differently.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/kernels/quantised_rows.h"

namespace photon::cuda {

// W [n, k] on the device, rows k apart: T, or e4m3 with a scale for each row. n and k are multiples
// of kRowElements, of e4m3 of kQuantisedElements; what the model does not fill is zero.
template <typename T>
struct Matrix {
  const T* data = nullptr;  // null where it is quantised
  int n = 0;
  int k = 0;
  const float* bias = nullptr;  // [n], or null
  QuantisedRows quantised;

  bool is_quantised() const { return quantised.data != nullptr; }
};

// What cuBLASLt wants the sizes of e4m3 matrices to be a multiple of: 16 bytes.
inline constexpr int kQuantisedElements = 16;

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
  // y[rows, n] = a[rows, k] W^T of a quantised W, without its bias: cuBLASLt takes none in fp32
  // here. e4m3 by e4m3, fp32 accumulation, each element then times the scales of its row and
  // column.
  void Run(Work& work, const Matrix<__nv_bfloat16>& w, const QuantisedRows& a, int rows,
           __nv_bfloat16* y);
  // Chooses the algorithms of all products of a quantised W with first_rows to last_rows rows.
  // kFailedPrecondition: cuBLASLt has none.
  absl::Status Prepare(const Matrix<__nv_bfloat16>& w, int first_rows, int last_rows);

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
  // Vectors that a product of this shape takes, where it takes any.
  struct Vectors {
    const float* bias = nullptr;
    const float *w_scales = nullptr, *a_scales = nullptr;
  };

  MatrixProduct() = default;
  static Shape QuantisedShape(const Matrix<__nv_bfloat16>& w, int rows);
  // `vectors` are any that a product of this shape takes.
  absl::StatusOr<const Plan*> PlanFor(const Shape& shape, const Vectors& vectors);
  void Run(Work& work, const Shape& shape, const Vectors& vectors, const void* w, const void* a,
           bool add, void* y);

  UniqueHandle<cublasLtHandle_t, cublasLtDestroy> handle_;
  UniqueHandle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference_;
  DeviceBuffer<std::byte> workspace_;
  std::map<Shape, Plan> plans_;
};

}  // namespace photon::cuda
