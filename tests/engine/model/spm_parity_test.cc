// Encoding and decoding agree with SentencePiece's own programs, for models trained on the spot
// with many settings. Needs `spm_train`, `spm_encode` and `spm_decode` (package sentencepiece).
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "engine/model/sentencepiece_model.pb.h"
#include "engine/model/tokenizer.h"
#include "engine/model/utf8.h"
#include "gtest/gtest.h"
#include "tests/engine/model/sample_texts.h"

namespace photon {
namespace {

constexpr int kTrainingLines = 3000;
constexpr int kComparedLines = 4000;

struct Setting {
  std::string name;
  std::string flags;                                     // of spm_train
  std::function<void(sentencepiece::ModelProto&)> edit;  // of the trained model, may be empty
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

// Makes scores tie and merges compete in odd orders.
void FlattenScores(sentencepiece::ModelProto& model) {
  for (auto& piece : *model.mutable_pieces()) {
    piece.set_score(static_cast<float>(-(piece.piece().size() * 7 % 5)));
  }
}

void RetireEveryThirdPiece(sentencepiece::ModelProto& model) {
  for (int id = 300; id < model.pieces_size(); id += 3) {
    auto& piece = *model.mutable_pieces(id);
    if (piece.type() == sentencepiece::ModelProto::SentencePiece::NORMAL) {
      piece.set_type(sentencepiece::ModelProto::SentencePiece::UNUSED);
    }
  }
}

void KeepSpaces(sentencepiece::ModelProto& model) {
  model.mutable_normalizer_spec()->set_escape_whitespaces(false);
}

const std::string kLlamaLike =
    "--normalization_rule_name=identity --byte_fallback=true --remove_extra_whitespaces=false "
    "--split_digits=true ";
const std::string kSymbols =
    "--user_defined_symbols='\n,<|user|>,[a],[ab],[abc,\u2581\u2581,\u2581\u2581\u2581\u2581' ";

const std::vector<Setting> kSettings = {
    {"LlamaLike", kLlamaLike, {}},
    {"UserSymbols", kLlamaLike + kSymbols, {}},
    {"NoDummyPrefix", kLlamaLike + kSymbols + "--add_dummy_prefix=false", {}},
    {"Defaults", "", {}},
    {"DefaultsWithBytes", "--byte_fallback=true " + kSymbols, {}},
    {"DefaultsNoDummyPrefix", "--add_dummy_prefix=false " + kSymbols, {}},
    {"CaseFolding", "--normalization_rule_name=nmt_nfkc_cf --byte_fallback=true", {}},
    {"Nfkc", "--normalization_rule_name=nfkc --remove_extra_whitespaces=false", {}},
    {"IdentityNoBytes", "--normalization_rule_name=identity --control_symbols='<|end|>'", {}},
    {"PiecesAcrossSpaces",
     kLlamaLike + "--split_by_whitespace=false --split_by_unicode_script=false",
     {}},
    {"WhitespaceOnlyPieces", kLlamaLike + "--allow_whitespace_only_pieces=true", {}},
    {"WhitespaceAsSuffix", "--treat_whitespace_as_suffix=true --byte_fallback=true", {}},
    {"OtherSpecialPieces",
     "--unk_piece='[UNK]' --bos_piece='[BOS]' --eos_id=-1 --pad_id=2 --unk_surface='?'",
     {}},
    {"TiedScores", kLlamaLike + kSymbols, FlattenScores},
    {"UnusedPieces", kLlamaLike, RetireEveryThirdPiece},
    {"UnusedPiecesTiedScores", "",
     [](auto& model) {
       FlattenScores(model);
       RetireEveryThirdPiece(model);
     }},
    {"UnescapedSpaces", "--byte_fallback=true --user_defined_symbols='a b'", KeepSpaces},
};

class SpmParity : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "spm_parity_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;

    SampleTexts texts(1);
    std::string corpus;
    for (int i = 0; i < kTrainingLines; ++i) corpus += texts.Sentence() + "\n";
    Write("corpus", corpus);
    Run("spm_train --model_type=bpe --vocab_size=1500 --hard_vocab_limit=false --input=" +
        Path("corpus") + " --model_prefix=" + Path("trained") +
        " --character_coverage=0.995 --minloglevel=2 " + GetParam().flags);

    sentencepiece::ModelProto model;
    ASSERT_TRUE(model.ParseFromString(Read("trained.model")));
    if (GetParam().edit) GetParam().edit(model);
    Write("model", model.SerializeAsString());
    auto tokenizer = Tokenizer::Load(Path("model"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    ASSERT_GT(tokenizer_->vocab_size(), 1000);
  }

  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
  }

  std::string Read(const std::string& name) const {
    std::ifstream file(Path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  void Run(const std::string& command) const {
    ASSERT_EQ(std::system((command + " 2>" + Path("log")).c_str()), 0)
        << command << "\n"
        << Read("log") << "Is the package sentencepiece installed?";
  }

  // The lines that `command` prints for `lines` on its standard input.
  std::vector<std::string> Filter(const std::string& command,
                                  const std::vector<std::string>& lines) const {
    std::string input;
    for (const std::string& line : lines) input += line + "\n";
    Write("input", input);
    Run(command + " --model=" + Path("model") + " <" + Path("input") + " >" + Path("output"));
    std::vector<std::string> printed;
    std::istringstream output(Read("output"));
    for (std::string line; std::getline(output, line);) printed.push_back(line);
    return printed;
  }

  static std::string Join(const std::vector<TokenId>& tokens) {
    std::string line;
    for (const TokenId token : tokens) {
      if (!line.empty()) line += ' ';
      line += std::to_string(token);
    }
    return line;
  }

  std::string folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(SpmParity, EncodesAsSpmEncode) {
  SampleTexts texts(2);
  std::vector<std::string> lines;
  for (int i = 0; i < kComparedLines; ++i) lines.push_back(texts.Line(/*broken=*/i % 2 == 0));
  const auto expected = Filter("spm_encode --output_format=id", lines);
  ASSERT_EQ(expected.size(), lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    ASSERT_EQ(Join(tokenizer_->Encode(lines[i])), expected[i]) << testing::PrintToString(lines[i]);
  }
}

TEST_P(SpmParity, DecodesAsSpmDecode) {
  SampleTexts texts(3);
  std::vector<TokenId> printable;  // a newline would end spm_decode's line early
  for (TokenId id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (tokenizer_->surface(id).find('\n') == std::string_view::npos) printable.push_back(id);
  }
  std::vector<std::vector<TokenId>> sequences;
  std::vector<std::string> lines;
  for (int i = 0; i < kComparedLines; ++i) {
    std::vector<TokenId> tokens;
    if (i % 2 == 0) {
      tokens = tokenizer_->Encode(texts.Line(/*broken=*/false));
    } else {
      // Low ids, where the special and byte pieces are, come more often.
      for (uint32_t n = texts.Below(20); n > 0; --n) {
        tokens.push_back(printable[texts.Below(1 + texts.Below(printable.size()))]);
      }
    }
    lines.push_back(Join(tokens));
    sequences.push_back(std::move(tokens));
  }
  const auto expected = Filter("spm_decode --input_format=id", lines);
  ASSERT_EQ(expected.size(), lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string text = tokenizer_->Decode(sequences[i]);
    ASSERT_EQ(text, expected[i]) << lines[i];
    ASSERT_TRUE(IsValidUtf8(text)) << lines[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, SpmParity, testing::ValuesIn(kSettings),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace photon
