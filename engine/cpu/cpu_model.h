// A checkpoint's parameters, packed for the CPU.
#pragma once

#include <span>
#include <vector>

#include "engine/cpu/level_modules.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace photon {

// Largest batches that the model's modules are asked for; sizes their scratch.
struct BatchLimits {
  int max_rows = 0;           // sequences that decode together
  int max_encode_tokens = 0;  // tokens encoded together, a multiple of P_L
};

template <typename T>
struct CpuLevel {
  Chunker<T> chunker;
  TransformerStack<T> encoder;
  Converter<T> converter;
  TransformerStack<T> decoder;
};

template <typename T>
class CpuModel {
 public:
  // Rows of one call of Logits().
  static constexpr int kMaxLogitsRows = 64;

  // Keeps views of the embedding tables: `weights` must outlive the model.
  CpuModel(const ModelConfig& config, const ModelWeights& weights, const BatchLimits& limits,
           const CpuContext<T>& context);

  const ModelConfig& config() const { return config_; }
  std::vector<CpuLevel<T>>& levels() { return levels_; }
  const std::vector<float>& start_latent() const { return start_latent_; }
  const Linear<T>& head() const { return head_; }

  // out [E], out [D_0].
  void EmbedForEncoder(TokenId token, float* out) const;
  void EmbedForDecoder(TokenId token, float* out) const;

  // W_head * RMSNorm_final(Y[0]): predictions [n, D_0] -> logits [n, vocab_size]; n <=
  // kMaxLogitsRows.
  void Logits(const float* predictions, int n, float* logits);

 private:
  ModelConfig config_;
  CpuContext<T> context_;
  TensorView encoder_embedding_, embedding_;
  float encoder_scale_ = 1, decoder_scale_ = 1;
  std::vector<CpuLevel<T>> levels_;
  std::vector<float> start_latent_, final_norm_;
  Linear<T> head_;
  int64_t act_stride_ = 0;
  AlignedBuffer<T> act_;  // [kMaxLogitsRows, act_stride_]
};

}  // namespace photon
