#include "engine/cpu/transformer_stack.h"

#include <algorithm>
#include <cmath>

namespace photon {
namespace {

// Rows that go through the stack together; bounds the scratch. Later blocks of a context find the
// keys and values of earlier ones in place, so blocks follow one another.
constexpr int64_t kBlockRows = 256;
// Elements that one more thread must be given to pay for waking it.
constexpr int64_t kGrainElements = 16 << 10;

int64_t GrainRows(int64_t elements_per_row) {
  return std::max<int64_t>(1, kGrainElements / elements_per_row);
}

template <typename T>
Linear<T> PackLinear(std::initializer_list<TensorView> parts, ThreadPool& pool) {
  return {PackedMatrix<T>(std::span(parts.begin(), parts.size()), pool), {}};
}

}  // namespace

template <typename T>
TransformerStack<T>::TransformerStack(const StackConfig& config, const StackWeights& weights,
                                      int max_positions, const CpuContext<T>& context)
    : config_(config),
      context_(context),
      norm_(ToFloat(weights.norm)),
      max_positions_(max_positions) {
  layers_.reserve(weights.layers.size());
  for (const LayerWeights& w : weights.layers) {
    Layer& layer = layers_.emplace_back();
    layer.attn_norm = ToFloat(w.attn_norm);
    layer.ffn_norm = ToFloat(w.ffn_norm);
    layer.qkv = PackLinear<T>({w.wq, w.wk, w.wv}, context_.pool);
    layer.out = PackLinear<T>({w.wo}, context_.pool);
    layer.gate_up = PackLinear<T>({w.w_gate, w.w_up}, context_.pool);
    layer.down = PackLinear<T>({w.w_down}, context_.pool);
    if (config_.qk_norm) {
      layer.q_norm = ToFloat(w.q_norm);
      layer.k_norm = ToFloat(w.k_norm);
    }
    layer.attention = {.num_heads = config_.num_heads,
                       .num_kv_heads = config_.num_kv_heads,
                       .head_dim = config_.head_dim,
                       .rope_dims = config_.rope_dims(),
                       .q_norm = config_.qk_norm ? layer.q_norm.data() : nullptr,
                       .k_norm = config_.qk_norm ? layer.k_norm.data() : nullptr,
                       .norm_eps = config_.norm_eps};
  }

  const int half = config_.rope_dims() / 2;
  cosines_.resize(int64_t{max_positions} * half);
  sines_.resize(cosines_.size());
  for (int i = 0; i < half; ++i) {
    const double frequency = std::pow(double{config_.rope_theta}, -2.0 * i / config_.rope_dims());
    for (int p = 0; p < max_positions; ++p) {
      cosines_[int64_t{p} * half + i] = static_cast<float>(std::cos(p * frequency));
      sines_[int64_t{p} * half + i] = static_cast<float>(std::sin(p * frequency));
    }
  }

  const int q_dim = config_.num_heads * config_.head_dim;
  const auto pad = [](int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
  };
  act_stride_ = pad(std::max({config_.hidden_size, q_dim, config_.intermediate_size}), 32);
  wide_stride_ = pad(std::max(q_dim + 2 * kv_dim(), 2 * config_.intermediate_size), 16);
  act_ = AlignedBuffer<T>(kBlockRows * act_stride_);
  wide_ = AlignedBuffer<float>(kBlockRows * wide_stride_);
  scores_ = AlignedBuffer<float>(int64_t{context_.pool.num_threads()} * max_positions);
}

template <typename T>
int64_t TransformerStack<T>::weight_bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers_) {
    for (const Linear<T>* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      bytes += linear->weight.bytes();
    }
  }
  return bytes;
}

template <typename T>
void TransformerStack<T>::Forward(std::span<const StackRow<T>> rows, float* x) {
  for (size_t begin = 0; begin < rows.size(); begin += kBlockRows) {
    const size_t count = std::min<size_t>(kBlockRows, rows.size() - begin);
    ForwardBlock(rows.subspan(begin, count), x + begin * config_.hidden_size);
  }
}

