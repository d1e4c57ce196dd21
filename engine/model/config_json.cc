// config.json to ModelConfig and back. Types are checked here, values by ValidateModelConfig.
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/config.h"
#include "engine/model/problems.h"
#include "engine/model/strict_json.h"

namespace photon {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr JsonLimits kConfigLimits = {.max_bytes = 1 << 20, .max_values = 10000, .max_depth = 8};

template <typename T>
struct EnumName {
  const char* name;
  T value;
};

constexpr EnumName<ChunkerConfig::Type> kChunkerTypes[] = {
    {"concat", ChunkerConfig::Type::kConcat}, {"linear", ChunkerConfig::Type::kLinear}};
constexpr EnumName<ChunkerConfig::InNorm> kChunkerInNorms[] = {
    {"none", ChunkerConfig::InNorm::kNone},
    {"unit", ChunkerConfig::InNorm::kUnit},
    {"concat", ChunkerConfig::InNorm::kConcat}};
constexpr EnumName<EncoderSpan> kEncoderSpans[] = {{"global", EncoderSpan::kGlobal},
                                                   {"block", EncoderSpan::kBlock}};
constexpr EnumName<int> kModelTypes[] = {{"photon", 0}};
constexpr EnumName<int> kDTypes[] = {{"bfloat16", 0}, {"float16", 1}, {"float32", 2}};

template <typename T, size_t N>
std::string NameOf(const EnumName<T> (&names)[N], T value) {
  for (const EnumName<T>& entry : names) {
    if (entry.value == value) return entry.name;
  }
  return "";
}

// What a field holds, for messages.
std::string Found(const json& value) {
  if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return absl::StrCat("a list of ", value.size());
  return value.dump();
}

bool IsInt(const json& value) {
  if (value.is_number_unsigned()) {
    return value.get<uint64_t>() <= uint64_t{std::numeric_limits<int>::max()};
  }
  return value.is_number_integer() && value.get<int64_t>() >= std::numeric_limits<int>::min() &&
         value.get<int64_t>() <= std::numeric_limits<int>::max();
}

constexpr char kIntRule[] = "must be a whole number of at most 32 bits";

// Reads the members of one JSON object. A missing or mistyped member is a problem, and so is, at
// the end, one that nobody asked for.
class Fields {
 public:
  // `path` is empty for the whole document.
  Fields(const json& object, std::string path, ProblemList& problems)
      : object_(object), path_(std::move(path)), problems_(problems) {
    if (!object_.is_object()) {
      problems_.Add(absl::StrCat(path_.empty() ? "config.json" : path_, ": must be an object, got ",
                                 Found(object_)));
    }
  }

  std::string Path(const char* name) const {
    return path_.empty() ? name : absl::StrCat(path_, ".", name);
  }

  // Null when absent, which is a problem if the member is required. An optional member may be null.
  const json* Find(const char* name, bool required = true) {
    known_.insert(name);
    if (!object_.is_object()) return nullptr;
    const auto member = object_.find(name);
    if (member == object_.end()) {
      if (required) problems_.Add(absl::StrCat(Path(name), ": missing"));
      return nullptr;
    }
    if (!required && member->is_null()) return nullptr;
    return &*member;
  }

  int Int(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) return 0;
    if (IsInt(*value)) return value->get<int>();
    AddMistyped(name, kIntRule, *value);
    return 0;
  }

  std::optional<int> OptionalInt(const char* name) {
    const json* value = Find(name, /*required=*/false);
    if (value == nullptr) return std::nullopt;
    if (IsInt(*value)) return value->get<int>();
    AddMistyped(name, kIntRule, *value);
    return std::nullopt;
  }

  // An integer or a list of them; empty when absent.
  std::vector<int> OptionalIntOrList(const char* name) {
    const json* value = Find(name, /*required=*/false);
    if (value == nullptr) return {};
    if (IsInt(*value)) return {value->get<int>()};
    std::vector<int> values;
    if (value->is_array()) {
      for (const json& element : *value) {
        if (!IsInt(element)) break;
        values.push_back(element.get<int>());
      }
      if (values.size() == value->size()) return values;
    }
    AddMistyped(name, "must be a token id or a list of them", *value);
    return {};
  }

