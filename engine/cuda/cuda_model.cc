#include "engine/cuda/cuda_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "engine/cuda/kernels/chunk_units.h"
#include "engine/cuda/kernels/expand_vectors.h"
#include "engine/cuda/kernels/local_attention.h"
#include "engine/cuda/kernels/paged_attention.h"
#include "engine/cuda/kernels/rms_norm.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/cuda/kernels/skinny_product.h"
#include "engine/cuda/kernels/swiglu.h"
#include "engine/model/float_bits.h"

namespace photon::cuda {
namespace {

// Parameters are converted and sent in pieces of about this size.
constexpr int64_t kUploadElements = int64_t{4} << 20;

void Round(std::span<const float> values, float* out) {
  std::copy(values.begin(), values.end(), out);
}

void Round(std::span<const float> values, __nv_bfloat16* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = FloatToBF16(values[i]);
    std::memcpy(static_cast<void*>(out + i), &bits, sizeof(bits));
  }
}

void Max(int64_t& largest, int64_t value) {
  largest = std::max(largest, value);
}

// Few rows have a kernel of their own, which cuBLASLt's products leave far behind: it reads the
// weights once and does everything around them.
template <typename T>
bool IsSkinny(int rows) {
  return std::is_same_v<T, __nv_bfloat16> && rows <= kMaxSkinnyRows;
}

// Rows that a product normalises on the way in; without a weight it only rounds them.
struct NormedRows {
  const float* x;
  const float* norm;
  int width;
  float eps;
};

// y = act W^T (+ bias), or y += with `add`.
template <typename T, typename Out>
void Product(const Compute<T>& compute, const Matrix<T>& w, const T* act, int rows, bool add,
             Out* y) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (IsSkinny<T>(rows)) {
      return compute.work.Run("skinny_product", [&](cudaStream_t stream) {
        return LaunchSkinnyProduct(w.data, w.n, w.k, w.bias, {.act = act}, rows, add, y, stream);
      });
    }
  }
  compute.product.Run(compute.work, w, act, rows, add, y);
}

template <typename T>
void Norm(const Compute<T>& compute, const Matrix<T>& w, const NormedRows& in, int rows) {
  compute.work.Run("rms_norm", [&](cudaStream_t stream) {
    return LaunchRmsNorm(in.x, w.k, in.norm, in.width, in.eps, compute.scratch.act.data(), w.k,
                         rows, stream);
  });
}

// y = RMSNorm(x) W^T (+ bias).
template <typename T, typename Out>
void NormedProduct(const Compute<T>& compute, const Matrix<T>& w, const NormedRows& in, int rows,
                   Out* y) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (IsSkinny<T>(rows)) {
      const SkinnyInput input{.x = in.x, .norm = in.norm, .width = in.width, .eps = in.eps};
      return compute.work.Run("skinny_product", [&](cudaStream_t stream) {
        return LaunchSkinnyProduct(w.data, w.n, w.k, w.bias, input, rows, false, y, stream);
      });
    }
  }
  Norm(compute, w, in, rows);
  compute.product.Run(compute.work, w, compute.scratch.act.data(), rows, false, y);
}

// scratch.act = silu(RMSNorm(x) W_gate^T) * (RMSNorm(x) W_up^T), `width` wide.
template <typename T>
void GatedProduct(const Compute<T>& compute, const Matrix<T>& gate_up, const NormedRows& in,
                  int rows, int width) {
  T* act = compute.scratch.act.data();
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (IsSkinny<T>(rows)) {
      const SkinnyInput input{.x = in.x, .norm = in.norm, .width = in.width, .eps = in.eps};
      return compute.work.Run("skinny_product", [&](cudaStream_t stream) {
        return LaunchSkinnyGatedProduct(gate_up.data, gate_up.n, gate_up.k, input, rows, act,
                                        stream);
      });
    }
  }
  Norm(compute, gate_up, in, rows);
  compute.product.Run(compute.work, gate_up, act, rows, false, compute.scratch.wide.data());
  compute.work.Run("swiglu", [&](cudaStream_t stream) {
    return LaunchSwiGlu(compute.scratch.wide.data(), width, act, rows, stream);
  });
}

}  // namespace

template <typename T>
Scratch<T> ScratchSize::Allocate(DeviceAllocator& allocator) const {
  Scratch<T> scratch;
  scratch.act = allocator.Allocate<T>(act, "activations");
  scratch.wide = allocator.Allocate<T>(wide, "products of a layer");
  scratch.expanded = allocator.Allocate<float>(expanded, "products of a converter");
  scratch.partial = allocator.Allocate<float>(partial, "parts of split attention");
  return scratch;
}

