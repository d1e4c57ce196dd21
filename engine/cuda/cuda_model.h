// A checkpoint's parameters on the device, and the modules that compute with them.
#pragma once

#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "engine/cuda/cuda_handles.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/kernels/layout.h"
#include "engine/cuda/matrix_product.h"
#include "engine/cuda/products.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace photon::cuda {

// What a model has on the device.
template <typename T>
struct DeviceWeights {
  std::vector<DeviceBuffer<T>> matrices;
  std::vector<DeviceBuffer<__nv_fp8_e4m3>> quantised_matrices;
  std::vector<DeviceBuffer<float>> vectors;
  std::vector<Matrix<T>> quantised;  // that are in them
};

// Copies parameters to the device as T, or e4m3, rows padded with zeros.
template <typename T>
class WeightUploader {
 public:
  // `quantise`: matrices that ask for it, as far as their sizes allow.
  WeightUploader(bool quantise, DeviceAllocator& allocator)
      : quantise_(quantise), allocator_(allocator) {}

  // Whether matrices of these sizes, once padded, may be quantised.
  bool Quantises(std::initializer_list<int64_t> sizes) const;

  struct Layout {
    bool pad_parts = false;  // each part starts at a multiple of kRowElements
    bool quantise = false;   // where Quantises() is true
  };
  // Stacks `parts` [n_i, k] along the outputs.
  Matrix<T> Upload(std::span<const TensorView> parts, const Layout& layout);
  Matrix<T> Upload(const TensorView& weight, bool quantise = false) {
    return Upload(std::span(&weight, 1), {.quantise = quantise});
  }
  // fp32, padded with zeros; null where the checkpoint has none.
  const float* UploadVector(const TensorView& vector);
  const float* UploadFloats(std::span<const float> values);

  DeviceWeights<T> Take() { return std::move(weights_); }

 private:
  // rows [begin, begin + rows) of a matrix, fp32 and padded.
  void Send(std::span<const float> values, int64_t begin, int64_t rows, const Matrix<T>& to);

  const bool quantise_;
  DeviceAllocator& allocator_;
  DeviceWeights<T> weights_;
  DeviceBuffer<float> unquantised_;  // rows on their way to e4m3
};

// Keys and values of all layers of a stack.
template <typename T>
struct KvCache {
  KvLayer<T> first_layer;
  int64_t layer_stride = 0;  // elements from a layer's base to the next one's
};

// A causal pre-norm Transformer stack: encoders and decoders of every level.
template <typename T>
class TransformerStack {
 public:
  TransformerStack(const StackConfig& config, const StackWeights& weights, int max_positions,
                   WeightUploader<T>& uploader);

  int64_t width() const { return Padded(config_.hidden_size); }
  int kv_dim() const { return config_.num_kv_heads * config_.head_dim; }
  // Elements of keys and values that one position takes, all layers.
  int64_t kv_elements() const { return int64_t{config_.num_layers} * 2 * kv_dim(); }
  void AddTo(ScratchSize& size, int rows) const;

  // Cache of contexts of `positions` positions each that live in a step only, at `base`.
  KvCache<T> Windows(T* base, int positions) const;

  // Where the normalised outputs go: all rows, or the last of each context.
  struct Output {
    float* to = nullptr;  // rows `stride` apart
    int64_t stride = 0;
    bool last_only = false;
  };
  // Runs x through the stack as `positions` of `contexts` contexts, and writes their keys and
  // values. x is used up.
  //   x  [contexts * positions.count, width()]
  void Forward(const Compute<T>& compute, float* x, int contexts, const RowPositions& positions,
               const KvCache<T>& kv, const Output& output) const;

 private:
  struct Layer {
    const float *attn_norm, *ffn_norm;
    Matrix<T> qkv, out, gate_up, down;
    AttentionShape attention;
  };

  StackConfig config_;
  std::vector<Layer> layers_;
  const float* norm_;
};

// Folds units into one of the level above.
template <typename T>
class Chunker {
 public:
  Chunker(const LevelConfig& level, int unit_width, const ChunkerWeights& weights,
          WeightUploader<T>& uploader);

  void AddTo(ScratchSize& size, int rows) const;
  // units [n, chunk_size, Padded(unit_width)] -> x [n, Padded(D_l)].
  void Forward(const Compute<T>& compute, const float* units, int n, float* x) const;

 private:
  ChunkerConfig config_;
  int chunk_size_, unit_width_, out_width_;
  float norm_eps_;
  Matrix<T> linear_;
  const float *in_norm_, *out_norm_;
};

// Unfolds a state into conditioning vectors for the decoder below.
template <typename T>
class Converter {
 public:
  Converter(const LevelConfig& level, const ConverterWeights& weights, WeightUploader<T>& uploader);

  int num_vectors() const { return num_vectors_; }
  void AddTo(ScratchSize& size, int rows) const;
  // states [n, Padded(D_l)] -> x [n * num_vectors, Padded(D_{l-1})].
  void Forward(const Compute<T>& compute, const float* states, int n, float* x) const;

 private:
  int in_width_, num_vectors_, out_width_;
  float norm_eps_;
  Matrix<T> linear_;
  const float *in_norm_, *conv_, *out_norm_;
};

template <typename T>
struct Level {
  Chunker<T> chunker;
  TransformerStack<T> encoder;
  Converter<T> converter;
  TransformerStack<T> decoder;
};

template <typename T>
class CudaModel {
 public:
  // With `quantise`, the products of stacks, and of converters and chunkers, have e4m3 weights
  // where all their sizes are multiples of kQuantisedElements. Embeddings and the head are never
  // quantised. Failures are in allocator.status().
  CudaModel(const ModelConfig& config, const ModelWeights& weights, bool quantise,
            DeviceAllocator& allocator);

  const ModelConfig& config() const { return config_; }
  const Level<T>& level(int i) const { return levels_[i]; }
  const float* start_latent() const { return start_latent_; }  // [Padded(D_L)]
  int64_t logits_stride() const { return head_.n; }
  void AddLogitsTo(ScratchSize& size, int rows) const;
  // Whether any product is.
  bool is_quantised() const { return !weights_.quantised.empty(); }
  // Sees to it that quantised products of up to `max_rows` rows can be computed.
  // kFailedPrecondition: they cannot.
  absl::Status PrepareProducts(MatrixProduct& product, int max_rows) const;

  // Row i of `out` [rows, Padded(width)] is the embedding of token
  // tokens[i / group * stride + i % group].
  void EmbedForEncoder(Work& work, const int32_t* tokens, int group, int64_t stride, int rows,
                       float* out) const;
  void EmbedForDecoder(Work& work, const int32_t* tokens, int group, int64_t stride, int rows,
                       float* out) const;
  // W_head * RMSNorm_final(Y[0]): predictions [n, Padded(D_0)] -> logits [n, logits_stride()].
  void Logits(const Compute<T>& compute, const float* predictions, int n, float* logits) const;

 private:
  ModelConfig config_;
  std::vector<Level<T>> levels_;
  Matrix<T> encoder_embedding_, embedding_, head_;
  float encoder_scale_ = 1, decoder_scale_ = 1;
  const float *start_latent_ = nullptr, *final_norm_ = nullptr;
  DeviceWeights<T> weights_;
};

}  // namespace photon::cuda
