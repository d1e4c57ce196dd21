#include "engine/cuda/matrix_product.h"

#include <bit>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace photon::cuda {
namespace {

// What cuBLASLt's documentation asks for on Hopper.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

absl::Status ToStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusName(status)));
}

// The first error of a list of calls.
template <typename... Statuses>
absl::Status First(Statuses... statuses) {
  absl::Status first;
  (first.Update(statuses), ...);
  return first;
}

template <typename T>
constexpr cudaDataType_t kDataType = CUDA_R_32F;
template <>
constexpr cudaDataType_t kDataType<__nv_bfloat16> = CUDA_R_16BF;
template <>
constexpr cudaDataType_t kDataType<__nv_fp8_e4m3> = CUDA_R_8F_E4M3;

template <typename Value>
absl::Status Set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                 Value value) {
  return ToStatus(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)),
                  "cublasLtMatmulDescSetAttribute");
}

// A row-major [columns, rows] matrix, which cuBLASLt sees as a column-major [rows, columns] one.
template <typename Owner>
absl::Status MakeLayout(cudaDataType_t type, int rows, int columns, Owner& layout) {
  cublasLtMatrixLayout_t raw = nullptr;
  const cublasStatus_t status = cublasLtMatrixLayoutCreate(&raw, type, rows, columns, rows);
  layout.reset(raw);
  return ToStatus(status, "cublasLtMatrixLayoutCreate");
}

}  // namespace

int ProductRows(int rows) {
  if (rows <= 16) return rows;
  // Eight steps from each power of two to the next: at most an eighth is wasted.
  const int step = static_cast<int>(std::bit_floor(static_cast<unsigned>(rows))) / 8;
  return (rows + step - 1) / step * step;
}

absl::StatusOr<std::unique_ptr<MatrixProduct>> MatrixProduct::Create(DeviceAllocator& allocator) {
  std::unique_ptr<MatrixProduct> product(new MatrixProduct);
  cublasLtHandle_t handle = nullptr;
  absl::Status status = ToStatus(cublasLtCreate(&handle), "cublasLtCreate");
  product->handle_.reset(handle);
  cublasLtMatmulPreference_t preference = nullptr;
  status.Update(
      ToStatus(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  product->preference_.reset(preference);
  if (!status.ok()) return status;
  status = ToStatus(
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &kWorkspaceBytes, sizeof(kWorkspaceBytes)),
      "cublasLtMatmulPreferenceSetAttribute");
  if (!status.ok()) return status;
  product->workspace_ =
      allocator.Allocate<std::byte>(kWorkspaceBytes, "workspace of matrix products");
  if (!allocator.status().ok()) return allocator.status();
  return product;
}

absl::StatusOr<const MatrixProduct::Plan*> MatrixProduct::PlanFor(const Shape& shape,
                                                                  const Vectors& vectors) {
  if (const auto found = plans_.find(shape); found != plans_.end()) return &found->second;
  Plan plan;
  cublasLtMatmulDesc_t product = nullptr;
  absl::Status status = ToStatus(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                                 "cublasLtMatmulDescCreate");
  plan.product.reset(product);
  if (!status.ok()) return status;
  // Column-major: y^T [n, rows] = (W^T [k, n])^T a^T [k, rows].
  status = First(Set(product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T),
                 Set(product, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N),
                 MakeLayout(shape.in, shape.k, shape.n, plan.w),
                 MakeLayout(shape.in, shape.k, shape.rows, plan.a),
                 MakeLayout(shape.out, shape.n, shape.rows, plan.y));
  if (shape.has_bias) {
    status.Update(First(Set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS),
                        Set(product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F),
                        Set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vectors.bias)));
  }
  if (shape.in == CUDA_R_8F_E4M3) {
    constexpr int32_t kPerRow = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    status.Update(First(Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kPerRow),
                        Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kPerRow),
                        Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, vectors.w_scales),
                        Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, vectors.a_scales)));
  }
  if (!status.ok()) return status;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  status = ToStatus(cublasLtMatmulAlgoGetHeuristic(handle_.get(), product, plan.w.get(),
                                                   plan.a.get(), plan.y.get(), plan.y.get(),
                                                   preference_.get(), 1, &result, &found),
                    "cublasLtMatmulAlgoGetHeuristic");
  if (!status.ok()) return status;
  if (found == 0) {
    return absl::InternalError(
        absl::StrCat("cublasLt has no algorithm for ", shape.rows, " x ", shape.k, " x ", shape.n));
  }
  plan.algorithm = result.algo;
  return &plans_.emplace(shape, std::move(plan)).first->second;
}