template <typename T>
void TransformerStack<T>::ForwardBlock(std::span<const StackRow<T>> rows, float* x) {
  const int hidden = config_.hidden_size;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Attention(layers_[i], static_cast<int>(i), rows, x);
    FeedForward(layers_[i], static_cast<int>(rows.size()), x);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    float* row = x + r * hidden;
    context_.float_kernels.rms_norm(row, norm_.data(), hidden, config_.norm_eps, row);
  }
}

template <typename T>
void TransformerStack<T>::Attention(const Layer& layer, int index,
                                    std::span<const StackRow<T>> rows, float* x) {
  const Kernels<T>& kernels = context_.kernels;
  const int hidden = config_.hidden_size, num_rows = static_cast<int>(rows.size());
  const int half = config_.rope_dims() / 2;
  context_.pool.ParallelFor(num_rows, GrainRows(hidden), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      kernels.rms_norm(x + r * hidden, layer.attn_norm.data(), hidden, config_.norm_eps,
                       act_.data() + r * act_stride_);
    }
  });
  layer.qkv.Apply(kernels, context_.pool, act_.data(), act_stride_, num_rows, false, wide_.data(),
                  wide_stride_);

  const auto kv_layer = [&](const KvContext<T>& kv) {
    return KvLayer<T>{.base = kv.base + int64_t{index} * kv.segment_positions * 2 * kv_dim(),
                      .pages = kv.pages,
                      .page_stride = kv.page_stride,
                      .segment_positions = kv.segment_positions,
                      .kv_dim = kv_dim()};
  };
  const int64_t qkv_dim = layer.qkv.weight.n();
  context_.pool.ParallelFor(num_rows, GrainRows(qkv_dim), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t angle = int64_t{rows[r].position} * half;
      kernels.rotate_and_store(layer.attention, cosines_.data() + angle, sines_.data() + angle,
                               wide_.data() + r * wide_stride_,
                               kv_layer(rows[r].kv).at(rows[r].position));
    }
  });
  // Every row's keys and values are in place before the first attends.
  int64_t positions = 0;
  for (const StackRow<T>& row : rows) positions += row.position + 1;
  const int64_t elements_per_row = positions * 2 * config_.num_heads * config_.head_dim / num_rows;
  context_.pool.ParallelFor(
      num_rows, GrainRows(elements_per_row), [&](int64_t begin, int64_t end, int thread) {
        for (int64_t r = begin; r < end; ++r) {
          kernels.attend(layer.attention, wide_.data() + r * wide_stride_, kv_layer(rows[r].kv),
                         rows[r].position, scores_.data() + int64_t{thread} * max_positions_,
                         act_.data() + r * act_stride_);
        }
      });
  layer.out.Apply(kernels, context_.pool, act_.data(), act_stride_, num_rows, true, x, hidden);
}

template <typename T>
void TransformerStack<T>::FeedForward(const Layer& layer, int num_rows, float* x) {
  const Kernels<T>& kernels = context_.kernels;
  const int hidden = config_.hidden_size, intermediate = config_.intermediate_size;
  context_.pool.ParallelFor(num_rows, GrainRows(hidden), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      kernels.rms_norm(x + r * hidden, layer.ffn_norm.data(), hidden, config_.norm_eps,
                       act_.data() + r * act_stride_);
    }
  });
  layer.gate_up.Apply(kernels, context_.pool, act_.data(), act_stride_, num_rows, false,
                      wide_.data(), wide_stride_);
  context_.pool.ParallelFor(num_rows, GrainRows(2 * intermediate),
                            [&](int64_t begin, int64_t end, int) {
                              for (int64_t r = begin; r < end; ++r) {
                                kernels.swiglu(wide_.data() + r * wide_stride_, intermediate,
                                               act_.data() + r * act_stride_);
                              }
                            });
  layer.down.Apply(kernels, context_.pool, act_.data(), act_stride_, num_rows, true, x, hidden);
}

template class TransformerStack<float>;
template class TransformerStack<BFloat16>;

}  // namespace photon
