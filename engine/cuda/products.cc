#include "engine/cuda/products.h"

#include <algorithm>
#include <type_traits>

#include "engine/cuda/kernels/rms_norm.h"
#include "engine/cuda/kernels/skinny_product.h"
#include "engine/cuda/kernels/swiglu.h"

namespace photon::cuda {
namespace {

template <typename T>
constexpr bool kIsBF16 = std::is_same_v<T, __nv_bfloat16>;

// Few rows have a kernel of their own, which cuBLASLt's products leave far behind: it reads the
// weights once and does everything around them.
template <typename T>
bool IsSkinny(int rows) {
  return kIsBF16<T> && rows <= kMaxSkinnyRows;
}

template <typename Out>
void SkinnyProduct(const Compute<__nv_bfloat16>& compute, const Matrix<__nv_bfloat16>& w,
                   const SkinnyInput& input, int rows, bool add, Out* y) {
  compute.work.Run("skinny_product", [&](cudaStream_t stream) {
    if (!w.is_quantised()) {
      const SkinnyWeights<__nv_bfloat16> weights{
          .data = w.data, .n = w.n, .k = w.k, .bias = w.bias};
      return LaunchSkinnyProduct(weights, input, rows, add, y, stream);
    }
    const SkinnyWeights<__nv_fp8_e4m3> weights{
        .data = w.quantised.data, .n = w.n, .k = w.k, .scales = w.quantised.scales, .bias = w.bias};
    return LaunchSkinnyProduct(weights, input, rows, add, y, stream);
  });
}

void SkinnyGatedProduct(const Compute<__nv_bfloat16>& compute, const Matrix<__nv_bfloat16>& w,
                        const SkinnyInput& input, int rows, __nv_bfloat16* out) {
  compute.work.Run("skinny_product", [&](cudaStream_t stream) {
    if (!w.is_quantised()) {
      const SkinnyWeights<__nv_bfloat16> weights{.data = w.data, .n = w.n, .k = w.k};
      return LaunchSkinnyGatedProduct(weights, input, rows, out, stream);
    }
    const SkinnyWeights<__nv_fp8_e4m3> weights{
        .data = w.quantised.data, .n = w.n, .k = w.k, .scales = w.quantised.scales};
    return LaunchSkinnyGatedProduct(weights, input, rows, out, stream);
  });
}

template <typename T>
void Norm(const Compute<T>& compute, const Matrix<T>& w, const NormedRows<T>& in, int rows) {
  compute.work.Run("rms_norm", [&](cudaStream_t stream) {
    return LaunchRmsNorm(in.x, w.k, in.norm, in.width, in.eps, compute.scratch.act.data(), w.k,
                         rows, stream);
  });
}

QuantisedRows QuantisedAct(const Compute<__nv_bfloat16>& compute) {
  return {compute.scratch.quantised_act.data(), compute.scratch.act_scales.data()};
}

QuantisedRows QuantisedNorm(const Compute<__nv_bfloat16>& compute,
                            const NormedRows<__nv_bfloat16>& in, int rows) {
  const QuantisedRows act = QuantisedAct(compute);
  compute.work.Run("quantised_rms_norm", [&](cudaStream_t stream) {
    return LaunchQuantisedRmsNorm({in.x, in.pending, in.sum}, in.norm, in.width, in.eps, act, rows,
                                  stream);
  });
  return act;
}

// scratch.wide = scratch.act W^T
const __nv_bfloat16* QuantisedProduct(const Compute<__nv_bfloat16>& compute,
                                      const Matrix<__nv_bfloat16>& w, int rows) {
  const QuantisedRows act = QuantisedAct(compute);
  compute.work.Run("quantise_rows", [&](cudaStream_t stream) {
    return LaunchQuantiseRows(compute.scratch.act.data(), w.k, act, rows, stream);
  });
  compute.product.Run(compute.work, w, act, rows, compute.scratch.wide.data());
  return compute.scratch.wide.data();
}

// y = scratch.wide (+ bias)
void Widen(const Compute<__nv_bfloat16>& compute, const Matrix<__nv_bfloat16>& w, int rows,
           float* y) {
  compute.work.Run("add_rows", [&](cudaStream_t stream) {
    return LaunchAddRows(compute.scratch.wide.data(), w.bias, false, w.n, y, rows, stream);
  });
}

}  // namespace

template <typename T>
void ScratchSize::AddProduct(const Matrix<T>& w, int rows) {
  const int64_t product_rows = ProductRows(rows);
  act = std::max(act, product_rows * w.k);
  if (!w.is_quantised()) return;
  quantised_act = std::max(quantised_act, product_rows * w.k);
  act_scales = std::max(act_scales, product_rows);
  wide = std::max(wide, product_rows * w.n);
}

template <typename T>
Scratch<T> ScratchSize::Allocate(DeviceAllocator& allocator) const {
  Scratch<T> scratch;
  scratch.act = allocator.Allocate<T>(act, "activations");
  scratch.quantised_act = allocator.Allocate<__nv_fp8_e4m3>(quantised_act, "activations in e4m3");
  scratch.act_scales = allocator.Allocate<float>(act_scales, "scales of activations");
  scratch.wide = allocator.Allocate<T>(wide, "products of a layer");
  scratch.expanded = allocator.Allocate<float>(expanded, "products of a converter");
  scratch.partial = allocator.Allocate<float>(partial, "parts of split attention");
  return scratch;
}

template <typename T>
void Product(const Compute<T>& compute, const Matrix<T>& w, int rows, float* y) {
  const T* act = compute.scratch.act.data();
  if constexpr (kIsBF16<T>) {
    if (IsSkinny<T>(rows)) return SkinnyProduct(compute, w, {.act = act}, rows, false, y);
    if (w.is_quantised()) {
      QuantisedProduct(compute, w, rows);
      return Widen(compute, w, rows, y);
    }
  }
  compute.product.Run(compute.work, w, act, rows, false, y);
}

template <typename T>
const T* AddProduct(const Compute<T>& compute, const Matrix<T>& w, int rows, float* x) {
  const T* act = compute.scratch.act.data();
  if constexpr (kIsBF16<T>) {
    if (IsSkinny<T>(rows)) {
      SkinnyProduct(compute, w, {.act = act}, rows, true, x);
      return nullptr;
    }
    if (w.is_quantised()) return QuantisedProduct(compute, w, rows);
  }
  compute.product.Run(compute.work, w, act, rows, true, x);
  return nullptr;
}

template <typename T, typename Out>
void NormedProduct(const Compute<T>& compute, const Matrix<T>& w, const NormedRows<T>& in, int rows,
                   Out* y) {
  if constexpr (kIsBF16<T>) {
    if (IsSkinny<T>(rows)) {
      const SkinnyInput input{.x = in.x, .norm = in.norm, .width = in.width, .eps = in.eps};
      return SkinnyProduct(compute, w, input, rows, false, y);
    }
    if (w.is_quantised()) {
      const QuantisedRows act = QuantisedNorm(compute, in, rows);
      if constexpr (kIsBF16<Out>) {
        return compute.product.Run(compute.work, w, act, rows, y);
      } else {
        compute.product.Run(compute.work, w, act, rows, compute.scratch.wide.data());
        return Widen(compute, w, rows, y);
      }
    }
  }
  Norm(compute, w, in, rows);
  compute.product.Run(compute.work, w, compute.scratch.act.data(), rows, false, y);
}

template <typename T>
const T* AddFeedForward(const Compute<T>& compute, const Matrix<T>& gate_up, const Matrix<T>& down,
                        const NormedRows<T>& in, int rows, int width, float* x) {
  T *act = compute.scratch.act.data(), *wide = compute.scratch.wide.data();
  if constexpr (kIsBF16<T>) {
    if (IsSkinny<T>(rows)) {
      const SkinnyInput input{.x = in.x, .norm = in.norm, .width = in.width, .eps = in.eps};
      SkinnyGatedProduct(compute, gate_up, input, rows, act);
      return AddProduct(compute, down, rows, x);
    }
    if (gate_up.is_quantised()) {
      const QuantisedRows quantised = QuantisedNorm(compute, in, rows);
      compute.product.Run(compute.work, gate_up, quantised, rows, wide);
      compute.work.Run("quantised_swiglu", [&](cudaStream_t stream) {
        return LaunchQuantisedSwiGlu(wide, down.k, quantised, rows, stream);
      });
      compute.product.Run(compute.work, down, quantised, rows, wide);
      return wide;
    }
  }
  Norm(compute, gate_up, in, rows);
  compute.product.Run(compute.work, gate_up, act, rows, false, wide);
  compute.work.Run(
      "swiglu", [&](cudaStream_t stream) { return LaunchSwiGlu(wide, width, act, rows, stream); });
  return AddProduct(compute, down, rows, x);
}

template <typename T>
void AddPending(const Compute<T>& compute, const T* pending, int width, int rows, float* x) {
  if constexpr (kIsBF16<T>) {
    if (pending == nullptr) return;
    compute.work.Run("add_rows", [&](cudaStream_t stream) {
      return LaunchAddRows(pending, nullptr, true, width, x, rows, stream);
    });
  }
}

#define PHOTON_INSTANTIATE(T)                                                                 \
  template void ScratchSize::AddProduct(const Matrix<T>&, int);                               \
  template Scratch<T> ScratchSize::Allocate(DeviceAllocator&) const;                          \
  template void Product(const Compute<T>&, const Matrix<T>&, int, float*);                    \
  template const T* AddProduct(const Compute<T>&, const Matrix<T>&, int, float*);             \
  template void NormedProduct(const Compute<T>&, const Matrix<T>&, const NormedRows<T>&, int, \
                              float*);                                                        \
  template const T* AddFeedForward(const Compute<T>&, const Matrix<T>&, const Matrix<T>&,     \
                                   const NormedRows<T>&, int, int, float*);                   \
  template void AddPending(const Compute<T>&, const T*, int, int, float*);
PHOTON_INSTANTIATE(float)
PHOTON_INSTANTIATE(__nv_bfloat16)
#undef PHOTON_INSTANTIATE
template void NormedProduct(const Compute<__nv_bfloat16>&, const Matrix<__nv_bfloat16>&,
                            const NormedRows<__nv_bfloat16>&, int, __nv_bfloat16*);

}  // namespace photon::cuda
