#include "engine/model/tokenizer.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/model/sentencepiece_model.pb.h"
#include "engine/model/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace photon {
namespace {

using sentencepiece::ModelProto;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Piece = ModelProto::SentencePiece;

constexpr std::string_view kData = PHOTON_TEST_DATA "/tokenizer/";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void AddPiece(ModelProto& model, const std::string& text, float score = 0,
              Piece::Type type = Piece::NORMAL) {
  Piece& piece = *model.add_pieces();
  piece.set_piece(text);
  piece.set_score(score);
  piece.set_type(type);
}

// <unk> 0, <s> 1, </s> 2 and then what the test adds; text is taken as it is.
ModelProto BareModel() {
  ModelProto model;
  AddPiece(model, "<unk>", 0, Piece::UNKNOWN);
  AddPiece(model, "<s>", 0, Piece::CONTROL);
  AddPiece(model, "</s>", 0, Piece::CONTROL);
  model.mutable_trainer_spec()->set_model_type(sentencepiece::TrainerSpec::BPE);
  model.mutable_normalizer_spec()->set_add_dummy_prefix(false);
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(false);
  return model;
}

void AddBytePieces(ModelProto& model) {
  model.mutable_trainer_spec()->set_byte_fallback(true);
  for (int byte = 0; byte < 256; ++byte) {
    char text[7];
    std::snprintf(text, sizeof text, "<0x%02X>", byte);
    AddPiece(model, text, 0, Piece::BYTE);
  }
}

std::unique_ptr<Tokenizer> Create(const ModelProto& model) {
  auto tokenizer = Tokenizer::Create(model.SerializeAsString());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// The pieces of `text`, as the model spells them.
std::vector<std::string> Pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  for (const TokenId id : tokenizer.Encode(text)) pieces.emplace_back(tokenizer.piece(id));
  return pieces;
}

class GoldenModel : public testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, EncodesAndDecodesAsSentencePieceDoes) {
  const std::string base = std::string(kData) + GetParam();
  const auto tokenizer = Tokenizer::Load(base + ".model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto cases = nlohmann::json::parse(ReadFile(base + ".golden.json"));
  ASSERT_GT(cases.size(), 40u);
  for (const auto& golden : cases) {
    const auto text = golden["text"].get<std::string>();
    const auto ids = golden["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ((*tokenizer)->Encode(text), ids) << text;
    EXPECT_EQ((*tokenizer)->Decode(ids), golden["decoded"].get<std::string>()) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::Values("bytes", "rules"),
                         [](const auto& info) { return info.param; });

TEST(Tokenizer, MergesTheHighestScoreFirst) {
  ModelProto model = BareModel();
  for (const char* piece : {"a", "b", "c"}) AddPiece(model, piece, -9);
  AddPiece(model, "ab", -2);
  AddPiece(model, "bc", -1);
  EXPECT_THAT(Pieces(*Create(model), "abc"), ElementsAre("a", "bc"));
}

TEST(Tokenizer, MergesTheLeftmostOfEqualScores) {
  ModelProto model = BareModel();
  for (const char* piece : {"a", "b", "c"}) AddPiece(model, piece, -9);
  AddPiece(model, "bc", -1);
  AddPiece(model, "ab", -1);
  EXPECT_THAT(Pieces(*Create(model), "abc"), ElementsAre("ab", "c"));
  EXPECT_THAT(Pieces(*Create(model), "bcbc"), ElementsAre("bc", "bc"));
}

TEST(Tokenizer, TakesUnusedPiecesApart) {
  ModelProto model = BareModel();
  for (const char* piece : {"a", "b", "c"}) AddPiece(model, piece, -9);
  AddPiece(model, "ab", -1);
  AddPiece(model, "abc", -2, Piece::UNUSED);
  EXPECT_THAT(Pieces(*Create(model), "abc"), ElementsAre("ab", "c"));
  EXPECT_THAT(Pieces(*Create(model), "abcab"), ElementsAre("ab", "c", "ab"));
}

TEST(Tokenizer, KeepsTheLongestUserDefinedSymbolWhole) {
  ModelProto model = BareModel();
  for (const char* piece : {"x", "[", "a", "b", "]"}) AddPiece(model, piece, -9);
  AddPiece(model, "x[", -1);
  for (const char* piece : {"[a", "[a]", "\n", "\n\n"})
    AddPiece(model, piece, 0, Piece::USER_DEFINED);
  const auto tokenizer = Create(model);
  EXPECT_THAT(Pieces(*tokenizer, "x[a]"), ElementsAre("x", "[a]"));
  EXPECT_THAT(Pieces(*tokenizer, "x[ab]"), ElementsAre("x", "[a", "b", "]"));
  EXPECT_THAT(Pieces(*tokenizer, "x[b"), ElementsAre("x[", "b"));
  EXPECT_THAT(Pieces(*tokenizer, "\n\n\na"), ElementsAre("\n\n", "\n", "a"));
}

TEST(Tokenizer, NeverMakesControlPiecesFromText) {
  ModelProto model = BareModel();
  for (const char* piece : {"<", "s", ">", "/"}) AddPiece(model, piece, -9);
  AddPiece(model, "\u2603", 0, Piece::CONTROL);
  const auto tokenizer = Create(model);
  EXPECT_THAT(Pieces(*tokenizer, "<s></s>"), ElementsAre("<", "s", ">", "<", "/", "s", ">"));
  EXPECT_THAT(Pieces(*tokenizer, "\u2603"), ElementsAre("<unk>"));
}

TEST(Tokenizer, CallsARunOfUnknownCharactersOneUnknown) {
  ModelProto model = BareModel();
  AddPiece(model, "a", -9);
  EXPECT_THAT(Pieces(*Create(model), "xyazb"), ElementsAre("<unk>", "a", "<unk>"));
}

TEST(Tokenizer, SpellsUnknownCharactersInBytes) {
  ModelProto model = BareModel();
  AddBytePieces(model);
  EXPECT_THAT(Pieces(*Create(model), "\u00E9\n"), ElementsAre("<0xC3>", "<0xA9>", "<0x0A>"));
}

TEST(Tokenizer, TakesInvalidUtf8ForReplacementCharacters) {
  ModelProto model = BareModel();
  AddPiece(model, "a", -9);
  AddPiece(model, std::string(kReplacementCharacter), -9);
  const auto tokenizer = Create(model);
  for (const char* broken : {"a\xFF", "a\xC3", "a\x80", "a\xC0", "a\xFE"}) {
    EXPECT_THAT(Pieces(*tokenizer, broken), ElementsAre("a", kReplacementCharacter));
  }
  EXPECT_EQ(tokenizer->Encode("\xED\xA0\x80"), tokenizer->Encode("\xFF\xFF\xFF"));
}

TEST(Tokenizer, TreatsSpacesAsTheModelAsks) {
  ModelProto model = BareModel();
  AddPiece(model, std::string(kSpaceSymbol), -9);
  AddPiece(model, "a", -9);
  const std::string s(kSpaceSymbol);
  EXPECT_THAT(Pieces(*Create(model), " a  a "), ElementsAre(s, "a", s, s, "a", s));
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(true);
  EXPECT_THAT(Pieces(*Create(model), " a  a "), ElementsAre("a", s, "a"));
  model.mutable_normalizer_spec()->set_add_dummy_prefix(true);
  EXPECT_THAT(Pieces(*Create(model), " a  a "), ElementsAre(s, "a", s, "a"));
  EXPECT_THAT(Pieces(*Create(model), "   "), IsEmpty());
  model.mutable_trainer_spec()->set_treat_whitespace_as_suffix(true);
  EXPECT_THAT(Pieces(*Create(model), " a  a "), ElementsAre("a", s, "a", s));
}

// Quadratic time would exceed the test's time limit by far.
TEST(Tokenizer, EncodesMegabytesOfOneWord) {
  ModelProto model = BareModel();
  std::string piece = "a";
  for (int i = 0; i < 12; ++i, piece += piece) AddPiece(model, piece, static_cast<float>(-i));
  const auto tokenizer = Create(model);
  const std::string text(4 << 20, 'a');
  EXPECT_EQ(tokenizer->Encode(text).size(), text.size() / 2048);
}

TEST(Tokenizer, KnowsItsSpecialPieces) {
  const auto bytes = Tokenizer::Load(std::string(kData) + "bytes.model");
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ((*bytes)->vocab_size(), 768);
  EXPECT_EQ((*bytes)->unk_id(), 0);
  EXPECT_EQ((*bytes)->bos_id(), 1);
  EXPECT_EQ((*bytes)->eos_id(), 2);
  EXPECT_EQ((*bytes)->pad_id(), std::nullopt);
  EXPECT_EQ((*bytes)->type(1), Tokenizer::PieceType::kControl);
  EXPECT_EQ((*bytes)->type(3), Tokenizer::PieceType::kUserDefined);
  EXPECT_EQ((*bytes)->piece(2), "</s>");
  EXPECT_EQ((*bytes)->surface(2), "");
  const auto rules = Tokenizer::Load(std::string(kData) + "rules.model");
  ASSERT_TRUE(rules.ok());
  EXPECT_EQ((*rules)->pad_id(), 3);
}

TEST(Tokenizer, FingerprintIsTheFilesSha256) {
  const auto tokenizer = Tokenizer::Load(std::string(kData) + "bytes.model");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->fingerprint(),
            "9b0c94cc7d405a5c8fab191e50576923c3fa6a0320bdda0ac70442a7b65f9b52");
}

TEST(TokenizerLoad, NamesTheFileThatIsMissingOrBroken) {
  const auto missing = Tokenizer::Load("/nonexistent/tokenizer.model");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nonexistent/tokenizer.model"));
  EXPECT_EQ(Tokenizer::Load("/").status().code(), absl::StatusCode::kNotFound);
  const std::string golden = std::string(kData) + "bytes.golden.json";
  const auto broken = Tokenizer::Load(golden);
  EXPECT_EQ(broken.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.status().message()), HasSubstr(golden));
}

TEST(TokenizerCreate, RefusesAFileCutAnywhere) {
  for (const char* name : {"bytes.model", "rules.model"}) {
    const std::string model = ReadFile(std::string(kData) + name);
    ASSERT_TRUE(Tokenizer::Create(model).ok());
    // What may come after the normaliser's settings is not needed, and empty in these files.
    ModelProto whole;
    ASSERT_TRUE(whole.ParseFromString(model));
    whole.clear_denormalizer_spec();
    const size_t needed = whole.ByteSizeLong();
    for (size_t size = 0; size < needed; ++size) {
      ASSERT_FALSE(Tokenizer::Create(std::string_view(model).substr(0, size)).ok())
          << name << " cut to " << size << " of " << model.size();
    }
  }
}

struct Fault {
  std::string message;  // part of it
  void (*inject)(ModelProto&);
};

TEST(TokenizerCreate, RefusesUnsoundModels) {
  const std::vector<Fault> faults = {
      {"no pieces", [](auto& m) { m.clear_pieces(); }},
      {"no trainer_spec", [](auto& m) { m.clear_trainer_spec(); }},
      {"no normalizer_spec", [](auto& m) { m.clear_normalizer_spec(); }},
      {"no unknown piece", [](auto& m) { m.mutable_pieces(0)->set_type(Piece::CONTROL); }},
      {"piece 4 (\"<oov>\"): a second unknown",
       [](auto& m) { AddPiece(m, "<oov>", 0, Piece::UNKNOWN); }},
      {"piece 4 (\"\"): empty", [](auto& m) { AddPiece(m, ""); }},
      {"piece 4 (\"a\"): spelled like piece 3", [](auto& m) { AddPiece(m, "a"); }},
      {"spelled like piece 1", [](auto& m) { AddPiece(m, "<s>"); }},
      {"zero byte", [](auto& m) { AddPiece(m, std::string("a\0b", 3)); }},
      {"(\"\\xff\"): not UTF-8", [](auto& m) { AddPiece(m, "\xFF"); }},
      {"8000 bytes", [](auto& m) { AddPiece(m, std::string(8000, 'x')); }},
      {"score not finite", [](auto& m) { AddPiece(m, "x", std::nanf("")); }},
      {"score not finite",
       [](auto& m) { AddPiece(m, "x", -std::numeric_limits<float>::infinity()); }},
      {"without byte_fallback", [](auto& m) { AddPiece(m, "<0x00>", 0, Piece::BYTE); }},
      {"no piece for byte 0", [](auto& m) { m.mutable_trainer_spec()->set_byte_fallback(true); }},
      {"no piece for byte 255",
       [](auto& m) {
         AddBytePieces(m);
         m.mutable_pieces()->RemoveLast();
       }},
      {"not a byte",
       [](auto& m) {
         AddBytePieces(m);
         AddPiece(m, "<0x0a>", 0, Piece::BYTE);
       }},
      {"unk_surface", [](auto& m) { m.mutable_trainer_spec()->set_unk_surface("\xC3"); }},
  };
  for (const Fault& fault : faults) {
    ModelProto model = BareModel();
    AddPiece(model, "a");
    ASSERT_TRUE(Tokenizer::Create(model.SerializeAsString()).ok());
    fault.inject(model);
    const auto status = Tokenizer::Create(model.SerializeAsString()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.message));
  }
}

