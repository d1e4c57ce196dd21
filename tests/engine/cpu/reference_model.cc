#include "tests/engine/cpu/reference_model.h"

#include <algorithm>
#include <cmath>

namespace photon {

const std::vector<float>& ReferenceModel::Values(const TensorView& tensor) {
  auto [it, is_new] = values_.try_emplace(tensor.data);
  if (is_new) it->second = ToFloat(tensor);
  return it->second;
}

ReferenceModel::Vector ReferenceModel::RmsNorm(const Vector& x, const TensorView& weight,
                                               double eps) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  const std::vector<float>& w = Values(weight);
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * w[i];
  return out;
}

const ReferenceModel::Vector& ReferenceModel::Matrix(const TensorView& weight) {
  auto [it, is_new] = matrices_.try_emplace(weight.data);
  if (!is_new) return it->second;
  const std::vector<float> values = ToFloat(weight);
  it->second.assign(values.begin(), values.end());
  if (quantisation_.weights) {
    const int64_t width = weight.shape[1];
    for (int64_t row = 0; row < weight.shape[0]; ++row) {
      quantisation_.weights(std::span(it->second).subspan(row * width, width));
    }
  }
  return it->second;
}

ReferenceModel::Vector ReferenceModel::Product(std::span<const double> matrix, const Vector& x) {
  Vector out(matrix.size() / x.size());
  for (size_t o = 0; o < out.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) out[o] += matrix[o * x.size() + i] * x[i];
  }
  return out;
}

ReferenceModel::Vector ReferenceModel::Map(const TensorView& weight, const TensorView& bias,
                                           Vector x) {
  if (quantisation_.inputs) quantisation_.inputs(x);
  Vector out = Product(Matrix(weight), x);
  for (size_t o = 0; o < out.size() && !bias.empty(); ++o) out[o] += Values(bias)[o];
  return out;
}