template <typename T>
Matrix<T> WeightUploader<T>::Upload(std::span<const TensorView> parts, bool pad_parts) {
  int64_t n = 0;
  for (const TensorView& part : parts) {
    n = (pad_parts ? Padded(n) : n) + part.shape[0];
  }
  const int64_t k = parts[0].shape[1], stride = Padded(k);
  const Matrix<T> matrix{.n = static_cast<int>(Padded(n)), .k = static_cast<int>(stride)};
  DeviceBuffer<T>& buffer =
      matrices_.emplace_back(allocator_.Allocate<T>(matrix.n * stride, "weights"));
  if (!allocator_.status().ok()) return matrix;

  std::vector<float> row(k);
  std::vector<T> piece;
  T* to = buffer.data();
  const int64_t rows_per_piece = std::max<int64_t>(1, kUploadElements / stride);
  for (const TensorView& part : parts) {
    const int64_t row_bytes = k * static_cast<int64_t>(DTypeBytes(part.dtype));
    for (int64_t begin = 0; begin < part.shape[0]; begin += rows_per_piece) {
      const int64_t rows = std::min(rows_per_piece, part.shape[0] - begin);
      piece.assign(rows * stride, T(0.0f));
      for (int64_t r = 0; r < rows; ++r) {
        CopyToFloat(part.dtype, part.data + (begin + r) * row_bytes, k, row.data());
        Round(row, piece.data() + r * stride);
      }
      allocator_.Update(ToStatus(cudaMemcpy(to + begin * stride, piece.data(),
                                            piece.size() * sizeof(T), cudaMemcpyHostToDevice),
                                 "upload of weights"));
    }
    to += (pad_parts ? Padded(part.shape[0]) : part.shape[0]) * stride;
  }
  Matrix<T> result = matrix;
  result.data = buffer.data();
  return result;
}

template <typename T>
const float* WeightUploader<T>::UploadVector(const TensorView& vector) {
  return vector.empty() ? nullptr : UploadFloats(ToFloat(vector));
}