// With and without the dummy prefix and whitespace clean-up, text cut anywhere decodes as one.
TEST_P(GoldenModel, ContinuesATextWithoutASeam) {
  const auto loaded = Tokenizer::Load(std::string(kData) + GetParam() + ".model");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& tokenizer = **loaded;
  const std::string text = "The fox ran home. What did the owl do?";
  for (size_t cut = 1; cut < text.size(); ++cut) {
    std::vector<TokenId> tokens = tokenizer.Encode(text.substr(0, cut));
    for (const TokenId id : tokenizer.EncodeContinuation(text.substr(cut))) tokens.push_back(id);
    const bool ends_with_space = text[cut - 1] == ' ';
    if (ends_with_space && tokenizer.normalization().remove_extra_whitespaces) continue;
    EXPECT_EQ(tokenizer.Decode(tokens), tokenizer.Decode(tokenizer.Encode(text))) << cut;
  }
  EXPECT_THAT(tokenizer.EncodeContinuation(""), IsEmpty());
}

TEST(TokenizerContinuation, KeepsItsOwnLeadingSpaceAndGetsNoOther) {
  ModelProto model = BareModel();
  model.mutable_normalizer_spec()->set_add_dummy_prefix(true);
  AddPiece(model, "▁", -1);
  AddPiece(model, "a", -2);
  const auto keeping = Create(model);
  EXPECT_THAT(keeping->EncodeContinuation("a"), ElementsAre(4));
  EXPECT_THAT(keeping->EncodeContinuation("  a"), ElementsAre(3, 3, 4));
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(true);
  const auto cleaning = Create(model);
  EXPECT_THAT(cleaning->EncodeContinuation("  a  a "), ElementsAre(3, 4, 3, 4));
  EXPECT_THAT(cleaning->Encode("  a"), ElementsAre(3, 4));
}

