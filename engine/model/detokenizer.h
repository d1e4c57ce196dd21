// Token ids to text, one token at a time.
#pragma once

#include <span>
#include <string>

#include "engine/model/tokenizer.h"
#include "engine/types.h"

namespace photon {

// Turns the tokens of one sequence into text as they come. Every string it returns is valid UTF-8:
// the bytes of a character spelled in byte pieces are held back until it is complete, or certain
// not to be one, when they become U+FFFD.
//
// The text of Append() calls and Finish(), put together, is what `spm_decode` gives for the tokens:
// control pieces and ids outside the vocabulary have no text, and the dummy space is taken off at
// the start of the sequence only. After a prompt a leading space therefore stays.
//
// Borrows the tokenizer. For one thread at a time.
class Detokenizer {
 public:
  // A sequence that begins with `prompt`, whose text is not returned. Should the prompt end inside
  // a character, the whole character comes with the first tokens after it.
  explicit Detokenizer(const Tokenizer& tokenizer, std::span<const TokenId> prompt = {});

  // The text that has become certain with `token`; often empty.
  std::string Append(TokenId token);

  // What is still held back, at the end of the sequence. No Append() may follow.
  std::string Finish();

 private:
  // Moves characters from held_ to `text`: those that are certain, or, at the end of a run of byte
  // pieces, everything.
  void Release(bool run_ended, std::string& text);

  const Tokenizer* tokenizer_;
  std::string held_;  // of a run of byte pieces: at most 3 bytes between calls
  bool strip_leading_space_;
};

}  // namespace photon
