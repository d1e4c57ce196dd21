#include "engine/cuda/cuda_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "engine/cuda/kernels/chunk_units.h"
#include "engine/cuda/kernels/expand_vectors.h"
#include "engine/cuda/kernels/local_attention.h"
#include "engine/cuda/kernels/paged_attention.h"
#include "engine/cuda/kernels/rms_norm.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/cuda/kernels/skinny_product.h"
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

}  // namespace

template <typename T>
bool WeightUploader<T>::Quantises(std::initializer_list<int64_t> sizes) const {
  return quantise_ && std::all_of(sizes.begin(), sizes.end(), [](int64_t size) {
           return Padded(size) % kQuantisedElements == 0;
         });
}

template <typename T>
Matrix<T> WeightUploader<T>::Upload(std::span<const TensorView> parts, const Layout& layout) {
  int64_t n = 0;
  for (const TensorView& part : parts) {
    n = (layout.pad_parts ? Padded(n) : n) + part.shape[0];
  }
  const int64_t k = parts[0].shape[1], stride = Padded(k);
  Matrix<T> matrix{.n = static_cast<int>(Padded(n)), .k = static_cast<int>(stride)};
  const int64_t elements = matrix.n * stride;
  DeviceBuffer<T> buffer;
  if (layout.quantise && Quantises({matrix.n, matrix.k})) {
    matrix.quantised = {
        weights_.quantised_matrices
            .emplace_back(allocator_.Allocate<__nv_fp8_e4m3>(elements, "weights"))
            .data(),
        weights_.vectors.emplace_back(allocator_.Allocate<float>(matrix.n, "weights")).data()};
    weights_.quantised.push_back(matrix);
  } else {
    matrix.data =
        weights_.matrices.emplace_back(allocator_.Allocate<T>(elements, "weights")).data();
  }
  if (!allocator_.status().ok()) return matrix;

  std::vector<float> piece;
  int64_t to = 0;
  const int64_t rows_per_piece = std::max<int64_t>(1, kUploadElements / stride);
  for (const TensorView& part : parts) {
    const int64_t row_bytes = k * static_cast<int64_t>(DTypeBytes(part.dtype));
    for (int64_t begin = 0; begin < part.shape[0]; begin += rows_per_piece) {
      const int64_t rows = std::min(rows_per_piece, part.shape[0] - begin);
      piece.assign(rows * stride, 0.0f);
      for (int64_t r = 0; r < rows; ++r) {
        CopyToFloat(part.dtype, part.data + (begin + r) * row_bytes, k, piece.data() + r * stride);
      }
      Send(piece, to + begin, rows, matrix);
    }
    to += layout.pad_parts ? Padded(part.shape[0]) : part.shape[0];
  }
  return matrix;
}

template <typename T>
void WeightUploader<T>::Send(std::span<const float> values, int64_t begin, int64_t rows,
                             const Matrix<T>& to) {
  const auto copy = [&](void* device, const void* host, size_t bytes) {
    allocator_.Update(
        ToStatus(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "upload of weights"));
  };
  if (!to.is_quantised()) {
    std::vector<T> rounded(values.size());
    Round(values, rounded.data());
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): it is this uploader's
    return copy(const_cast<T*>(to.data) + begin * to.k, rounded.data(), rounded.size() * sizeof(T));
  }
  if (unquantised_.size() < static_cast<int64_t>(values.size())) {
    unquantised_ = allocator_.Allocate<float>(
        std::max(kUploadElements, static_cast<int64_t>(values.size())), "weights before e4m3");
    if (!allocator_.status().ok()) return;
  }
  copy(unquantised_.data(), values.data(), values.size_bytes());
  const QuantisedRows place{to.quantised.data + begin * to.k, to.quantised.scales + begin};
  allocator_.Update(
      ToStatus(LaunchQuantisedRmsNorm({.x = unquantised_.data()}, /*norm=*/nullptr, to.k, /*eps=*/0,
                                      place, static_cast<int>(rows), /*stream=*/nullptr),
               "quantisation of weights"));
}

template <typename T>
const float* WeightUploader<T>::UploadVector(const TensorView& vector) {
  return vector.empty() ? nullptr : UploadFloats(ToFloat(vector));
}

