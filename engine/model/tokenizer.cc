#include "engine/model/tokenizer.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <queue>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/model/detokenizer.h"
#include "engine/model/sentencepiece_model.pb.h"
#include "engine/model/utf8.h"

namespace photon {
namespace {

// SentencePiece's own limit.
constexpr size_t kMaxPieceBytes = 8000;

absl::string_view ToAbsl(std::string_view text) {
  return {text.data(), text.size()};
}

std::string Sha256Hex(std::string_view bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr) != 1) return "";
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest), size});
}

std::string WithSpaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const size_t symbol = piece.find(kSpaceSymbol);
    text += piece.substr(0, symbol);
    if (symbol == std::string_view::npos) break;
    text += ' ';
    piece.remove_prefix(symbol + kSpaceSymbol.size());
  }
  return text;
}

// The byte that a piece such as "<0x0A>" stands for.
std::optional<int> ByteOfPiece(std::string_view piece) {
  const auto hex = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  if (hex(piece[3]) < 0 || hex(piece[4]) < 0) return std::nullopt;
  return hex(piece[3]) * 16 + hex(piece[4]);
}

// Length of a character as its first byte announces it; text here may be broken by odd rules.
size_t AnnouncedCharLength(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The bytes of a character as a number; distinct characters give distinct ones.
uint32_t PackCharacter(std::string_view character) {
  uint32_t packed = 0;
  for (const char c : character) packed = packed << 8 | static_cast<unsigned char>(c);
  return packed;
}

Tokenizer::PieceType ToPieceType(sentencepiece::ModelProto::SentencePiece::Type type) {
  using Proto = sentencepiece::ModelProto::SentencePiece;
  using Type = Tokenizer::PieceType;
  switch (type) {
    case Proto::NORMAL:
      return Type::kNormal;
    case Proto::UNKNOWN:
      return Type::kUnknown;
    case Proto::CONTROL:
      return Type::kControl;
    case Proto::USER_DEFINED:
      return Type::kUserDefined;
    case Proto::UNUSED:
      return Type::kUnused;
    case Proto::BYTE:
      return Type::kByte;
  }
  return Type::kNormal;
}

absl::Status PieceError(int id, std::string_view text, std::string_view problem) {
  const std::string shown =
      IsValidUtf8(text) ? absl::Utf8SafeCHexEscape(ToAbsl(text)) : absl::CHexEscape(ToAbsl(text));
  return absl::InvalidArgumentError(
      absl::StrCat("piece ", id, " (\"", shown, "\"): ", ToAbsl(problem)));
}

}  // namespace

// Byte pair encoding of one normalised text: neighbouring symbols whose concatenation is a piece
// are merged, the highest score first and the leftmost of equals, until none is left.
//
// The text is taken in segments, cut where no piece continues: merges in one never touch another,
// and an agenda of one word stays in the processor's cache where that of a long prompt does not.
class Tokenizer::Merger {
 public:
  Merger(const Tokenizer& tokenizer, std::string_view text) : tokenizer_(tokenizer), text_(text) {}

  std::vector<TokenId> Run() {
    uint32_t previous_character = 0;
    for (size_t begin = 0; begin < text_.size();) {
      const std::string_view rest = text_.substr(begin);
      const size_t matched = tokenizer_.normalizer_.symbols().LongestPrefix(rest);
      const size_t size =
          matched > 0 ? matched : std::min(rest.size(), AnnouncedCharLength(rest[0]));
      const uint32_t character = matched > 0 ? 0 : PackCharacter(rest.substr(0, size));
      if (!tokenizer_.MayMerge(previous_character, character)) FinishSegment();
      const int index = static_cast<int>(symbols_.size());
      if (index > 0) symbols_.back().next = index;
      symbols_.push_back({.previous = index - 1,
                          .next = -1,
                          .begin = static_cast<uint32_t>(begin),
                          .size = static_cast<uint32_t>(size),
                          .frozen = matched > 0});
      previous_character = character;
      begin += size;
    }
    FinishSegment();
    return std::move(ids_);
  }

 private:
  struct Symbol {
    int32_t previous;  // -1: none
    int32_t next;      // -1: none
    uint32_t begin;    // in text_
    uint32_t size;     // bytes; 0 once merged into its left neighbour
    bool frozen;       // user-defined: never merged
  };

  struct Merge {
    float score;
    int32_t left;
    int32_t right;
    uint32_t size;  // bytes of both

    bool operator<(const Merge& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };

  // Merges what can be merged in symbols_, emits the result and starts an empty segment.
  void FinishSegment() {
    for (int i = 1; i < static_cast<int>(symbols_.size()); ++i) Propose(i - 1, i);
    while (!agenda_.empty()) {
      const Merge merge = agenda_.top();
      agenda_.pop();
      Symbol& left = symbols_[merge.left];
      Symbol& right = symbols_[merge.right];
      // Symbols only grow or vanish, so an unchanged size means that both are as proposed.
      if (left.size == 0 || right.size == 0 || left.size + right.size != merge.size) continue;
      left.size = merge.size;
      left.next = right.next;
      right.size = 0;
      if (left.next >= 0) symbols_[left.next].previous = merge.left;
      Propose(left.previous, merge.left);
      Propose(merge.left, left.next);
    }
    for (int i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[i].next) {
      Emit(text_.substr(symbols_[i].begin, symbols_[i].size));
    }
    symbols_.clear();
  }

