#include "engine/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "tests/engine/model/model_fixtures.h"

namespace photon {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json SmallJson() {
  return json::parse(ModelConfigToJson(SmallConfig()));
}

// The message that refuses `text`; empty if it is accepted.
std::string Refusal(const std::string& text) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(text);
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

ModelConfig PaperConfig(const std::string& name) {
  absl::StatusOr<ModelConfig> config =
      LoadModelConfig(std::string(PHOTON_MODELS_DIR) + "/" + name + "/config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

TEST(ModelConfig, PaperShapesHaveTheirNumberOfParameters) {
  EXPECT_EQ(NumParameters(PaperConfig("photon-600m")), 646'399'104);
  EXPECT_EQ(NumParameters(PaperConfig("photon-900m")), 907'162'368);
  EXPECT_EQ(NumParameters(PaperConfig("photon-1.2b")), 1'229'531'520);
}

TEST(ModelConfig, JsonSurvivesTheRoundTrip) {
  ModelConfig config = SmallConfig();
  config.levels[0].encoder.norm_eps = 0.1f / 3.0f;  // no short decimal
  const std::string text = ModelConfigToJson(config);
  const absl::StatusOr<ModelConfig> parsed = ParseModelConfig(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(ModelConfigToJson(*parsed), text);
  EXPECT_EQ(parsed->levels[0].encoder.norm_eps, config.levels[0].encoder.norm_eps);
  EXPECT_EQ(parsed->encoder_embedding_dim, 6);
  EXPECT_EQ(parsed->bos_token_id, 1);
  EXPECT_EQ(parsed->pad_token_id, std::nullopt);
  EXPECT_THAT(parsed->eos_token_ids, ElementsAre(2, 3));
  EXPECT_EQ(parsed->levels[0].encoder_span, EncoderSpan::kBlock);
  EXPECT_EQ(parsed->levels[0].chunker.in_norm, ChunkerConfig::InNorm::kUnit);
  EXPECT_EQ(parsed->levels[1].converter.kernel, 3);
}

TEST(ModelConfig, DerivedQuantitiesFollowTheLevels) {
  const ModelConfig config = SmallConfig();
  EXPECT_EQ(config.chunker_unit_width(0), 6);
  EXPECT_EQ(config.chunker_unit_width(1), 10);
  EXPECT_EQ(config.tokens_per_unit(-1), 1);
  EXPECT_EQ(config.tokens_per_unit(0), 2);
  EXPECT_EQ(config.meta_tokens(), 6);
  EXPECT_FALSE(config.level_grows(0));
  EXPECT_TRUE(config.level_grows(1));
  EXPECT_EQ(config.levels[0].encoder.rope_dims(), 2);
}

TEST(ModelConfig, OptionalFieldsMayBeAbsentOrNull) {
  for (const char* field :
       {"encoder_embedding_dim", "bos_token_id", "eos_token_id", "pad_token_id"}) {
    json document = SmallJson();
    document[field] = nullptr;
    EXPECT_EQ(Refusal(document.dump()), "") << field;
    document.erase(field);
    EXPECT_EQ(Refusal(document.dump()), "") << field;
  }
  json document = SmallJson();
  document["eos_token_id"] = 5;
  document["dtype"] = "bfloat16";
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(document.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(5));
}

TEST(ModelConfig, EveryOtherFieldIsRequired) {
  const std::set<std::string> optional = {"/encoder_embedding_dim", "/bos_token_id",
                                          "/eos_token_id/0", "/eos_token_id/1", "/pad_token_id"};
  const json flat = SmallJson().flatten();
  for (const auto& member : flat.items()) {
    const std::string& pointer = member.key();
    if (optional.contains(pointer)) continue;
    json document = SmallJson();
    const size_t slash = pointer.rfind('/');
    const std::string name = pointer.substr(slash + 1);
    document[json::json_pointer(pointer.substr(0, slash))].erase(name);
    EXPECT_THAT(Refusal(document.dump()), HasSubstr(name + ": missing")) << pointer;
  }
}

TEST(ModelConfig, EveryFieldRefusesEveryOtherType) {
  const json flat = SmallJson().flatten();
  for (const auto& member : flat.items()) {
    for (const json& wrong :
         {json("x"), json(1.5), json(true), json::object(), json::array({1.5})}) {
      const bool same_type = wrong.type() == member.value().type() && !wrong.is_string();
      // Numbers that are not counts may have a fraction.
      const bool number = member.value().is_number_float() && wrong.is_number();
      if (same_type || number) continue;
      json document = SmallJson();
      document[json::json_pointer(member.key())] = wrong;
      EXPECT_NE(Refusal(document.dump()), "") << member.key() << " = " << wrong;
    }
  }
}

struct Rule {
  const char* pointer;  // the field to change
  const char* value;    // JSON
  const char* message;  // a part of the refusal
};

class ModelConfigRules : public ::testing::TestWithParam<Rule> {};

TEST_P(ModelConfigRules, AreNamedWithTheFieldAndTheValue) {
  json document = SmallJson();
  document[json::json_pointer(GetParam().pointer)] = json::parse(GetParam().value);
  EXPECT_THAT(Refusal(document.dump()), HasSubstr(GetParam().message));
}

constexpr Rule kRules[] = {
    {"/model_type", "\"llama\"", "model_type: must be \"photon\", got \"llama\""},
    {"/dtype", "\"int8\"",
     "dtype: must be \"bfloat16\" or \"float16\" or \"float32\", got \"int8\""},
    {"/vocab_size", "0", "vocab_size: must be in [1, 1048576], got 0"},
    {"/vocab_size", "-5", "vocab_size: must be in [1, 1048576], got -5"},
    {"/vocab_size", "1048577", "vocab_size: must be in [1, 1048576], got 1048577"},
    {"/vocab_size", "32.0", "vocab_size: must be a whole number of at most 32 bits, got 32.0"},
    {"/vocab_size", "4294967328",
     "vocab_size: must be a whole number of at most 32 bits, got 4294967328"},
    {"/vocab_size", "18446744073709551648", "vocab_size: must be a whole number"},
    {"/vocab_size", "null", "vocab_size: must be a whole number of at most 32 bits, got null"},
    {"/embedding_dim", "65537", "embedding_dim: must be in [1, 65536], got 65537"},
    {"/embedding_dim", "10", "levels[0].decoder.hidden_size: must be embedding_dim (10), got 8"},
    {"/encoder_embedding_dim", "0", "encoder_embedding_dim: must be in [1, 65536], got 0"},
    {"/max_context", "0", "max_context: must be in [1, 1073741824], got 0"},
    {"/bos_token_id", "32", "bos_token_id: must be a token id below vocab_size (32), got 32"},
    {"/bos_token_id", "-1", "bos_token_id: must be a token id below vocab_size (32), got -1"},
    {"/pad_token_id", "99", "pad_token_id: must be a token id below vocab_size (32), got 99"},
    {"/eos_token_id", "32", "eos_token_id: must be a token id below vocab_size (32), got 32"},
    {"/eos_token_id", "[2, 40]",
     "eos_token_id[1]: must be a token id below vocab_size (32), got 40"},
    {"/eos_token_id", "[2, \"</s>\"]",
     "eos_token_id: must be a token id or a list of them, got a list of 2"},
    {"/levels", "[]", "levels: number of levels must be in [1, 8], got 0"},
    {"/levels", "{}", "levels: must be a list, got an object"},
    {"/levels/0", "7", "levels[0]: must be an object, got 7"},
    {"/levels/0/chunk_size", "0", "levels[0].chunk_size: must be in [1, 4096], got 0"},
    {"/levels/1/chunk_size", "2049",
     "levels: the product of all chunk_size must be at most 4096, got 4098 or more"},
    {"/levels/0/converter_width", "0", "levels[0].converter_width: must be in [1, 4096], got 0"},
    {"/levels/0/converter_width", "4095",
     "levels[0].converter_width: with chunk_size (2) must be at most 4096 together, got 4095"},
    {"/levels/0/chunker/type", "\"mean\"",
     "levels[0].chunker.type: must be \"concat\" or \"linear\", got \"mean\""},
    {"/levels/0/chunker/in_norm", "\"layer\"",
     "levels[0].chunker.in_norm: must be \"none\" or \"unit\" or \"concat\", got \"layer\""},
    {"/levels/0/chunker/bias", "1", "levels[0].chunker.bias: must be true or false, got 1"},
    {"/levels/0/chunker/type", "\"concat\"",
     "levels[0].chunker.in_norm: must be \"none\" for type \"concat\", got \"unit\"; "
     "levels[0].chunker.out_norm: must be false for type \"concat\", got true; "
     "levels[0].chunker.bias: must be false for type \"concat\", got true"},
    {"/levels/1/converter/kernel", "2", "levels[1].converter.kernel: must be 1 or 3, got 2"},
    {"/levels/1/encoder_span", "\"block\"",
     "levels[1].encoder_span: must be \"global\" at the top level, got \"block\""},
    {"/levels/1/decoder/hidden_size", "8",
     "levels[1].decoder.hidden_size: must be levels[0].encoder.hidden_size (10), got 8"},
    {"/levels/1/encoder/hidden_size", "65537",
     "levels[1].encoder.hidden_size: must be in [1, 65536], got 65537"},
    {"/levels/1/encoder/num_layers", "0",
     "levels[1].encoder.num_layers: must be in [1, 1024], got 0"},
    {"/levels/1/encoder/num_layers", "1025",
     "levels[1].encoder.num_layers: must be in [1, 1024], got 1025"},
    {"/levels/1/encoder/num_heads", "0",
     "levels[1].encoder.num_heads: must be in [1, 1024], got 0"},
    {"/levels/1/encoder/num_kv_heads", "3",
     "levels[1].encoder.num_kv_heads: must divide num_heads (2), got 3"},
    {"/levels/1/encoder/num_kv_heads", "0",
     "levels[1].encoder.num_kv_heads: must be in [1, 1024], got 0"},
    {"/levels/1/encoder/head_dim", "1025",
     "levels[1].encoder.head_dim: must be in [1, 1024], got 1025"},
    {"/levels/1/encoder/head_dim", "6",
     "levels[1].encoder.rope_partial: times head_dim (6) must be an even whole number, got 0.5"},
    {"/levels/1/encoder/intermediate_size", "0",
     "levels[1].encoder.intermediate_size: must be in [1, 65536], got 0"},
    {"/levels/1/encoder/rope_theta", "0.5",
     "levels[1].encoder.rope_theta: must be in [1, 1e12], got 0.5"},
    {"/levels/1/encoder/rope_theta", "1e300",
     "levels[1].encoder.rope_theta: must be a number that fits fp32, got 1e+300"},
    {"/levels/1/encoder/rope_partial", "0",
     "levels[1].encoder.rope_partial: must be in (0, 1], got 0"},
    {"/levels/1/encoder/rope_partial", "1.5",
     "levels[1].encoder.rope_partial: must be in (0, 1], got 1.5"},
    {"/levels/1/encoder/rope_partial", "0.3",
     "levels[1].encoder.rope_partial: times head_dim (4) must be an even whole number, got 0.3"},
    {"/levels/1/encoder/norm_eps", "0", "levels[1].encoder.norm_eps: must be in (0, 1], got 0"},
    {"/levels/1/encoder/norm_eps", "-1e-5",
     "levels[1].encoder.norm_eps: must be in (0, 1], got -1e-05"},
    {"/hidden_act", "\"silu\"", "unknown field \"hidden_act\""},
    {"/levels/0/converter/stride", "2", "levels[0].converter: unknown field \"stride\""},
    {"/levels/1/encoder/dropout", "0.1", "levels[1].encoder: unknown field \"dropout\""},
};

INSTANTIATE_TEST_SUITE_P(Table, ModelConfigRules, ::testing::ValuesIn(kRules));

TEST(ModelConfig, ConcatChunkerFixesTheEncodersWidth) {
  ModelConfig config = SmallConfig();
  config.levels[0].chunker = {.type = ChunkerConfig::Type::kConcat};
  EXPECT_THAT(std::string(ValidateModelConfig(config).message()),
              HasSubstr("levels[0].encoder.hidden_size: must be chunk_size times "
                        "encoder_embedding_dim (12) with a \"concat\" chunker, got 10"));
  config.levels[0].encoder.hidden_size = 12;
  config.levels[1].decoder.hidden_size = 12;
  EXPECT_TRUE(ValidateModelConfig(config).ok()) << ValidateModelConfig(config);
}

TEST(ModelConfig, HeadsTimesTheirWidthAreBounded) {
  ModelConfig config = SmallConfig();
  config.levels[0].encoder.num_heads = 1024;
  config.levels[0].encoder.head_dim = 128;
  EXPECT_THAT(std::string(ValidateModelConfig(config).message()),
              HasSubstr("levels[0].encoder.num_heads: times head_dim (128) must be at most 65536, "
                        "got 1024"));
}

TEST(ModelConfig, NotANumberIsNoOption) {
  ModelConfig config = SmallConfig();
  config.levels[0].encoder.rope_theta = std::numeric_limits<float>::quiet_NaN();
  config.levels[0].encoder.rope_partial = std::numeric_limits<float>::quiet_NaN();
  config.levels[0].decoder.norm_eps = std::numeric_limits<float>::quiet_NaN();
  const std::string message(ValidateModelConfig(config).message());
  EXPECT_THAT(message, HasSubstr("levels[0].encoder.rope_theta: must be in [1, 1e12], got nan"));
  EXPECT_THAT(message, HasSubstr("levels[0].encoder.rope_partial: must be in (0, 1], got nan"));
  EXPECT_THAT(message, HasSubstr("levels[0].decoder.norm_eps: must be in (0, 1], got nan"));
}

TEST(ModelConfig, AModelOfTrillionsOfParametersIsRefused) {
  ModelConfig config = SmallConfig();
  for (LevelConfig& level : config.levels) {
    for (StackConfig* stack : {&level.encoder, &level.decoder}) {
      stack->hidden_size = 65536;
      stack->intermediate_size = 65536;
      stack->num_layers = 1024;
    }
  }
  config.embedding_dim = 65536;
  EXPECT_THAT(std::string(ValidateModelConfig(config).message()),
              HasSubstr("the model: must have at most 2^40 parameters, got "));
}

TEST(ModelConfig, AllProblemsAreReportedAtOnce) {
  json document = SmallJson();
  document["vocab_size"] = 0;
  document["levels"][0]["converter"]["kernel"] = 5;
  document["levels"][1]["decoder"]["num_layers"] = -1;
  const std::string message = Refusal(document.dump());
  EXPECT_THAT(message, HasSubstr("vocab_size: "));
  EXPECT_THAT(message, HasSubstr("; levels[0].converter.kernel: "));
  EXPECT_THAT(message, HasSubstr("; levels[1].decoder.num_layers: "));
}

TEST(ModelConfig, HostileJsonIsRefused) {
  EXPECT_THAT(Refusal(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal("[]"), HasSubstr("config.json: must be an object, got a list of 0"));
  EXPECT_THAT(Refusal("{\"vocab_size\": NaN}"), HasSubstr("not valid JSON at byte 16"));
  EXPECT_THAT(Refusal("{\"vocab_size\": 1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal("{\"a\": \"\xff\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal("{} {}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal("{\"vocab_size\": 1, \"vocab_size\": 2}"),
              HasSubstr("duplicate key \"vocab_size\""));
  EXPECT_THAT(Refusal(std::string(100'000, '[')), HasSubstr("nested deeper than 8"));
  EXPECT_THAT(Refusal("[" + std::string(2'000'000, ' ') + "]"), HasSubstr("more than 1048576"));
  std::string many = "[0";
  for (int i = 0; i < 20'000; ++i) many += ",0";
  EXPECT_THAT(Refusal(many + "]"), HasSubstr("more than 10000 values"));
  const std::string truncated = ModelConfigToJson(SmallConfig());
  for (size_t size = 0; size + 2 < truncated.size(); ++size) {
    EXPECT_NE(Refusal(truncated.substr(0, size)), "") << size;
  }
}

TEST(TensorSpecs, FollowTheConfig) {
  const auto names_of = [](const ModelConfig& config) {
    std::set<std::string> names;
    for (const TensorSpec& spec : TensorSpecs(config)) {
      EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    }
    return names;
  };
  ModelConfig config = SmallConfig();
  const std::set<std::string> all = names_of(config);
  for (const char* name :
       {"encoder_embedding", "embedding", "lm_head", "final_norm", "start_latent",
        "levels.0.chunker.in_norm", "levels.0.chunker.weight", "levels.0.chunker.bias",
        "levels.0.chunker.out_norm", "levels.1.converter.in_norm", "levels.1.converter.weight",
        "levels.1.converter.bias", "levels.1.converter.conv", "levels.1.converter.out_norm",
        "levels.1.encoder.layers.1.q_norm", "levels.1.encoder.norm", "levels.0.decoder.norm"}) {
    EXPECT_TRUE(all.contains(name)) << name;
  }
  EXPECT_EQ(all.size(), 5u + 2 * 4 + 2 * 5 + 5 * 11 + 4);

  config.encoder_embedding_dim.reset();
  config.tie_word_embeddings = true;
  config.final_norm = false;
  for (LevelConfig& level : config.levels) {
    level.chunker = {};
    level.converter = {};
    level.encoder.qk_norm = level.decoder.qk_norm = false;
  }
  EXPECT_EQ(names_of(config).size(), 2u + 2 * 1 + 2 * 1 + 5 * 9 + 4);
}

TEST(TensorSpecs, ShapesAreThoseOfTheLayout) {
  const auto shape_of = [](const std::string& name) {
    for (const TensorSpec& spec : TensorSpecs(SmallConfig())) {
      if (spec.name == name) return spec.shape;
    }
    return std::vector<int64_t>{};
  };
  EXPECT_THAT(shape_of("encoder_embedding"), ElementsAre(32, 6));
  EXPECT_THAT(shape_of("lm_head"), ElementsAre(32, 8));
  EXPECT_THAT(shape_of("start_latent"), ElementsAre(14));
  EXPECT_THAT(shape_of("levels.0.chunker.in_norm"), ElementsAre(6));
  EXPECT_THAT(shape_of("levels.0.chunker.weight"), ElementsAre(10, 12));
  EXPECT_THAT(shape_of("levels.1.chunker.weight"), ElementsAre(14, 30));
  EXPECT_THAT(shape_of("levels.1.converter.weight"), ElementsAre(20, 14));
  EXPECT_THAT(shape_of("levels.1.converter.conv"), ElementsAre(10, 3));
  EXPECT_THAT(shape_of("levels.1.decoder.layers.0.wk"), ElementsAre(4, 10));
  EXPECT_THAT(shape_of("levels.1.decoder.layers.0.wo"), ElementsAre(10, 8));
  EXPECT_THAT(shape_of("levels.1.decoder.layers.0.w_down"), ElementsAre(10, 12));
}

}  // namespace
}  // namespace photon