template <typename T>
const float* WeightUploader<T>::UploadFloats(std::span<const float> values) {
  const auto size = static_cast<int64_t>(values.size());
  const DeviceBuffer<float>& buffer =
      vectors_.emplace_back(allocator_.Allocate<float>(Padded(size), "weights"));
  if (allocator_.status().ok()) {
    allocator_.Update(ToStatus(
        cudaMemcpy(buffer.data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
        "upload of weights"));
  }
  return buffer.data();
}

template <typename T>
TransformerStack<T>::TransformerStack(const StackConfig& config, const StackWeights& weights,
                                      int max_positions, WeightUploader<T>& uploader)
    : config_(config), norm_(uploader.UploadVector(weights.norm)) {
  const int half = config_.rope_dims() / 2;
  std::vector<float> cosines(int64_t{max_positions} * half), sines(cosines.size());
  for (int i = 0; i < half; ++i) {
    const double frequency = std::pow(double{config_.rope_theta}, -2.0 * i / config_.rope_dims());
    for (int p = 0; p < max_positions; ++p) {
      cosines[int64_t{p} * half + i] = static_cast<float>(std::cos(p * frequency));
      sines[int64_t{p} * half + i] = static_cast<float>(std::sin(p * frequency));
    }
  }
  const float* device_cosines = uploader.UploadFloats(cosines);
  const float* device_sines = uploader.UploadFloats(sines);
  for (const LayerWeights& w : weights.layers) {
    Layer& layer = layers_.emplace_back();
    layer.attn_norm = uploader.UploadVector(w.attn_norm);
    layer.ffn_norm = uploader.UploadVector(w.ffn_norm);
    const TensorView qkv[] = {w.wq, w.wk, w.wv}, gate_up[] = {w.w_gate, w.w_up};
    layer.qkv = uploader.Upload(qkv);
    layer.out = uploader.Upload(w.wo);
    layer.gate_up = uploader.Upload(gate_up, /*pad_parts=*/true);
    layer.down = uploader.Upload(w.w_down);
    layer.attention = {.num_heads = config_.num_heads,
                       .num_kv_heads = config_.num_kv_heads,
                       .head_dim = config_.head_dim,
                       .rope_dims = config_.rope_dims(),
                       .q_norm = uploader.UploadVector(w.q_norm),
                       .k_norm = uploader.UploadVector(w.k_norm),
                       .norm_eps = config_.norm_eps,
                       .cosines = device_cosines,
                       .sines = device_sines};
  }
}

template <typename T>
void TransformerStack<T>::AddTo(ScratchSize& size, int rows) const {
  const int64_t product_rows = ProductRows(rows);
  const Layer& layer = layers_[0];
  Max(size.act, product_rows * std::max({layer.qkv.k, layer.out.k, layer.down.k}));
  Max(size.wide, product_rows * std::max(layer.qkv.n, layer.gate_up.n));
  Max(size.partial, PagedAttentionPartialElements(config_.num_heads, config_.head_dim));
}

template <typename T>
KvCache<T> TransformerStack<T>::Windows(T* base, int positions) const {
  return {.first_layer = {.base = base, .stride = positions * kv_elements(), .kv_dim = kv_dim()},
          .layer_stride = int64_t{positions} * 2 * kv_dim()};
}

template <typename T>
void TransformerStack<T>::Forward(const Compute<T>& compute, float* x, int contexts,
                                  const RowPositions& positions, const KvCache<T>& kv,
                                  const Output& output) const {
  Work& work = compute.work;
  const int rows = contexts * positions.count;
  T *act = compute.scratch.act.data(), *wide = compute.scratch.wide.data();
  float* partial = compute.scratch.partial.data();
  const auto normed = [&](const float* norm) -> NormedRows {
    return {x, norm, config_.hidden_size, config_.norm_eps};
  };
  KvLayer<T> cache = kv.first_layer;
  for (const Layer& layer : layers_) {
    NormedProduct(compute, layer.qkv, normed(layer.attn_norm), rows, wide);
    if (cache.page_ids == nullptr) {
      work.Run("local_attention", [&](cudaStream_t stream) {
        return LaunchLocalAttention(layer.attention, wide, cache, positions, contexts, act, stream);
      });
    } else {
      work.Run("store_keys_values", [&](cudaStream_t stream) {
        return LaunchStoreKeysValues(layer.attention, wide, cache, positions, rows, stream);
      });
      work.Run("paged_attention", [&](cudaStream_t stream) {
        return LaunchPagedAttention(layer.attention, wide, cache, positions, rows, partial, act,
                                    stream);
      });
    }
    Product(compute, layer.out, act, rows, true, x);
    GatedProduct(compute, layer.gate_up, normed(layer.ffn_norm), rows, config_.intermediate_size);
    Product(compute, layer.down, act, rows, true, x);
    cache.base += kv.layer_stride;
  }
  const int64_t skip = output.last_only ? positions.count : 1;
  work.Run("rms_norm", [&](cudaStream_t stream) {
    return LaunchRmsNorm(x + (skip - 1) * width(), skip * width(), norm_, config_.hidden_size,
                         config_.norm_eps, output.to, output.stride,
                         output.last_only ? contexts : rows, stream);
  });
}

template <typename T>
Chunker<T>::Chunker(const LevelConfig& level, int unit_width, const ChunkerWeights& weights,
                    WeightUploader<T>& uploader)
    : config_(level.chunker),
      chunk_size_(level.chunk_size),
      unit_width_(unit_width),
      out_width_(level.encoder.hidden_size),
      norm_eps_(level.encoder.norm_eps),
      in_norm_(uploader.UploadVector(weights.in_norm)),
      out_norm_(uploader.UploadVector(weights.out_norm)) {
  if (config_.type == ChunkerConfig::Type::kConcat) return;
  linear_ = uploader.Upload(weights.weight);
  linear_.bias = uploader.UploadVector(weights.bias);
}

template <typename T>
void Chunker<T>::AddTo(ScratchSize& size, int rows) const {
  Max(size.act, int64_t{ProductRows(rows)} * linear_.k);
}

template <typename T>
void Chunker<T>::Forward(const Compute<T>& compute, const float* units, int n, float* x) const {
  Work& work = compute.work;
  if (config_.type == ChunkerConfig::Type::kConcat) {
    work.Run("chunk_units", [&](cudaStream_t stream) {
      return LaunchChunkUnits(units, chunk_size_, unit_width_, UnitNorm::kNone, nullptr, 0.0f, x, n,
                              stream);
    });
    return;
  }
  UnitNorm norm = UnitNorm::kNone;
  if (config_.in_norm == ChunkerConfig::InNorm::kUnit) norm = UnitNorm::kUnit;
  if (config_.in_norm == ChunkerConfig::InNorm::kConcat) norm = UnitNorm::kConcat;
  T* act = compute.scratch.act.data();
  work.Run("chunk_units", [&](cudaStream_t stream) {
    return LaunchChunkUnits(units, chunk_size_, unit_width_, norm, in_norm_, norm_eps_, act, n,
                            stream);
  });
  Product(compute, linear_, act, n, false, x);
  if (!config_.out_norm) return;
  work.Run("rms_norm", [&](cudaStream_t stream) {
    return LaunchRmsNorm(x, linear_.n, out_norm_, out_width_, norm_eps_, x, linear_.n, n, stream);
  });
}

template <typename T>
Converter<T>::Converter(const LevelConfig& level, const ConverterWeights& weights,
                        WeightUploader<T>& uploader)
    : in_width_(level.encoder.hidden_size),
      num_vectors_(level.converter_width),
      out_width_(level.decoder.hidden_size),
      norm_eps_(level.decoder.norm_eps),
      linear_(uploader.Upload(weights.weight)),
      in_norm_(uploader.UploadVector(weights.in_norm)),
      conv_(uploader.UploadVector(weights.conv)),
      out_norm_(uploader.UploadVector(weights.out_norm)) {
  linear_.bias = uploader.UploadVector(weights.bias);
}

template <typename T>
void Converter<T>::AddTo(ScratchSize& size, int rows) const {
  const int64_t product_rows = ProductRows(rows);
  Max(size.act, product_rows * linear_.k);
  Max(size.expanded, product_rows * linear_.n);
}

template <typename T>
void Converter<T>::Forward(const Compute<T>& compute, const float* states, int n, float* x) const {
  float* expanded = compute.scratch.expanded.data();
  NormedProduct(compute, linear_, {states, in_norm_, in_width_, norm_eps_}, n, expanded);
  compute.work.Run("expand_vectors", [&](cudaStream_t stream) {
    return LaunchExpandVectors(expanded, num_vectors_, out_width_, conv_, out_norm_, norm_eps_, x,
                               n, stream);
  });
}

template <typename T>
CudaModel<T>::CudaModel(const ModelConfig& config, const ModelWeights& weights,
                        DeviceAllocator& allocator)
    : config_(config) {
  WeightUploader<T> uploader(allocator);
  if (config.scale_embeddings) {
    encoder_scale_ = std::sqrt(static_cast<float>(config.encoder_embedding_width()));
    decoder_scale_ = std::sqrt(static_cast<float>(config.embedding_dim));
  }
  embedding_ = uploader.Upload(weights.embedding);
  encoder_embedding_ =
      config.encoder_embedding_dim ? uploader.Upload(weights.encoder_embedding) : embedding_;
  head_ = config.tie_word_embeddings ? embedding_ : uploader.Upload(weights.lm_head);
  start_latent_ = uploader.UploadVector(weights.start_latent);
  if (config.final_norm) final_norm_ = uploader.UploadVector(weights.final_norm);
  const int meta = config.meta_tokens();
  const int64_t max_metas = (int64_t{config.max_context} + meta - 1) / meta;
  levels_.reserve(config.num_levels());
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    const LevelWeights& w = weights.levels[i];
    const int64_t positions = config.level_grows(i) ? max_metas * (meta / config.tokens_per_unit(i))
                                                    : config.levels[i + 1].chunk_size;
    levels_.push_back(
        {Chunker<T>(level, config.chunker_unit_width(i), w.chunker, uploader),
         TransformerStack<T>(level.encoder, w.encoder, static_cast<int>(positions), uploader),
         Converter<T>(level, w.converter, uploader),
         TransformerStack<T>(level.decoder, w.decoder, level.converter_width + level.chunk_size,
                             uploader)});
  }
  matrices_ = uploader.TakeMatrices();
  vectors_ = uploader.TakeVectors();
}