template <typename T>
const float* WeightUploader<T>::UploadFloats(std::span<const float> values) {
  const auto size = static_cast<int64_t>(values.size());
  const DeviceBuffer<float>& buffer =
      weights_.vectors.emplace_back(allocator_.Allocate<float>(Padded(size), "weights"));
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
  // All of a stack or nothing, so that what is pending is added by the next norm.
  const int64_t q_dim = int64_t{config_.num_heads} * config_.head_dim;
  const bool quantise = uploader.Quantises(
      {config_.hidden_size, q_dim, q_dim + 2 * kv_dim(), config_.intermediate_size});
  for (const LayerWeights& w : weights.layers) {
    Layer& layer = layers_.emplace_back();
    layer.attn_norm = uploader.UploadVector(w.attn_norm);
    layer.ffn_norm = uploader.UploadVector(w.ffn_norm);
    const TensorView qkv[] = {w.wq, w.wk, w.wv}, gate_up[] = {w.w_gate, w.w_up};
    layer.qkv = uploader.Upload(qkv, {.quantise = quantise});
    layer.out = uploader.Upload(w.wo, quantise);
    layer.gate_up = uploader.Upload(gate_up, {.pad_parts = true, .quantise = quantise});
    layer.down = uploader.Upload(w.w_down, quantise);
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
  const Layer& layer = layers_[0];
  for (const Matrix<T>& product : {layer.qkv, layer.out, layer.gate_up, layer.down}) {
    size.AddProduct(product, rows);
  }
  Max(size.wide, int64_t{ProductRows(rows)} * std::max(layer.qkv.n, layer.gate_up.n));
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
  const T* pending = nullptr;
  const auto normed = [&](const float* norm) -> NormedRows<T> {
    return {x, norm, config_.hidden_size, config_.norm_eps, pending, x};
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
    pending = AddProduct(compute, layer.out, rows, x);
    pending = AddFeedForward(compute, layer.gate_up, layer.down, normed(layer.ffn_norm), rows,
                             config_.intermediate_size, x);
    cache.base += kv.layer_stride;
  }
  AddPending(compute, pending, static_cast<int>(width()), rows, x);
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
  linear_ = uploader.Upload(weights.weight, /*quantise=*/true);
  linear_.bias = uploader.UploadVector(weights.bias);
}

template <typename T>
void Chunker<T>::AddTo(ScratchSize& size, int rows) const {
  size.AddProduct(linear_, rows);
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
  Product(compute, linear_, n, x);
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
      linear_(uploader.Upload(weights.weight, /*quantise=*/true)),
      in_norm_(uploader.UploadVector(weights.in_norm)),
      conv_(uploader.UploadVector(weights.conv)),
      out_norm_(uploader.UploadVector(weights.out_norm)) {
  linear_.bias = uploader.UploadVector(weights.bias);
}

template <typename T>
void Converter<T>::AddTo(ScratchSize& size, int rows) const {
  size.AddProduct(linear_, rows);
  Max(size.expanded, int64_t{ProductRows(rows)} * linear_.n);
}

template <typename T>
void Converter<T>::Forward(const Compute<T>& compute, const float* states, int n, float* x) const {
  float* expanded = compute.scratch.expanded.data();
  const NormedRows<T> in{states, in_norm_, in_width_, norm_eps_};
  NormedProduct(compute, linear_, in, n, expanded);
  compute.work.Run("expand_vectors", [&](cudaStream_t stream) {
    return LaunchExpandVectors(expanded, num_vectors_, out_width_, conv_, out_norm_, norm_eps_, x,
                               n, stream);
  });
}

template <typename T>
CudaModel<T>::CudaModel(const ModelConfig& config, const ModelWeights& weights, bool quantise,
                        DeviceAllocator& allocator)
    : config_(config) {
  WeightUploader<T> uploader(quantise, allocator);
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
  weights_ = uploader.Take();
}

template <typename T>
absl::Status CudaModel<T>::PrepareProducts([[maybe_unused]] MatrixProduct& product,
                                           [[maybe_unused]] int max_rows) const {
  absl::Status status;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    for (const Matrix<T>& w : weights_.quantised) {
      status.Update(product.Prepare(w, kMaxSkinnyRows + 1, max_rows));
    }
  }
  return status;
}

template <typename T>
void CudaModel<T>::AddLogitsTo(ScratchSize& size, int rows) const {
  size.AddProduct(head_, rows);
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
  const NormedRows<T> in{predictions, final_norm_, config_.embedding_dim,
                         config_.levels[0].decoder.norm_eps};
  NormedProduct(compute, head_, in, n, logits);
}

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
