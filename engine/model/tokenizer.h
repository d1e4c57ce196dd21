// Text to token ids and back, by a SentencePiece BPE model file (`tokenizer.model`).
//
// Encoding equals `spm_encode`, decoding `spm_decode`: docs/tokenizer.md says how that is checked
// and which model files are refused.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model/text_normalizer.h"
#include "engine/types.h"

namespace photon {

// Immutable; safe to use from many threads.
class Tokenizer {
 public:
  enum class PieceType {
    kNormal,
    kUnknown,      // stands for text that no piece covers
    kControl,      // <s>, </s>: never comes from text, has no text
    kUserDefined,  // always one token wherever its text occurs
    kUnused,       // never encoded: its parts are
    kByte,         // one byte of a character that no piece covers
  };

  // Reads the file at `path`. kNotFound: it cannot be read. Otherwise as Create(), with the path in
  // the message.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);

  // Reads the content of a model file. kInvalidArgument: it is not a sound model file (the message
  // names the piece or field). kUnimplemented: it is one of another kind (unigram, denormalising).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(std::string_view model);

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of `text` without BOS or EOS. Any bytes are accepted: those that are no UTF-8 count as
  // U+FFFD. Takes O(n log n) for n < 2^30 bytes.
  std::vector<TokenId> Encode(std::string_view text) const;

  // Ids of `text` as it goes on from other text: no dummy space is put before it, and a space of
  // its own at its beginning stays. Detokenizer gives the texts back as one.
  std::vector<TokenId> EncodeContinuation(std::string_view text) const;

  // Text of a whole sequence: Detokenizer in one call. Always valid UTF-8.
  std::string Decode(std::span<const TokenId> tokens) const;

  int vocab_size() const { return static_cast<int>(pieces_.size()); }
  TokenId unk_id() const { return unk_id_; }
  std::optional<TokenId> bos_id() const { return bos_id_; }
  std::optional<TokenId> eos_id() const { return eos_id_; }
  std::optional<TokenId> pad_id() const { return pad_id_; }

  // The next three take ids in 0 .. vocab_size() - 1.
  PieceType type(TokenId id) const { return pieces_[id].type; }
  // As the model file spells it: "▁the", "<s>", "<0x0A>".
  std::string_view piece(TokenId id) const { return pieces_[id].text; }
  // What the piece stands for inside a text: " the", "", one byte. Only kByte ones may be no UTF-8.
  std::string_view surface(TokenId id) const { return pieces_[id].surface; }

  // SentencePiece's settings, which Detokenizer needs.
  const TextNormalizer::Options& normalization() const { return normalizer_.options(); }

  // SHA-256 of the model file in lower-case hex.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  class Merger;

  struct Piece {
    std::string text;
    std::string surface;
    float score;  // a merge's priority
    PieceType type;
  };

  Tokenizer(std::vector<Piece> pieces, TextNormalizer normalizer)
      : pieces_(std::move(pieces)), normalizer_(std::move(normalizer)) {}

  // The piece of `type` that is spelled `text`.
  std::optional<TokenId> FindPiece(PieceType type, std::string_view text) const;

  // Notes which characters follow each other inside `piece`.
  void AddNeighbours(std::string_view piece);
  // False only if no piece holds the packed characters `left` and `right` next to each other.
  bool MayMerge(uint32_t left, uint32_t right) const;

  std::vector<Piece> pieces_;  // by id
  TextNormalizer normalizer_;
  // Pieces that text can turn into: normal, user-defined and unused ones. Keys borrow from pieces_.
  absl::flat_hash_map<absl::string_view, TokenId> id_of_piece_;
  size_t max_piece_bytes_ = 0;
  absl::flat_hash_set<uint64_t> neighbours_;
  bool byte_fallback_ = false;
  std::array<TokenId, 256> id_of_byte_{};  // with byte_fallback_
  TokenId unk_id_ = 0;
  std::optional<TokenId> bos_id_;
  std::optional<TokenId> eos_id_;
  std::optional<TokenId> pad_id_;
  std::string fingerprint_;
};

}  // namespace photon
