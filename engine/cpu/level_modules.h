// The two linear modules between levels: the chunker, which folds units into one of the level
// above, and the converter, which unfolds a state into conditioning vectors for the decoder below.
#pragma once

#include <vector>

#include "engine/cpu/transformer_stack.h"

namespace photon {

template <typename T>
class Chunker {
 public:
  Chunker(const ChunkerConfig& config, const ChunkerWeights& weights, int chunk_size,
          int unit_width, int out_width, float norm_eps, int max_rows,
          const CpuContext<T>& context);

  int64_t weight_bytes() const { return linear_.weight.bytes(); }

  // units [n, chunk_size, unit_width] -> out [n, out_width]; n <= max_rows.
  void Forward(const float* units, int n, float* out);

 private:
  ChunkerConfig config_;
  CpuContext<T> context_;
  int chunk_size_, unit_width_, out_width_;
  float norm_eps_;
  std::vector<float> in_norm_, out_norm_;
  Linear<T> linear_;
  int64_t act_stride_ = 0;
  AlignedBuffer<T> act_;           // [max_rows, act_stride_]
  std::vector<float> normalised_;  // one row, normalised unit by unit
};

template <typename T>
class Converter {
 public:
  Converter(const ConverterConfig& config, const ConverterWeights& weights, int in_width,
            int num_vectors, int out_width, float norm_eps, int max_rows,
            const CpuContext<T>& context);

  int num_vectors() const { return num_vectors_; }
  int64_t weight_bytes() const { return linear_.weight.bytes(); }

  // states [n, in_width] -> out [n, num_vectors, out_width]; n <= max_rows.
  void Forward(const float* states, int n, float* out);

 private:
  void Convolve(float* vectors) const;

  ConverterConfig config_;
  CpuContext<T> context_;
  int in_width_, num_vectors_, out_width_;
  float norm_eps_;
  std::vector<float> in_norm_, conv_, out_norm_;
  Linear<T> linear_;
  int64_t act_stride_ = 0;
  AlignedBuffer<T> act_;  // [max_rows, act_stride_]
};

}  // namespace photon
