// The forward pass of docs/model.md, written for reading: double precision, one vector at a time,
// no cache, nothing shared with the engine but the checkpoint's tensors.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "engine/model/checkpoint.h"

namespace photon {

// What matrix products but the head's see of each row of their weights, and of each input: rounds
// it in place. Empty: nothing is rounded.
struct Quantisation {
  std::function<void(std::span<double>)> weights = {}, inputs = {};
};

class ReferenceModel {
 public:
  // `checkpoint` must outlive the model.
  explicit ReferenceModel(const Checkpoint& checkpoint, Quantisation quantisation = {})
      : checkpoint_(checkpoint), quantisation_(std::move(quantisation)) {}

  // Logits [tokens.size()][vocab_size]: row i scores token i given the tokens before it.
  std::vector<std::vector<double>> Logits(std::span<const TokenId> tokens);

  // The most probable token after `tokens`.
  TokenId GreedyNext(std::span<const TokenId> tokens);

 private:
  using Vector = std::vector<double>;
  using Vectors = std::vector<Vector>;

  const std::vector<float>& Values(const TensorView& tensor);
  Vector RmsNorm(const Vector& x, const TensorView& weight, double eps);
  // A map's matrix as its products see it.
  const Vector& Matrix(const TensorView& weight);
  Vector Map(const TensorView& weight, const TensorView& bias, Vector x);
  static Vector Product(std::span<const double> matrix, const Vector& x);
  void NormAndRotate(const StackConfig& config, const TensorView& norm, int position, double* head);
  // One causal context, positions from 0.
  Vectors Stack(const StackConfig& config, const StackWeights& weights, Vectors x);
  Vector Chunk(int level, std::span<const Vector> units);
  Vectors Convert(int level, const Vector& state);

  const Checkpoint& checkpoint_;
  const Quantisation quantisation_;
  std::map<const std::byte*, std::vector<float>> values_;
  std::map<const std::byte*, Vector> matrices_;
};

}  // namespace photon
