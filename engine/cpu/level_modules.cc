#include "engine/cpu/level_modules.h"

#include <algorithm>

namespace photon {
namespace {

int64_t ActStride(int64_t n) {
  return (n + 31) / 32 * 32;
}

std::vector<float> OptionalFloats(const TensorView& tensor) {
  return tensor.empty() ? std::vector<float>() : ToFloat(tensor);
}

template <typename T>
Linear<T> PackWithBias(const TensorView& weight, const TensorView& bias, ThreadPool& pool) {
  return {PackedMatrix<T>(std::span(&weight, 1), pool), OptionalFloats(bias)};
}

}  // namespace

template <typename T>
Chunker<T>::Chunker(const ChunkerConfig& config, const ChunkerWeights& weights, int chunk_size,
                    int unit_width, int out_width, float norm_eps, int max_rows,
                    const CpuContext<T>& context)
    : config_(config),
      context_(context),
      chunk_size_(chunk_size),
      unit_width_(unit_width),
      out_width_(out_width),
      norm_eps_(norm_eps),
      in_norm_(OptionalFloats(weights.in_norm)),
      out_norm_(OptionalFloats(weights.out_norm)) {
  if (config.type == ChunkerConfig::Type::kConcat) return;
  linear_ = PackWithBias<T>(weights.weight, weights.bias, context.pool);
  act_stride_ = ActStride(int64_t{chunk_size} * unit_width);
  act_ = AlignedBuffer<T>(max_rows * act_stride_);
  normalised_.resize(int64_t{chunk_size} * unit_width);
}

template <typename T>
void Chunker<T>::Forward(const float* units, int n, float* out) {
  const int64_t in_width = int64_t{chunk_size_} * unit_width_;
  if (config_.type == ChunkerConfig::Type::kConcat) {
    std::copy_n(units, n * in_width, out);
    return;
  }
  for (int r = 0; r < n; ++r) {
    const float* row = units + r * in_width;
    T* act = act_.data() + r * act_stride_;
    switch (config_.in_norm) {
      case ChunkerConfig::InNorm::kNone:
        context_.kernels.convert(row, in_width, act);
        break;
      case ChunkerConfig::InNorm::kUnit:
        for (int c = 0; c < chunk_size_; ++c) {
          context_.float_kernels.rms_norm(row + c * unit_width_, in_norm_.data(), unit_width_,
                                          norm_eps_, normalised_.data() + c * unit_width_);
        }
        context_.kernels.convert(normalised_.data(), in_width, act);
        break;
      case ChunkerConfig::InNorm::kConcat:
        context_.kernels.rms_norm(row, in_norm_.data(), in_width, norm_eps_, act);
        break;
    }
  }
  linear_.Apply(context_.kernels, context_.pool, act_.data(), act_stride_, n, false, out,
                out_width_);
  if (!config_.out_norm) return;
  for (int r = 0; r < n; ++r) {
    float* row = out + int64_t{r} * out_width_;
    context_.float_kernels.rms_norm(row, out_norm_.data(), out_width_, norm_eps_, row);
  }
}

template <typename T>
Converter<T>::Converter(const ConverterConfig& config, const ConverterWeights& weights,
                        int in_width, int num_vectors, int out_width, float norm_eps, int max_rows,
                        const CpuContext<T>& context)
    : config_(config),
      context_(context),
      in_width_(in_width),
      num_vectors_(num_vectors),
      out_width_(out_width),
      norm_eps_(norm_eps),
      in_norm_(OptionalFloats(weights.in_norm)),
      conv_(OptionalFloats(weights.conv)),
      out_norm_(OptionalFloats(weights.out_norm)),
      linear_(PackWithBias<T>(weights.weight, weights.bias, context.pool)),
      act_stride_(ActStride(in_width)),
      act_(max_rows * act_stride_) {}

template <typename T>
void Converter<T>::Forward(const float* states, int n, float* out) {
  for (int r = 0; r < n; ++r) {
    const float* row = states + int64_t{r} * in_width_;
    T* act = act_.data() + r * act_stride_;
    if (config_.in_norm) {
      context_.kernels.rms_norm(row, in_norm_.data(), in_width_, norm_eps_, act);
    } else {
      context_.kernels.convert(row, in_width_, act);
    }
  }
  const int64_t out_stride = int64_t{num_vectors_} * out_width_;
  linear_.Apply(context_.kernels, context_.pool, act_.data(), act_stride_, n, false, out,
                out_stride);
  for (int r = 0; r < n; ++r) {
    float* vectors = out + r * out_stride;
    if (config_.kernel == 3) Convolve(vectors);
    if (!config_.out_norm) continue;
    for (int v = 0; v < num_vectors_; ++v) {
      float* row = vectors + int64_t{v} * out_width_;
      context_.float_kernels.rms_norm(row, out_norm_.data(), out_width_, norm_eps_, row);
    }
  }
}

// h += depthwise convolution of h along the vectors, kernel 3, zero padding 1.
template <typename T>
void Converter<T>::Convolve(float* vectors) const {
  for (int d = 0; d < out_width_; ++d) {
    const float* kernel = conv_.data() + int64_t{d} * 3;
    float before = 0;
    for (int v = 0; v < num_vectors_; ++v) {
      float& value = vectors[int64_t{v} * out_width_ + d];
      const float here = value;
      const float after = v + 1 < num_vectors_ ? vectors[int64_t{v + 1} * out_width_ + d] : 0.0f;
      value += kernel[0] * before + kernel[1] * here + kernel[2] * after;
      before = here;
    }
  }
}

template class Chunker<float>;
template class Chunker<BFloat16>;
template class Converter<float>;
template class Converter<BFloat16>;

}  // namespace photon