  float Float(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) return 0.0f;
    if (value->is_number()) {
      const float number = static_cast<float>(value->get<double>());
      if (std::isfinite(number)) return number;
    }
    AddMistyped(name, "must be a number that fits fp32", *value);
    return 0.0f;
  }

  bool Bool(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) return false;
    if (value->is_boolean()) return value->get<bool>();
    AddMistyped(name, "must be true or false", *value);
    return false;
  }

  template <typename T, size_t N>
  T Enum(const char* name, const EnumName<T> (&names)[N], bool required = true) {
    const json* value = Find(name, required);
    if (value == nullptr) return names[0].value;
    for (const EnumName<T>& entry : names) {
      if (*value == entry.name) return entry.value;
    }
    const std::string choices =
        absl::StrJoin(names, " or ", [](std::string* out, const EnumName<T>& entry) {
          absl::StrAppend(out, "\"", entry.name, "\"");
        });
    AddMistyped(name, absl::StrCat("must be ", choices), *value);
    return names[0].value;
  }

  // Calls read(Fields) with a nested object.
  template <typename Read>
  void Object(const char* name, Read read) {
    if (const json* value = Find(name)) {
      Fields nested(*value, Path(name), problems_);
      read(nested);
      nested.RefuseUnknown();
    }
  }

  void RefuseUnknown() {
    if (!object_.is_object()) return;
    for (const auto& member : object_.items()) {
      if (known_.contains(member.key())) continue;
      problems_.Add(
          absl::StrCat(path_, path_.empty() ? "" : ": ", "unknown field ", Quoted(member.key())));
    }
  }

 private:
  void AddMistyped(const char* name, const std::string& rule, const json& value) {
    problems_.Add(absl::StrCat(Path(name), ": ", rule, ", got ", Found(value)));
  }

  const json& object_;
  const std::string path_;
  ProblemList& problems_;
  std::set<std::string> known_;
};

StackConfig ReadStack(Fields& fields) {
  StackConfig stack;
  stack.hidden_size = fields.Int("hidden_size");
  stack.num_layers = fields.Int("num_layers");
  stack.num_heads = fields.Int("num_heads");
  stack.num_kv_heads = fields.Int("num_kv_heads");
  stack.head_dim = fields.Int("head_dim");
  stack.intermediate_size = fields.Int("intermediate_size");
  stack.rope_theta = fields.Float("rope_theta");
  stack.rope_partial = fields.Float("rope_partial");
  stack.qk_norm = fields.Bool("qk_norm");
  stack.norm_eps = fields.Float("norm_eps");
  return stack;
}

LevelConfig ReadLevel(Fields& fields) {
  LevelConfig level;
  level.chunk_size = fields.Int("chunk_size");
  level.converter_width = fields.Int("converter_width");
  fields.Object("chunker", [&level](Fields& chunker) {
    level.chunker.type = chunker.Enum("type", kChunkerTypes);
    level.chunker.in_norm = chunker.Enum("in_norm", kChunkerInNorms);
    level.chunker.out_norm = chunker.Bool("out_norm");
    level.chunker.bias = chunker.Bool("bias");
  });
  fields.Object("converter", [&level](Fields& converter) {
    level.converter.kernel = converter.Int("kernel");
    level.converter.in_norm = converter.Bool("in_norm");
    level.converter.out_norm = converter.Bool("out_norm");
    level.converter.bias = converter.Bool("bias");
  });
  level.encoder_span = fields.Enum("encoder_span", kEncoderSpans);
  fields.Object("encoder", [&level](Fields& stack) { level.encoder = ReadStack(stack); });
  fields.Object("decoder", [&level](Fields& stack) { level.decoder = ReadStack(stack); });
  return level;
}

