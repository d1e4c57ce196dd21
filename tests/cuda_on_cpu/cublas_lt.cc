// The products of cuBLASLt by their definition, added up in double precision.
#include <vector>

#include "cublasLt.h"
#include "cuda_bf16.h"
#include "cuda_fp8.h"

struct CublasLtOnCpu {};
struct CublasLtPreferenceOnCpu {};
struct CublasLtLayoutOnCpu {
  cudaDataType_t type;
  int64_t rows, columns, stride;
};
struct CublasLtMatmulOnCpu {
  cublasOperation_t transpose_w = CUBLAS_OP_N, transpose_a = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
  int32_t w_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int32_t a_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const float *w_scales = nullptr, *a_scales = nullptr;
};

namespace {

double FromE4M3(__nv_fp8_e4m3 value) {
  const int exponent = value.__x >> 3 & 15, mantissa = value.__x & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return value.__x & 0x80 ? -magnitude : magnitude;
}

double At(const void* data, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(data)[i];
  if (type == CUDA_R_8F_E4M3) return FromE4M3(static_cast<const __nv_fp8_e4m3*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

// The columns that a product runs over, one after the other.
std::vector<double> Columns(const void* data, const CublasLtLayoutOnCpu& layout) {
  std::vector<double> columns;
  columns.reserve(layout.columns * layout.rows);
  for (int64_t c = 0; c < layout.columns; ++c) {
    for (int64_t i = 0; i < layout.rows; ++i) {
      columns.push_back(At(data, layout.type, c * layout.stride + i));
    }
  }
  return columns;
}

// What cuBLASLt's documentation asks of e4m3 matrices on Hopper, where each column has a scale.
bool Supports(const CublasLtMatmulOnCpu& product, const CublasLtLayoutOnCpu& w,
              const CublasLtLayoutOnCpu& a, const CublasLtLayoutOnCpu& y) {
  if (w.type != CUDA_R_8F_E4M3) return a.type == w.type && product.w_scales == nullptr;
  return a.type == CUDA_R_8F_E4M3 && y.type == CUDA_R_16BF && w.rows % 16 == 0 &&
         w.columns % 16 == 0 && product.epilogue == CUBLASLT_EPILOGUE_DEFAULT &&
         product.w_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F &&
         product.a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F &&
         product.w_scales != nullptr && product.a_scales != nullptr;
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new CublasLtOnCpu;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t,
                                        cudaDataType_t) {
  *product = new CublasLtMatmulOnCpu;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete product;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  const auto set = [&](auto& field) {
    if (bytes != sizeof(field)) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(product->transpose_w);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(product->transpose_a);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(product->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(product->bias);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return set(product->w_scale_mode);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return set(product->a_scale_mode);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return set(product->w_scales);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return set(product->a_scales);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: {
      cudaDataType_t type{};
      const cublasStatus_t status = set(type);
      return type == CUDA_R_32F ? status : CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  *layout = new CublasLtLayoutOnCpu{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns),
                                    stride};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new CublasLtPreferenceOnCpu;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t w, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t y,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  const bool fits = product->transpose_w == CUBLAS_OP_T && product->transpose_a == CUBLAS_OP_N &&
                    w->rows == a->rows && w->columns == y->rows && a->columns == y->columns;
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  if (!Supports(*product, *w, *a, *y)) return CUBLAS_STATUS_NOT_SUPPORTED;
  *results = {};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void* alpha,
                              const void* w, cublasLtMatrixLayout_t w_layout, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* beta, const void*,
                              cublasLtMatrixLayout_t, void* y, cublasLtMatrixLayout_t y_layout,
                              const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t stream) {
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  const float* bias = product->epilogue == CUBLASLT_EPILOGUE_BIAS ? product->bias : nullptr;
  if (!Supports(*product, *w_layout, *a_layout, *y_layout)) return CUBLAS_STATUS_NOT_SUPPORTED;
  cuda_on_cpu::Enqueue(stream, [=, w_scales = product->w_scales, a_scales = product->a_scales,
                                w_layout = *w_layout, a_layout = *a_layout, y_layout = *y_layout] {
    const std::vector<double> weights = Columns(w, w_layout), inputs = Columns(a, a_layout);
    const int64_t k = w_layout.rows;
    for (int64_t n = 0; n < w_layout.columns; ++n) {
      for (int64_t row = 0; row < a_layout.columns; ++row) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) sum += weights[n * k + i] * inputs[row * k + i];
        if (w_scales != nullptr) sum *= double{w_scales[n]} * a_scales[row];
        const int64_t to = row * y_layout.stride + n;
        double value = scale * sum + (bias == nullptr ? 0 : bias[n]);
        if (keep != 0) value += keep * At(y, y_layout.type, to);
        if (y_layout.type == CUDA_R_32F) {
          static_cast<float*>(y)[to] = static_cast<float>(value);
        } else {
          static_cast<__nv_bfloat16*>(y)[to] = __nv_bfloat16(static_cast<float>(value));
        }
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}