void ReferenceModel::NormAndRotate(const StackConfig& config, const TensorView& norm, int position,
                                   double* head) {
  if (config.qk_norm) {
    const Vector normalised = RmsNorm(Vector(head, head + config.head_dim), norm, config.norm_eps);
    std::copy(normalised.begin(), normalised.end(), head);
  }
  const int half = config.rope_dims() / 2;
  for (int i = 0; i < half; ++i) {
    const double angle =
        position * std::pow(double{config.rope_theta}, -2.0 * i / config.rope_dims());
    const double a = head[i], b = head[i + half];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

ReferenceModel::Vectors ReferenceModel::Stack(const StackConfig& config,
                                              const StackWeights& weights, Vectors x) {
  const int dim = config.head_dim;
  for (const LayerWeights& layer : weights.layers) {
    Vectors queries, keys, values;
    for (size_t p = 0; p < x.size(); ++p) {
      const Vector h = RmsNorm(x[p], layer.attn_norm, config.norm_eps);
      queries.push_back(Map(layer.wq, {}, h));
      keys.push_back(Map(layer.wk, {}, h));
      values.push_back(Map(layer.wv, {}, h));
      const int position = static_cast<int>(p);
      for (int n = 0; n < config.num_heads; ++n) {
        NormAndRotate(config, layer.q_norm, position, queries[p].data() + n * dim);
      }
      for (int n = 0; n < config.num_kv_heads; ++n) {
        NormAndRotate(config, layer.k_norm, position, keys[p].data() + n * dim);
      }
    }
    for (size_t p = 0; p < x.size(); ++p) {
      Vector mixed(config.num_heads * dim);
      for (int n = 0; n < config.num_heads; ++n) {
        const int kv = n / (config.num_heads / config.num_kv_heads);
        Vector weight(p + 1);
        double total = 0;
        for (size_t s = 0; s <= p; ++s) {
          double dot = 0;
          for (int d = 0; d < dim; ++d) dot += queries[p][n * dim + d] * keys[s][kv * dim + d];
          total += weight[s] = std::exp(dot / std::sqrt(dim));
        }
        for (size_t s = 0; s <= p; ++s) {
          for (int d = 0; d < dim; ++d) {
            mixed[n * dim + d] += weight[s] / total * values[s][kv * dim + d];
          }
        }
      }
      const Vector out = Map(layer.wo, {}, mixed);
      for (size_t i = 0; i < out.size(); ++i) x[p][i] += out[i];
      const Vector h = RmsNorm(x[p], layer.ffn_norm, config.norm_eps);
      Vector gate = Map(layer.w_gate, {}, h);
      const Vector up = Map(layer.w_up, {}, h);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const Vector down = Map(layer.w_down, {}, gate);
      for (size_t i = 0; i < down.size(); ++i) x[p][i] += down[i];
    }
  }
  for (Vector& row : x) row = RmsNorm(row, weights.norm, config.norm_eps);
  return x;
}

ReferenceModel::Vector ReferenceModel::Chunk(int level, std::span<const Vector> units) {
  const ChunkerConfig& config = checkpoint_.config().levels[level].chunker;
  const ChunkerWeights& weights = checkpoint_.weights().levels[level].chunker;
  const double eps = checkpoint_.config().levels[level].encoder.norm_eps;
  Vector z;
  for (const Vector& unit : units) {
    const Vector v =
        config.in_norm == ChunkerConfig::InNorm::kUnit ? RmsNorm(unit, weights.in_norm, eps) : unit;
    z.insert(z.end(), v.begin(), v.end());
  }
  if (config.type == ChunkerConfig::Type::kConcat) return z;
  if (config.in_norm == ChunkerConfig::InNorm::kConcat) z = RmsNorm(z, weights.in_norm, eps);
  Vector y = Map(weights.weight, weights.bias, z);
  return config.out_norm ? RmsNorm(y, weights.out_norm, eps) : y;
}

ReferenceModel::Vectors ReferenceModel::Convert(int level, const Vector& state) {
  const LevelConfig& config = checkpoint_.config().levels[level];
  const ConverterWeights& weights = checkpoint_.weights().levels[level].converter;
  const double eps = config.decoder.norm_eps;
  const Vector flat = Map(weights.weight, weights.bias,
                          config.converter.in_norm ? RmsNorm(state, weights.in_norm, eps) : state);
  const int num_vectors = config.converter_width, width = config.decoder.hidden_size;
  Vectors h;
  for (int v = 0; v < num_vectors; ++v) {
    h.emplace_back(flat.begin() + v * width, flat.begin() + (v + 1) * width);
  }
  if (config.converter.kernel == 3) {
    const Vectors before = h;
    const std::vector<float>& kernel = Values(weights.conv);
    for (int v = 0; v < num_vectors; ++v) {
      for (int tap = 0; tap < 3; ++tap) {
        const int source = v + tap - 1;
        if (source < 0 || source >= num_vectors) continue;
        for (int d = 0; d < width; ++d) h[v][d] += kernel[d * 3 + tap] * before[source][d];
      }
    }
  }
  if (config.converter.out_norm) {
    for (Vector& v : h) v = RmsNorm(v, weights.out_norm, eps);
  }
  return h;
}

std::vector<std::vector<double>> ReferenceModel::Logits(std::span<const TokenId> tokens) {
  const ModelConfig& config = checkpoint_.config();
  const ModelWeights& weights = checkpoint_.weights();
  std::vector<TokenId> padded(tokens.begin(), tokens.end());
  padded.resize((tokens.size() + config.meta_tokens() - 1) / config.meta_tokens() *
                config.meta_tokens());

  const auto embed = [&](const TensorView& table, TokenId token) {
    const int64_t width = table.shape[1];
    const float* row = Values(table).data() + token * width;
    Vector out(row, row + width);
    if (config.scale_embeddings) {
      for (double& v : out) v *= std::sqrt(static_cast<double>(width));
    }
    return out;
  };

  // Bottom up. states[i] are the units that level i folds: X[0] tokens, X[1], ...
  std::vector<Vectors> states(config.num_levels() + 1);
  for (TokenId token : padded) {
    states[0].push_back(
        embed(config.encoder_embedding_dim ? weights.encoder_embedding : weights.embedding, token));
  }
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    Vectors units;
    for (size_t u = 0; u < states[i].size(); u += level.chunk_size) {
      units.push_back(Chunk(i, std::span(states[i]).subspan(u, level.chunk_size)));
    }
    const size_t span =
        level.encoder_span == EncoderSpan::kBlock ? config.levels[i + 1].chunk_size : units.size();
    for (size_t u = 0; u < units.size(); u += span) {
      const Vectors block(units.begin() + u, units.begin() + u + span);
      for (Vector& state : Stack(level.encoder, weights.levels[i].encoder, block)) {
        states[i + 1].push_back(std::move(state));
      }
    }
  }

  // Top down. The top state of a group has seen the group: shift by one.
  const std::vector<float>& start = Values(weights.start_latent);
  Vectors conditions = {Vector(start.begin(), start.end())};
  conditions.insert(conditions.end(), states.back().begin(), states.back().end());
  conditions.pop_back();
  for (int i = config.num_levels() - 1; i >= 0; --i) {
    const LevelConfig& level = config.levels[i];
    Vectors predictions;
    for (size_t g = 0; g < conditions.size(); ++g) {
      Vectors window = Convert(i, conditions[g]);
      for (int j = 0; j < level.chunk_size; ++j) {
        const size_t unit = g * level.chunk_size + j;
        window.push_back(i == 0 ? embed(weights.embedding, padded[unit]) : states[i][unit]);
      }
      const Vectors out = Stack(level.decoder, weights.levels[i].decoder, std::move(window));
      for (int j = 0; j < level.chunk_size; ++j) {
        predictions.push_back(out[level.converter_width - 1 + j]);
      }
    }
    conditions = std::move(predictions);
  }

  const std::vector<float>& head =
      Values(config.tie_word_embeddings ? weights.embedding : weights.lm_head);
  const Vector head_matrix(head.begin(), head.end());
  std::vector<Vector> logits;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Vector y = config.final_norm ? RmsNorm(conditions[i], weights.final_norm,
                                                 config.levels[0].decoder.norm_eps)
                                       : conditions[i];
    logits.push_back(Product(head_matrix, y));
  }
  return logits;
}

TokenId ReferenceModel::GreedyNext(std::span<const TokenId> tokens) {
  std::vector<TokenId> extended(tokens.begin(), tokens.end());
  extended.push_back(0);  // logits before a token do not depend on it
  const Vector logits = Logits(extended).back();
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace photon