TEST(TokenizerCreate, RefusesOtherKindsOfModels) {
  ModelProto model = BareModel();
  model.mutable_trainer_spec()->set_model_type(sentencepiece::TrainerSpec::UNIGRAM);
  const auto unigram = Tokenizer::Create(model.SerializeAsString()).status();
  EXPECT_EQ(unigram.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(unigram.message()), HasSubstr("UNIGRAM"));
  model = BareModel();
  model.mutable_denormalizer_spec()->set_precompiled_charsmap("rules");
  EXPECT_EQ(Tokenizer::Create(model.SerializeAsString()).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(TokenizerCreate, RefusesBrokenCharacterMaps) {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> maps = {
      {"\4\0"s, "shorter than"},
      {"\0\0\0\0x\0"s, "does not fit"},
      {"\5\0\0\0ABCDEx\0"s, "does not fit"},
      {"\4\0\0\0ABCD"s, "does not fit"},
      {"\xFF\xFF\xFF\xFFx\0"s, "does not fit"},
      {"\4\0\0\0ABCDx"s, "has no end"},
      {"\4\0\0\0ABCD"s + std::string(1025, 'x') + "\0"s, "1025 bytes"},
  };
  for (const auto& [map, message] : maps) {
    ModelProto model = BareModel();
    model.mutable_normalizer_spec()->set_precompiled_charsmap(map);
    const auto status = Tokenizer::Create(model.SerializeAsString()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace photon