ModelConfig ReadModel(Fields& fields, ProblemList& problems) {
  ModelConfig config;
  fields.Enum("model_type", kModelTypes);
  fields.Enum("dtype", kDTypes, /*required=*/false);
  config.vocab_size = fields.Int("vocab_size");
  config.embedding_dim = fields.Int("embedding_dim");
  config.encoder_embedding_dim = fields.OptionalInt("encoder_embedding_dim");
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings");
  config.scale_embeddings = fields.Bool("scale_embeddings");
  config.final_norm = fields.Bool("final_norm");
  config.bos_token_id = fields.OptionalInt("bos_token_id");
  config.eos_token_ids = fields.OptionalIntOrList("eos_token_id");
  config.pad_token_id = fields.OptionalInt("pad_token_id");
  config.max_context = fields.Int("max_context");
  if (const json* levels = fields.Find("levels")) {
    if (!levels->is_array()) {
      problems.Add(absl::StrCat("levels: must be a list, got ", Found(*levels)));
    } else {
      for (size_t i = 0; i < levels->size(); ++i) {
        Fields level((*levels)[i], absl::StrCat("levels[", i, "]"), problems);
        config.levels.push_back(ReadLevel(level));
        level.RefuseUnknown();
      }
    }
  }
  fields.RefuseUnknown();
  return config;
}

// The shortest decimal that reads back as the same float.
double Shortest(float value) {
  char text[32];
  *std::to_chars(text, text + sizeof(text) - 1, value).ptr = '\0';
  return std::strtod(text, nullptr);
}

ordered_json StackToJson(const StackConfig& stack) {
  return {{"hidden_size", stack.hidden_size},
          {"num_layers", stack.num_layers},
          {"num_heads", stack.num_heads},
          {"num_kv_heads", stack.num_kv_heads},
          {"head_dim", stack.head_dim},
          {"intermediate_size", stack.intermediate_size},
          {"rope_theta", Shortest(stack.rope_theta)},
          {"rope_partial", Shortest(stack.rope_partial)},
          {"qk_norm", stack.qk_norm},
          {"norm_eps", Shortest(stack.norm_eps)}};
}

ordered_json LevelToJson(const LevelConfig& level) {
  return {{"chunk_size", level.chunk_size},
          {"converter_width", level.converter_width},
          {"chunker",
           {{"type", NameOf(kChunkerTypes, level.chunker.type)},
            {"in_norm", NameOf(kChunkerInNorms, level.chunker.in_norm)},
            {"out_norm", level.chunker.out_norm},
            {"bias", level.chunker.bias}}},
          {"converter",
           {{"kernel", level.converter.kernel},
            {"in_norm", level.converter.in_norm},
            {"out_norm", level.converter.out_norm},
            {"bias", level.converter.bias}}},
          {"encoder_span", NameOf(kEncoderSpans, level.encoder_span)},
          {"encoder", StackToJson(level.encoder)},
          {"decoder", StackToJson(level.decoder)}};
}

ordered_json OptionalToJson(const std::optional<int>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text) {
  absl::StatusOr<json> document = ParseStrictJson(text, kConfigLimits);
  if (!document.ok()) return document.status();
  ProblemList problems;
  Fields fields(*document, "", problems);
  ModelConfig config;
  if (document->is_object()) config = ReadModel(fields, problems);
  if (absl::Status read = problems.ToStatus(); !read.ok()) return read;
  if (absl::Status valid = ValidateModelConfig(config); !valid.ok()) return valid;
  return config;
}

std::string ModelConfigToJson(const ModelConfig& config) {
  ordered_json eos = nullptr;
  if (config.eos_token_ids.size() == 1) eos = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) eos = config.eos_token_ids;
  ordered_json document = {{"model_type", "photon"},
                           {"vocab_size", config.vocab_size},
                           {"embedding_dim", config.embedding_dim}};
  if (config.encoder_embedding_dim)
    document["encoder_embedding_dim"] = *config.encoder_embedding_dim;
  document["tie_word_embeddings"] = config.tie_word_embeddings;
  document["scale_embeddings"] = config.scale_embeddings;
  document["final_norm"] = config.final_norm;
  document["bos_token_id"] = OptionalToJson(config.bos_token_id);
  document["eos_token_id"] = eos;
  document["pad_token_id"] = OptionalToJson(config.pad_token_id);
  document["max_context"] = config.max_context;
  document["levels"] = ordered_json::array();
  for (const LevelConfig& level : config.levels) document["levels"].push_back(LevelToJson(level));
  return document.dump(2) + "\n";
}

}  // namespace photon
