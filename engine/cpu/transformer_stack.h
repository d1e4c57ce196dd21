// A causal pre-norm Transformer stack on the CPU: encoders and decoders of every level.
#pragma once

#include <span>
#include <vector>

#include "engine/cpu/packed_matrix.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

namespace photon {

// What computing needs besides weights. Borrowed by everything that computes.
template <typename T>
struct CpuContext {
  const Kernels<T>& kernels;
  const Kernels<float>& float_kernels;  // same instruction set
  ThreadPool& pool;
};

// Where one causal context keeps its keys and values: all layers of one stack.
// Layer j of position p is as KvLayer says, from base + j * segment_positions * 2 * kv_dim.
template <typename T>
struct KvContext {
  T* base = nullptr;
  const PageId* pages = nullptr;  // null: one segment at `base`
  int64_t page_stride = 0;        // elements from a page to the next
  int segment_positions = 0;      // positions of a page, or of the whole segment
};

// One position of one context.
template <typename T>
struct StackRow {
  KvContext<T> kv;
  int position = 0;
};

template <typename T>
class TransformerStack {
 public:
  // Positions stay below max_positions.
  TransformerStack(const StackConfig& config, const StackWeights& weights, int max_positions,
                   const CpuContext<T>& context);

  const StackConfig& config() const { return config_; }
  int kv_dim() const { return config_.num_kv_heads * config_.head_dim; }
  // Elements of keys and values that one position takes, all layers.
  int64_t kv_elements() const { return int64_t{config_.num_layers} * 2 * kv_dim(); }
  // Bytes of weights that one call reads.
  int64_t weight_bytes() const;

  // Runs x[i] through the stack as position rows[i].position of its context, writes its keys and
  // values, and replaces x[i] by the normalised output. Rows of one context come in order of
  // position; those before the first have their keys and values in place.
  //   x  [rows.size(), hidden_size]
  void Forward(std::span<const StackRow<T>> rows, float* x);

 private:
  struct Layer {
    std::vector<float> attn_norm, q_norm, k_norm, ffn_norm;
    Linear<T> qkv, out, gate_up, down;
    AttentionShape attention;
  };

  void ForwardBlock(std::span<const StackRow<T>> rows, float* x);
  void Attention(const Layer& layer, int index, std::span<const StackRow<T>> rows, float* x);
  void FeedForward(const Layer& layer, int num_rows, float* x);

  StackConfig config_;
  CpuContext<T> context_;
  std::vector<Layer> layers_;
  std::vector<float> norm_;
  std::vector<float> cosines_, sines_;  // [max_positions, rope_dims / 2]
  // Scratch for one block of rows.
  int64_t act_stride_ = 0, wide_stride_ = 0;
  AlignedBuffer<T> act_;         // [kBlockRows, act_stride_] inputs of matrix products
  AlignedBuffer<float> wide_;    // [kBlockRows, wide_stride_] their outputs
  AlignedBuffer<float> scores_;  // [threads, max_positions]
  int max_positions_ = 0;
};

}  // namespace photon