void MatrixProduct::Run(Work& work, const Shape& shape, const Vectors& vectors, const void* w,
                        const void* a, bool add, void* y) {
  if (!work.ok()) return;
  const auto plan = PlanFor(shape, vectors);
  if (!plan.ok()) return work.Update(plan.status());
  const Plan& p = **plan;
  cublasLtMatmulDesc_t product = p.product.get();
  if (vectors.bias != nullptr) {
    work.Update(Set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vectors.bias));
  }
  if (vectors.w_scales != nullptr) {
    work.Update(Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, vectors.w_scales));
    work.Update(Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, vectors.a_scales));
  }
  const float alpha = 1, beta = add ? 1 : 0;
  work.Update(ToStatus(cublasLtMatmul(handle_.get(), product, &alpha, w, p.w.get(), a, p.a.get(),
                                      &beta, y, p.y.get(), y, p.y.get(), &p.algorithm,
                                      workspace_.data(), kWorkspaceBytes, work.stream()),
                       "cublasLtMatmul"));
}

template <typename T, typename Out>
void MatrixProduct::Run(Work& work, const Matrix<T>& w, const T* a, int rows, bool add, Out* y) {
  Run(work,
      {.in = kDataType<T>,
       .out = kDataType<Out>,
       .n = w.n,
       .k = w.k,
       .rows = ProductRows(rows),
       .has_bias = w.bias != nullptr},
      {.bias = w.bias}, w.data, a, add, y);
}

void MatrixProduct::Run(Work& work, const Matrix<__nv_bfloat16>& w, const QuantisedRows& a,
                        int rows, __nv_bfloat16* y) {
  Run(work, QuantisedShape(w, rows), {.w_scales = w.quantised.scales, .a_scales = a.scales},
      w.quantised.data, a.data, false, y);
}

absl::Status MatrixProduct::Prepare(const Matrix<__nv_bfloat16>& w, int first_rows, int last_rows) {
  for (int rows = first_rows; rows <= last_rows; rows = ProductRows(rows) + 1) {
    // Any vectors do: nothing is computed.
    const auto plan = PlanFor(QuantisedShape(w, rows),
                              {.w_scales = w.quantised.scales, .a_scales = w.quantised.scales});
    if (!plan.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "quantization: this GPU or its cuBLASLt (CUDA 12.9 or newer) has no product of e4m3 ",
          "matrices with a scale for each row: ", plan.status().message()));
    }
  }
  return absl::OkStatus();
}

MatrixProduct::Shape MatrixProduct::QuantisedShape(const Matrix<__nv_bfloat16>& w, int rows) {
  return {.in = kDataType<__nv_fp8_e4m3>,
          .out = kDataType<__nv_bfloat16>,
          .n = w.n,
          .k = w.k,
          .rows = ProductRows(rows),
          .has_bias = false};
}

template void MatrixProduct::Run(Work&, const Matrix<float>&, const float*, int, bool, float*);
template void MatrixProduct::Run(Work&, const Matrix<__nv_bfloat16>&, const __nv_bfloat16*, int,
                                 bool, float*);
template void MatrixProduct::Run(Work&, const Matrix<__nv_bfloat16>&, const __nv_bfloat16*, int,
                                 bool, __nv_bfloat16*);

}  // namespace photon::cuda