  void Propose(int left, int right) {
    if (left < 0 || right < 0) return;
    const Symbol& a = symbols_[left];
    const Symbol& b = symbols_[right];
    if (a.frozen || b.frozen) return;
    const uint32_t size = a.size + b.size;
    if (size > tokenizer_.max_piece_bytes_) return;
    const std::string_view text = text_.substr(a.begin, size);
    const auto found = tokenizer_.id_of_piece_.find(ToAbsl(text));
    if (found == tokenizer_.id_of_piece_.end()) return;
    const Piece& piece = tokenizer_.pieces_[found->second];
    agenda_.push({.score = piece.score, .left = left, .right = right, .size = size});
    if (piece.type == PieceType::kUnused) split_of_unused_[found->second] = a.size;
  }

  void Emit(std::string_view symbol) {
    const auto found = tokenizer_.id_of_piece_.find(ToAbsl(symbol));
    if (found == tokenizer_.id_of_piece_.end()) {
      EmitUnknown(symbol);
      return;
    }
    const TokenId id = found->second;
    if (tokenizer_.pieces_[id].type == PieceType::kUnused) {
      // A merge that the vocabulary no longer offers is undone. Its parts are the same wherever it
      // occurs: merges inside a piece's text that touch nothing outside come in one fixed order.
      if (const auto split = split_of_unused_.find(id); split != split_of_unused_.end()) {
        const size_t left_size = split->second;
        Emit(symbol.substr(0, left_size));
        Emit(symbol.substr(left_size));
        return;
      }
    }
    ids_.push_back(id);
    after_unknown_ = false;
  }

  // Bytes, or one <unk> for a whole run of unknown characters.
  void EmitUnknown(std::string_view symbol) {
    if (tokenizer_.byte_fallback_) {
      for (const char c : symbol) {
        ids_.push_back(tokenizer_.id_of_byte_[static_cast<unsigned char>(c)]);
      }
    } else if (!after_unknown_) {
      ids_.push_back(tokenizer_.unk_id_);
    }
    after_unknown_ = true;
  }

