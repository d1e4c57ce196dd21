#include "engine/model/detokenizer.h"

#include <string_view>

#include "engine/model/text_normalizer.h"
#include "engine/model/utf8.h"

namespace photon {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, std::span<const TokenId> prompt)
    : tokenizer_(&tokenizer),
      strip_leading_space_(tokenizer.normalization().add_dummy_prefix ||
                           tokenizer.normalization().remove_extra_whitespaces) {
  for (const TokenId token : prompt) Append(token);
}

std::string Detokenizer::Append(TokenId token) {
  using Type = Tokenizer::PieceType;
  const bool known = token >= 0 && token < tokenizer_->vocab_size();
  const Type type = known ? tokenizer_->type(token) : Type::kControl;
  std::string text;
  if (type == Type::kByte) {
    held_ += tokenizer_->surface(token);
    Release(/*run_ended=*/false, text);
  } else {
    Release(/*run_ended=*/true, text);
    // Text of the run before this piece also counts as the start of the sequence.
    if (!text.empty()) strip_leading_space_ = false;
    std::string_view surface = known ? tokenizer_->surface(token) : "";
    if (strip_leading_space_ && type != Type::kUnknown && type != Type::kControl &&
        tokenizer_->piece(token).starts_with(kSpaceSymbol)) {
      surface.remove_prefix(1);
      // Without remove_extra_whitespaces only the one dummy space goes.
      strip_leading_space_ = tokenizer_->normalization().remove_extra_whitespaces;
    }
    text += surface;
  }
  if (!text.empty()) strip_leading_space_ = false;
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  Release(/*run_ended=*/true, text);
  return text;
}

void Detokenizer::Release(bool run_ended, std::string& text) {
  std::string_view rest = held_;
  while (!rest.empty()) {
    size_t length = Utf8CharLength(rest);
    if (length > 0) {
      text += rest.substr(0, length);
    } else if (!run_ended && IsUtf8Prefix(rest)) {
      break;
    } else {
      text += kReplacementCharacter;
      length = 1;
    }
    rest.remove_prefix(length);
  }
  held_.erase(0, held_.size() - rest.size());
}

}  // namespace photon
