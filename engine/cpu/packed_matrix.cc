#include "engine/cpu/packed_matrix.h"

#include <algorithm>
#include <vector>

namespace photon {
namespace {

// Weight bytes, or multiply-adds, that one more thread must be given to pay for waking it.
constexpr int64_t kGrainBytes = 1 << 20;
constexpr int64_t kGrainMultiplyAdds = 2 << 20;
// Rows of one task: enough to keep the arithmetic busy, few enough to stay in the second-level
// cache.
constexpr int kTaskRows = 96;

void Round(float value, float& out) {
  out = value;
}
void Round(float value, BFloat16& out) {
  out = ToBFloat16(value);
}

int KStep(const float*) {
  return 1;
}
int KStep(const BFloat16*) {
  return 2;
}

}  // namespace

template <typename T>
PackedMatrix<T>::PackedMatrix(std::span<const TensorView> parts, ThreadPool& pool) {
  k_ = static_cast<int>(parts[0].shape[1]);
  for (const TensorView& part : parts) n_ += static_cast<int>(part.shape[0]);
  const int step = KStep(static_cast<const T*>(nullptr));
  const int steps = (k_ + step - 1) / step;
  const int64_t panel_size = int64_t{steps} * step * kPanelColumns;
  panels_ = AlignedBuffer<T>(num_panels() * panel_size);
  int64_t first = 0;
  for (const TensorView& part : parts) {
    const int64_t rows = part.shape[0];
    pool.ParallelFor(rows, 64, [&](int64_t begin, int64_t end, int) {
      std::vector<float> values(k_);
      for (int64_t r = begin; r < end; ++r) {
        CopyToFloat(part.dtype, part.data + r * k_ * static_cast<int64_t>(DTypeBytes(part.dtype)),
                    k_, values.data());
        const int64_t column = first + r;
        T* panel = panels_.data() + column / kPanelColumns * panel_size;
        for (int i = 0; i < k_; ++i) {
          const int64_t offset =
              (int64_t{i / step} * kPanelColumns + column % kPanelColumns) * step;
          Round(values[i], panel[offset + i % step]);
        }
      }
    });
    first += rows;
  }
}

template <typename T>
void Linear<T>::Apply(const Kernels<T>& kernels, ThreadPool& pool, const T* a, int64_t lda, int m,
                      bool add, float* y, int64_t ldy) const {
  const int panels = weight.num_panels();
  const int row_tasks = (m + kTaskRows - 1) / kTaskRows;
  const float* bias_data = bias.empty() ? nullptr : bias.data();
  const int64_t panel_bytes = weight.bytes() / panels;
  const int64_t task_multiply_adds = int64_t{std::min(m, kTaskRows)} * weight.k() * kPanelColumns;
  const int64_t grain = std::max<int64_t>(
      1, std::min(kGrainBytes / panel_bytes, kGrainMultiplyAdds / task_multiply_adds));
  // Row tasks of one panel are neighbours, so that a thread reads the panel from memory once.
  pool.ParallelFor(int64_t{panels} * row_tasks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      const int panel = static_cast<int>(task / row_tasks);
      const int row = static_cast<int>(task % row_tasks) * kTaskRows;
      kernels.gemm(a + row * lda, lda, std::min(kTaskRows, m - row), weight.panels(), weight.k(),
                   weight.n(), panel, panel + 1, bias_data, add, y + row * ldy, ldy);
    }
  });
}

template class PackedMatrix<float>;
template class PackedMatrix<BFloat16>;
template struct Linear<float>;
template struct Linear<BFloat16>;

}  // namespace photon