  const Tokenizer& tokenizer_;
  const std::string_view text_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Merge> agenda_;
  absl::flat_hash_map<TokenId, uint32_t> split_of_unused_;  // bytes of the left part
  std::vector<TokenId> ids_;
  bool after_unknown_ = false;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (file == nullptr) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::string model;
  std::array<char, 1 << 16> buffer;
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    model.append(buffer.data(), size);
  }
  if (std::ferror(file.get())) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  auto tokenizer = Create(model);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(std::string_view model) {
  sentencepiece::ModelProto proto;
  if (model.empty() || model.size() > std::numeric_limits<int>::max() ||
      !proto.ParseFromArray(model.data(), static_cast<int>(model.size()))) {
    return absl::InvalidArgumentError("not a SentencePiece model file, or cut short");
  }
  const sentencepiece::TrainerSpec& trainer = proto.trainer_spec();
  if (proto.pieces().empty()) return absl::InvalidArgumentError("the model has no pieces");
  if (!proto.has_trainer_spec() || !proto.has_normalizer_spec()) {
    return absl::InvalidArgumentError("the model has no trainer_spec or no normalizer_spec");
  }
  if (trainer.model_type() != sentencepiece::TrainerSpec::BPE) {
    return absl::UnimplementedError(
        absl::StrCat("trainer_spec.model_type: only BPE models are supported, this one is ",
                     ToAbsl(sentencepiece::TrainerSpec::ModelType_Name(trainer.model_type()))));
  }
  if (!proto.denormalizer_spec().precompiled_charsmap().empty()) {
    return absl::UnimplementedError("denormalizer_spec: denormalisation is not supported");
  }
  if (!IsValidUtf8(trainer.unk_surface())) {
    return absl::InvalidArgumentError("trainer_spec.unk_surface: not UTF-8");
  }

  std::vector<Piece> pieces;
  pieces.reserve(proto.pieces_size());
  std::vector<std::string> user_defined;
  std::optional<TokenId> unk_id;
  for (int id = 0; id < proto.pieces_size(); ++id) {
    const std::string& text = proto.pieces(id).piece();
    if (text.empty()) return PieceError(id, text, "empty");
    if (text.size() >= kMaxPieceBytes) return PieceError(id, "...", "8000 bytes long or longer");
    if (text.find('\0') != text.npos) return PieceError(id, text, "holds a zero byte");
    if (!IsValidUtf8(text)) return PieceError(id, text, "not UTF-8");
    if (!std::isfinite(proto.pieces(id).score())) return PieceError(id, text, "score not finite");
    Piece piece{.text = text,
                .surface = "",
                .score = proto.pieces(id).score(),
                .type = ToPieceType(proto.pieces(id).type())};
    switch (piece.type) {
      case PieceType::kControl:
        break;
      case PieceType::kUnknown:
        if (unk_id) return PieceError(id, text, "a second unknown piece");
        unk_id = id;
        piece.surface = trainer.unk_surface();
        break;
      case PieceType::kByte: {
        if (!trainer.byte_fallback()) return PieceError(id, text, "a byte without byte_fallback");
        const std::optional<int> byte = ByteOfPiece(text);
        if (!byte) return PieceError(id, text, "not a byte: <0x00> to <0xFF> are expected");
        piece.surface.assign(1, static_cast<char>(*byte));
        break;
      }
      case PieceType::kUserDefined:
        user_defined.push_back(text);
        [[fallthrough]];
      case PieceType::kNormal:
      case PieceType::kUnused:
        piece.surface = WithSpaces(text);
        break;
    }
    pieces.push_back(std::move(piece));
  }
  if (!unk_id) return absl::InvalidArgumentError("the model has no unknown piece");

  const sentencepiece::NormalizerSpec& normalizer = proto.normalizer_spec();
  CharsMap chars_map;
  if (!normalizer.precompiled_charsmap().empty()) {
    auto created = CharsMap::Create(normalizer.precompiled_charsmap());
    if (!created.ok()) return created.status();
    chars_map = *std::move(created);
  }
  const TextNormalizer::Options options{
      .add_dummy_prefix = normalizer.add_dummy_prefix(),
      .remove_extra_whitespaces = normalizer.remove_extra_whitespaces(),
      .escape_whitespaces = normalizer.escape_whitespaces(),
      .whitespace_as_suffix = trainer.treat_whitespace_as_suffix()};

  absl::flat_hash_map<absl::string_view, TokenId> id_of_text;
  for (int id = 0; id < static_cast<int>(pieces.size()); ++id) {
    const auto [first, inserted] = id_of_text.emplace(pieces[id].text, id);
    if (!inserted) {
      return PieceError(id, pieces[id].text, absl::StrCat("spelled like piece ", first->second));
    }
  }

  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(
      std::move(pieces),
      TextNormalizer(options, std::move(chars_map), SymbolMatcher(std::move(user_defined)))));
  tokenizer->byte_fallback_ = trainer.byte_fallback();
  tokenizer->unk_id_ = *unk_id;
  tokenizer->id_of_byte_.fill(-1);
  for (TokenId id = 0; id < tokenizer->vocab_size(); ++id) {
    const Piece& piece = tokenizer->pieces_[id];
    switch (piece.type) {
      case PieceType::kByte:
        tokenizer->id_of_byte_[static_cast<unsigned char>(piece.surface[0])] = id;
        break;
      case PieceType::kNormal:
      case PieceType::kUserDefined:
      case PieceType::kUnused:
        tokenizer->id_of_piece_.emplace(piece.text, id);
        tokenizer->max_piece_bytes_ = std::max(tokenizer->max_piece_bytes_, piece.text.size());
        tokenizer->AddNeighbours(piece.text);
        break;
      case PieceType::kUnknown:
      case PieceType::kControl:
        break;
    }
  }
  if (trainer.byte_fallback()) {
    for (int byte = 0; byte < 256; ++byte) {
      if (tokenizer->id_of_byte_[byte] < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("byte_fallback is on, but there is no piece for byte ", byte));
      }
    }
  }
  tokenizer->bos_id_ = tokenizer->FindPiece(PieceType::kControl, trainer.bos_piece());
  tokenizer->eos_id_ = tokenizer->FindPiece(PieceType::kControl, trainer.eos_piece());
  tokenizer->pad_id_ = tokenizer->FindPiece(PieceType::kControl, trainer.pad_piece());
  tokenizer->fingerprint_ = Sha256Hex(model);
  return tokenizer;
}

std::optional<TokenId> Tokenizer::FindPiece(PieceType type, std::string_view text) const {
  for (TokenId id = 0; id < vocab_size(); ++id) {
    if (pieces_[id].type == type && pieces_[id].text == text) return id;
  }
  return std::nullopt;
}

void Tokenizer::AddNeighbours(std::string_view piece) {
  uint64_t pair = 0;
  for (size_t begin = 0; begin < piece.size();) {
    const size_t size = AnnouncedCharLength(piece[begin]);
    pair = pair << 32 | PackCharacter(piece.substr(begin, size));
    if (begin > 0) neighbours_.insert(pair);
    begin += size;
  }
}

bool Tokenizer::MayMerge(uint32_t left, uint32_t right) const {
  return neighbours_.contains(uint64_t{left} << 32 | right);
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text) const {
  const std::string normalized = normalizer_.Normalize(text);
  return Merger(*this, normalized).Run();
}

std::vector<TokenId> Tokenizer::EncodeContinuation(std::string_view text) const {
  const std::string normalized = normalizer_.NormalizeContinuation(text);
  return Merger(*this, normalized).Run();
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens) const {
  Detokenizer detokenizer(*this);
  std::string text;
  for (const TokenId token : tokens) text += detokenizer.Append(token);
  return text += detokenizer.Finish();
}

}  // namespace photon
