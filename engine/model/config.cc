#include "engine/model/config.h"

#include <cmath>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/model/problems.h"
#include "engine/model/weights.h"

namespace photon {
namespace {

// Bounds against absurd files. Within them no product of this file leaves int64_t, and none of
// widths and chunk sizes leaves int.
constexpr int64_t kMaxVocab = int64_t{1} << 20;
constexpr int64_t kMaxWidth = 65536;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxLevels = 8;
constexpr int64_t kMaxMetaTokens = 4096;
constexpr int64_t kMaxWindow = 4096;  // R + C
constexpr int64_t kMaxContext = int64_t{1} << 30;
constexpr int64_t kMaxEosTokens = 64;
constexpr int64_t kMaxParameters = int64_t{1} << 40;

std::string Field(const std::string& path, const char* name) {
  return absl::StrCat(path, ".", name);
}

class Validator {
 public:
  explicit Validator(const ModelConfig& config) : config_(config) {}

  absl::Status Run() {
    InRange("vocab_size", config_.vocab_size, 1, kMaxVocab);
    InRange("embedding_dim", config_.embedding_dim, 1, kMaxWidth);
    if (config_.encoder_embedding_dim) {
      InRange("encoder_embedding_dim", *config_.encoder_embedding_dim, 1, kMaxWidth);
    }
    InRange("max_context", config_.max_context, 1, kMaxContext);
    CheckTokenIds();
    if (!InRange("levels", config_.num_levels(), 1, kMaxLevels, "number of levels ")) {
      return problems_.ToStatus();
    }
    for (int i = 0; i < config_.num_levels(); ++i) CheckLevel(i);
    CheckMetaTokens();
    // Relations between fields and products of them make sense only where each is in its range.
    if (!problems_.empty()) return problems_.ToStatus();
    for (int i = 0; i < config_.num_levels(); ++i) CheckWidths(i);
    const int64_t parameters = NumParameters(config_);
    if (parameters > kMaxParameters) {
      problems_.Add(absl::StrCat("the model: must have at most 2^40 parameters, got ", parameters));
    }
    return problems_.ToStatus();
  }

 private:
  bool InRange(const std::string& path, int64_t value, int64_t low, int64_t high,
               const char* what = "") {
    if (value >= low && value <= high) return true;
    problems_.Add(
        absl::StrCat(path, ": ", what, "must be in [", low, ", ", high, "], got ", value));
    return false;
  }

  void CheckTokenId(const std::string& path, TokenId id) {
    if (id < 0 || id >= config_.vocab_size) {
      problems_.Add(absl::StrCat(path, ": must be a token id below vocab_size (",
                                 config_.vocab_size, "), got ", id));
    }
  }

  void CheckTokenIds() {
    if (config_.bos_token_id) CheckTokenId("bos_token_id", *config_.bos_token_id);
    if (config_.pad_token_id) CheckTokenId("pad_token_id", *config_.pad_token_id);
    if (!InRange("eos_token_id", static_cast<int64_t>(config_.eos_token_ids.size()), 0,
                 kMaxEosTokens, "number of ids ")) {
      return;
    }
    for (size_t i = 0; i < config_.eos_token_ids.size(); ++i) {
      CheckTokenId(config_.eos_token_ids.size() == 1 ? std::string("eos_token_id")
                                                     : absl::StrCat("eos_token_id[", i, "]"),
                   config_.eos_token_ids[i]);
    }
  }

  void CheckMetaTokens() {
    int64_t tokens = 1;
    for (const LevelConfig& level : config_.levels) {
      tokens *= level.chunk_size;
      if (level.chunk_size < 1 || tokens > kMaxMetaTokens) break;
    }
    if (tokens > kMaxMetaTokens) {
      problems_.Add(absl::StrCat("levels: the product of all chunk_size must be at most ",
                                 kMaxMetaTokens, ", got ", tokens, " or more"));
    }
  }

  void CheckLevel(int i) {
    const LevelConfig& level = config_.levels[i];
    const std::string path = absl::StrCat("levels[", i, "]");
    if (InRange(Field(path, "chunk_size"), level.chunk_size, 1, kMaxMetaTokens) &&
        InRange(Field(path, "converter_width"), level.converter_width, 1, kMaxWindow) &&
        level.chunk_size + level.converter_width > kMaxWindow) {
      problems_.Add(absl::StrCat(path, ".converter_width: with chunk_size (", level.chunk_size,
                                 ") must be at most ", kMaxWindow, " together, got ",
                                 level.converter_width));
    }
    const ChunkerConfig& chunker = level.chunker;
    if (chunker.type == ChunkerConfig::Type::kConcat) {
      if (chunker.in_norm != ChunkerConfig::InNorm::kNone) {
        problems_.Add(absl::StrCat(
            path, ".chunker.in_norm: must be \"none\" for type \"concat\", got ",
            chunker.in_norm == ChunkerConfig::InNorm::kUnit ? "\"unit\"" : "\"concat\""));
      }
      if (chunker.out_norm) AddConcatFlag(path, "out_norm");
      if (chunker.bias) AddConcatFlag(path, "bias");
    }
    if (level.converter.kernel != 1 && level.converter.kernel != 3) {
      problems_.Add(
          absl::StrCat(path, ".converter.kernel: must be 1 or 3, got ", level.converter.kernel));
    }
    if (i == config_.num_levels() - 1 && level.encoder_span != EncoderSpan::kGlobal) {
      problems_.Add(absl::StrCat(path,
                                 ".encoder_span: must be \"global\" at the top level, got "
                                 "\"block\""));
    }
    CheckStack(Field(path, "encoder"), level.encoder);
    CheckStack(Field(path, "decoder"), level.decoder);
  }