template <typename T>
void CudaModel<T>::AddLogitsTo(ScratchSize& size, int rows) const {
  Max(size.act, int64_t{ProductRows(rows)} * head_.k);
}

template <typename T>
void CudaModel<T>::EmbedForEncoder(Work& work, const int32_t* tokens, int group, int64_t stride,
                                   int rows, float* out) const {
  work.Run("embed", [&](cudaStream_t stream) {
    return LaunchEmbed(tokens, group, stride, encoder_embedding_.data, encoder_embedding_.k,
                       encoder_scale_, out, rows, stream);
  });
}

template <typename T>
void CudaModel<T>::EmbedForDecoder(Work& work, const int32_t* tokens, int group, int64_t stride,
                                   int rows, float* out) const {
  work.Run("embed", [&](cudaStream_t stream) {
    return LaunchEmbed(tokens, group, stride, embedding_.data, embedding_.k, decoder_scale_, out,
                       rows, stream);
  });
}

template <typename T>
void CudaModel<T>::Logits(const Compute<T>& compute, const float* predictions, int n,
                          float* logits) const {
  NormedProduct(
      compute, head_,
      {predictions, final_norm_, config_.embedding_dim, config_.levels[0].decoder.norm_eps}, n,
      logits);
}

template Scratch<float> ScratchSize::Allocate(DeviceAllocator&) const;
template Scratch<__nv_bfloat16> ScratchSize::Allocate(DeviceAllocator&) const;
template class WeightUploader<float>;
template class WeightUploader<__nv_bfloat16>;
template class TransformerStack<float>;
template class TransformerStack<__nv_bfloat16>;
template class Chunker<float>;
template class Chunker<__nv_bfloat16>;
template class Converter<float>;
template class Converter<__nv_bfloat16>;
template class CudaModel<float>;
template class CudaModel<__nv_bfloat16>;

}  // namespace photon::cuda
