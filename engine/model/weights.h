// The parameters of a PHOTON model, as views into a mapped checkpoint.
//
// Every field says its shape. Linear maps are row-major [out, in]. Views that a config leaves out
// are empty. Notation: docs/model.md.
#pragma once

#include <functional>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/tensor.h"

namespace photon {

struct LayerWeights {
  TensorView attn_norm;  // [hidden]
  TensorView wq;         // [num_heads * head_dim, hidden]
  TensorView wk;         // [num_kv_heads * head_dim, hidden]
  TensorView wv;         // [num_kv_heads * head_dim, hidden]
  TensorView wo;         // [hidden, num_heads * head_dim]
  TensorView q_norm;     // [head_dim], with qk_norm
  TensorView k_norm;     // [head_dim], with qk_norm
  TensorView ffn_norm;   // [hidden]
  TensorView w_gate;     // [intermediate, hidden]
  TensorView w_up;       // [intermediate, hidden]
  TensorView w_down;     // [hidden, intermediate]
};

struct StackWeights {
  std::vector<LayerWeights> layers;
  TensorView norm;  // [hidden]
};

// Names "levels.<i>.chunker.*"; D = chunker_unit_width(i), C = chunk_size.
struct ChunkerWeights {
  TensorView in_norm;   // [D] for `unit`, [C * D] for `concat`
  TensorView weight;    // [D_l, C * D], type `linear` only
  TensorView bias;      // [D_l]
  TensorView out_norm;  // [D_l]
};

// Names "levels.<i>.converter.*".
struct ConverterWeights {
  TensorView in_norm;   // [D_l]
  TensorView weight;    // [R * D_{l-1}, D_l]
  TensorView bias;      // [R * D_{l-1}]
  TensorView conv;      // [D_{l-1}, 3], kernel 3 only; column 1 is the position itself
  TensorView out_norm;  // [D_{l-1}]
};

struct LevelWeights {
  ChunkerWeights chunker;
  StackWeights encoder;
  ConverterWeights converter;
  StackWeights decoder;
};

struct ModelWeights {
  TensorView encoder_embedding;  // [vocab, E], with encoder_embedding_dim
  TensorView embedding;          // [vocab, D_0]
  std::vector<LevelWeights> levels;
  TensorView start_latent;  // [D_L]
  TensorView final_norm;    // [D_0], with final_norm
  TensorView lm_head;       // [vocab, D_0], unless tied
};

// Calls `visit` for every tensor that a checkpoint of `config` holds, and no other, in a fixed
// order, with the view in `weights` that stands for it. Sizes `weights.levels` and their layers.
void ForEachTensor(const ModelConfig& config, ModelWeights& weights,
                   const std::function<void(TensorSpec spec, TensorView& view)>& visit);

}  // namespace photon