  void AddConcatFlag(const std::string& path, const char* name) {
    problems_.Add(
        absl::StrCat(path, ".chunker.", name, ": must be false for type \"concat\", got true"));
  }

  void CheckStack(const std::string& path, const StackConfig& stack) {
    InRange(Field(path, "hidden_size"), stack.hidden_size, 1, kMaxWidth);
    InRange(Field(path, "num_layers"), stack.num_layers, 1, kMaxLayers);
    InRange(Field(path, "intermediate_size"), stack.intermediate_size, 1, kMaxWidth);
    const bool heads_ok = InRange(Field(path, "num_heads"), stack.num_heads, 1, kMaxHeads);
    const bool head_dim_ok = InRange(Field(path, "head_dim"), stack.head_dim, 1, kMaxHeadDim);
    if (heads_ok && head_dim_ok && stack.num_heads * stack.head_dim > kMaxWidth) {
      problems_.Add(absl::StrCat(path, ".num_heads: times head_dim (", stack.head_dim,
                                 ") must be at most ", kMaxWidth, ", got ", stack.num_heads));
    }
    if (InRange(Field(path, "num_kv_heads"), stack.num_kv_heads, 1, kMaxHeads) && heads_ok &&
        stack.num_heads % stack.num_kv_heads != 0) {
      problems_.Add(absl::StrCat(path, ".num_kv_heads: must divide num_heads (", stack.num_heads,
                                 "), got ", stack.num_kv_heads));
    }
    // Written so that NaN fails.
    if (!(stack.rope_theta >= 1.0f && stack.rope_theta <= 1e12f)) {
      problems_.Add(
          absl::StrCat(path, ".rope_theta: must be in [1, 1e12], got ", stack.rope_theta));
    }
    if (!(stack.norm_eps > 0.0f && stack.norm_eps <= 1.0f)) {
      problems_.Add(absl::StrCat(path, ".norm_eps: must be in (0, 1], got ", stack.norm_eps));
    }
    if (!(stack.rope_partial > 0.0f && stack.rope_partial <= 1.0f)) {
      problems_.Add(
          absl::StrCat(path, ".rope_partial: must be in (0, 1], got ", stack.rope_partial));
    } else if (head_dim_ok) {
      const double exact = static_cast<double>(stack.head_dim) * stack.rope_partial;
      const int dims = stack.rope_dims();
      if (dims < 2 || dims % 2 != 0 || std::abs(exact - dims) > 1e-3) {
        problems_.Add(absl::StrCat(path, ".rope_partial: times head_dim (", stack.head_dim,
                                   ") must be an even whole number, got ", stack.rope_partial));
      }
    }
  }

  void CheckWidths(int i) {
    const LevelConfig& level = config_.levels[i];
    const std::string path = absl::StrCat("levels[", i, "]");
    const int64_t concatenated = int64_t{level.chunk_size} * config_.chunker_unit_width(i);
    if (level.chunker.type == ChunkerConfig::Type::kConcat &&
        level.encoder.hidden_size != concatenated) {
      problems_.Add(absl::StrCat(path, ".encoder.hidden_size: must be chunk_size times ",
                                 UnitWidthName(i), " (", concatenated,
                                 ") with a \"concat\" chunker, got ", level.encoder.hidden_size));
    }
    const int below = i == 0 ? config_.embedding_dim : config_.levels[i - 1].encoder.hidden_size;
    if (level.decoder.hidden_size != below) {
      problems_.Add(absl::StrCat(path, ".decoder.hidden_size: must be ",
                                 i == 0 ? std::string("embedding_dim") : UnitWidthName(i), " (",
                                 below, "), got ", level.decoder.hidden_size));
    }
  }

  // The field that states chunker_unit_width(i).
  std::string UnitWidthName(int i) const {
    if (i > 0) return absl::StrCat("levels[", i - 1, "].encoder.hidden_size");
    return config_.encoder_embedding_dim ? "encoder_embedding_dim" : "embedding_dim";
  }

  const ModelConfig& config_;
  ProblemList problems_;
};

}  // namespace

int StackConfig::rope_dims() const {
  return static_cast<int>(std::lround(static_cast<double>(head_dim) * rope_partial));
}

int ModelConfig::chunker_unit_width(int i) const {
  return i == 0 ? encoder_embedding_width() : levels[i - 1].encoder.hidden_size;
}

int ModelConfig::tokens_per_unit(int i) const {
  int tokens = 1;
  for (int level = 0; level <= i; ++level) tokens *= levels[level].chunk_size;
  return tokens;
}

bool ModelConfig::level_grows(int i) const {
  return levels[i].encoder_span == EncoderSpan::kGlobal;
}

absl::Status ValidateModelConfig(const ModelConfig& config) {
  return Validator(config).Run();
}

std::vector<TensorSpec> TensorSpecs(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  ModelWeights unbound;
  ForEachTensor(config, unbound,
                [&specs](TensorSpec spec, TensorView&) { specs.push_back(std::move(spec)); });
  return specs;
}

int64_t NumParameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const TensorSpec& spec : TensorSpecs(config)) {
    int64_t count = 1;
    for (int64_t extent : spec.shape) count *= extent;
    total += count;
  }
  return total;
}

}  // namespace photon
