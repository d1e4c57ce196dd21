#include "engine/model/detokenizer.h"

#include <string>
#include <vector>

#include "engine/model/utf8.h"
#include "gtest/gtest.h"
#include "tests/engine/model/sample_texts.h"

namespace photon {
namespace {

class DetokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    bytes_ = LoadModel("bytes");
    rules_ = LoadModel("rules");
  }

  static std::unique_ptr<Tokenizer> LoadModel(const std::string& name) {
    auto tokenizer = Tokenizer::Load(PHOTON_TEST_DATA "/tokenizer/" + name + ".model");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }

  // The token of a single byte; byte pieces follow the special and user-defined ones, in order.
  TokenId Byte(int byte) const {
    for (TokenId id = 0; id < bytes_->vocab_size(); ++id) {
      if (bytes_->type(id) == Tokenizer::PieceType::kByte) return id + byte;
    }
    return -1;
  }

  // What each token adds, and then Finish().
  std::vector<std::string> Stream(const std::vector<TokenId>& tokens) const {
    Detokenizer detokenizer(*bytes_);
    std::vector<std::string> parts;
    for (const TokenId token : tokens) parts.push_back(detokenizer.Append(token));
    parts.push_back(detokenizer.Finish());
    return parts;
  }

  std::unique_ptr<Tokenizer> bytes_;  // byte fallback, dummy prefix
  std::unique_ptr<Tokenizer> rules_;  // extra whitespace removed, no dummy prefix
};

using Parts = std::vector<std::string>;

TEST_F(DetokenizerTest, HoldsACharacterBackUntilItIsComplete) {
  EXPECT_EQ(Stream({Byte(0xF0), Byte(0x9F), Byte(0x98), Byte(0x80)}),
            Parts({"", "", "", "\U0001F600", ""}));
  EXPECT_EQ(Stream({Byte(0xC3), Byte(0xA9), Byte('a')}), Parts({"", "\u00E9", "a", ""}));
}

TEST_F(DetokenizerTest, GivesBrokenCharactersUpAsSoonAsTheyAreCertainlyBroken) {
  EXPECT_EQ(Stream({Byte(0x80)}), Parts({"\uFFFD", ""}));
  EXPECT_EQ(Stream({Byte(0xE0), Byte(0x80)}), Parts({"", "\uFFFD\uFFFD", ""}));
  EXPECT_EQ(Stream({Byte(0xF0), Byte(0x9F), Byte('a')}), Parts({"", "", "\uFFFD\uFFFDa", ""}));
  EXPECT_EQ(Stream({Byte(0xE2), Byte(0x82), Byte(0xC3), Byte(0xA9)}),
            Parts({"", "", "\uFFFD\uFFFD", "\u00E9", ""}));
}

TEST_F(DetokenizerTest, EndsAnUnfinishedCharacterAtTheNextPieceOrTheEnd) {
  const TokenId newline = 3;
  EXPECT_EQ(Stream({Byte(0xF0), Byte(0x9F), newline}), Parts({"", "", "\uFFFD\uFFFD\n", ""}));
  EXPECT_EQ(Stream({Byte(0xF0), Byte(0x9F)}), Parts({"", "", "\uFFFD\uFFFD"}));
  EXPECT_EQ(Stream({Byte(0xC3), *bytes_->eos_id(), Byte(0xA9)}),
            Parts({"", "\uFFFD", "\uFFFD", ""}));
}

TEST_F(DetokenizerTest, TakesTheDummySpaceOffAtTheStartOnly) {
  const std::vector<TokenId> fox = bytes_->Encode("fox");
  ASSERT_TRUE(bytes_->piece(fox[0]).starts_with(kSpaceSymbol));
  EXPECT_EQ(bytes_->Decode(fox), "fox");

  const auto text_after = [&](const std::vector<TokenId>& prompt) {
    Detokenizer detokenizer(*bytes_, prompt);
    std::string text;
    for (const TokenId token : fox) text += detokenizer.Append(token);
    return text + detokenizer.Finish();
  };
  EXPECT_EQ(text_after(bytes_->Encode("The")), " fox");
  EXPECT_EQ(text_after(bytes_->Encode(" ")), " fox");
  EXPECT_EQ(text_after({*bytes_->bos_id()}), "fox");
  EXPECT_EQ(text_after({}), "fox");
}

TEST_F(DetokenizerTest, CompletesACharacterThatThePromptBegan) {
  const std::vector<TokenId> prompt = {Byte(0xE2), Byte(0x82)};
  Detokenizer detokenizer(*bytes_, prompt);
  EXPECT_EQ(detokenizer.Append(Byte(0xAC)), "\u20AC");
}

TEST_F(DetokenizerTest, GivesNoTextForControlPiecesAndForeignIds) {
  EXPECT_EQ(Stream({*bytes_->bos_id(), *bytes_->eos_id(), -1, bytes_->vocab_size(), 1 << 30}),
            Parts({"", "", "", "", "", ""}));
  EXPECT_EQ(Stream({bytes_->unk_id()}), Parts({" \u2047 ", ""}));
}

// Splits random sequences into a prompt and the rest at every place: together they read as one.
TEST_F(DetokenizerTest, StreamsWhatDecodingAtOnceGives) {
  SampleTexts random(5);
  for (const Tokenizer* tokenizer : {bytes_.get(), rules_.get()}) {
    for (int round = 0; round < 1000; ++round) {
      std::vector<TokenId> tokens;
      if (round % 2 == 0) tokens = tokenizer->Encode(random.Line(/*broken=*/true));
      for (uint32_t n = random.Below(16); n > 0; --n) {
        tokens.push_back(random.Below(1 + random.Below(tokenizer->vocab_size())));
      }
      const std::string whole = tokenizer->Decode(tokens);
      ASSERT_TRUE(IsValidUtf8(whole));

      std::string so_far;
      Detokenizer detokenizer(*tokenizer);
      for (size_t split = 0; split <= tokens.size(); ++split) {
        std::string text = so_far;
        Detokenizer rest(*tokenizer, std::span(tokens).first(split));
        for (const TokenId token : std::span(tokens).subspan(split)) text += rest.Append(token);
        ASSERT_EQ(text + rest.Finish(), whole);
        if (split < tokens.size()) {
          const std::string part = detokenizer.Append(tokens[split]);
          ASSERT_TRUE(IsValidUtf8(part));
          so_far += part;
        }
      }
      ASSERT_EQ(so_far + detokenizer.Finish(), whole);
    }
  }
}

TEST_F(DetokenizerTest, GivesTheTextBackWhereTheModelKeepsIt) {
  SampleTexts texts(6);
  for (int i = 0; i < 2000; ++i) {
    std::string text = texts.Line(/*broken=*/false);
    if (text.find(kSpaceSymbol) != std::string::npos) continue;  // stands for a space by design
    ASSERT_EQ(bytes_->Decode(bytes_->Encode(text)), text);
  }
}

}  // namespace
}  // namespace photon
