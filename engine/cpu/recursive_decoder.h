// Recursive decode: the top-down half of the model, one meta-context for every row in lock-step.
// Docs: docs/model.md, "Inference".
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cpu/cpu_model.h"
#include "engine/cpu/latent_pages.h"
#include "engine/cpu/sampler.h"
#include "engine/engine.h"

namespace photon {

// A row that decodes, and what it has decoded so far. Used for one row after another.
struct DecodeRow {
  const Row* row = nullptr;
  int index = 0;                      // in the step's rows
  int64_t first_token = 0;            // position of the meta-context's first token
  std::span<const TokenId> forced;    // its first tokens, given; fewer than P_L
  const float* condition = nullptr;   // [D_L] top state before this meta-context
  std::vector<SampledLogits> tokens;  // [P_L] forced and sampled
  int num_reported = 0;               // slots that the sink has seen, or that were forced
  bool ended = false;                 // the sink wants no more

  explicit DecodeRow(int meta_tokens) : tokens(meta_tokens) {}
  // Spans and `condition` are borrowed.
  void Begin(const Row& row, int index, int64_t first_token, std::span<const TokenId> forced,
             const float* condition);
};

template <typename T>
class RecursiveDecoder {
 public:
  RecursiveDecoder(CpuModel<T>& model, LatentPages<T>& pages, const BatchLimits& limits,
                   const CpuContext<T>& context);

  // Decodes in kExact mode: each unit is encoded before the next is predicted. Rows that have not
  // ended extend their pages by the meta-context.
  void DecodeExact(std::span<DecodeRow> rows, TokenSink& sink);

  // Decodes in kHierGen or kRecGen mode: all units of a level at once, no forced tokens. kRecGen
  // rows that have not ended extend their pages by their predictions; kHierGen rows leave theirs to
  // the encoder. At least two levels.
  void DecodeParallel(std::span<DecodeRow> rows, TokenSink& sink);

 private:
  // A *lane* is one group of a level that decodes: window, conditioning and prediction share its
  // number. Row r's groups of level i are lanes r * groups_per_meta(i) + g; in kExact only one
  // group of a row is open at a time, and its lane is r.
  struct Level {
    KvWindows<T> windows;              // decoder positions of each lane
    AlignedBuffer<float> predictions;  // [lanes, D_{l-1}] newest Y[l-1]
    AlignedBuffer<float> units;   // [max_rows, C_l, chunker unit width] children of the open group
    KvWindows<T> blocks;          // block span: the open block of each row's encoder
    std::vector<int> predicting;  // rows with a token to predict in the open group
  };

  // One slot whose logits are wanted.
  struct SlotRef {
    int lane;
    DecodeRow* row;
    int slot;
  };

  int decoder_width(int i) const { return model_.config().levels[i].decoder.hidden_size; }

  // Runs the converter and the first R positions of level i's decoder: the prediction of slot 0.
  //   conditions [lanes, D_l], indexed by lane
  void Prime(int i, std::span<const int> lanes, const float* conditions);
  // Runs the position of content slot j: the prediction of slot j + 1.
  //   contents  content of lane n at contents + n * stride
  void Advance(int i, std::span<const int> lanes, int j, const float* contents, int64_t stride);
  // Decodes one group of level i of each row in `alive`, tokens [slot, slot + P_l), and leaves its
  // children in levels_[i].units. Drops rows that end from `alive`.
  //   conditions [max_rows, D_l], indexed by row
  void DecodeGroup(int i, std::span<DecodeRow> rows, std::vector<int>& alive, int slot,
                   const float* conditions, TokenSink& sink);
  // Folds each row's children of level i into one unit, encodes it, and leaves the states in
  // states_ in the order of `alive`. slot: the unit's first token.
  void Fold(int i, std::span<DecodeRow> rows, std::span<const int> alive, int slot);
  // Folds the top level's children and extends the pages.
  void FoldTop(std::span<DecodeRow> rows, std::span<const int> alive);
  // Samples the slots from their lanes' predictions of level 0.
  void Sample(std::span<const SlotRef> slots);
  // Reports a row's tokens of slots before `end` that the sink has not seen.
  void Report(DecodeRow& row, int end, TokenSink& sink);

  CpuModel<T>& model_;
  LatentPages<T>& pages_;
  CpuContext<T> context_;
  std::vector<Level> levels_;
  // Lists of the step that runs; kept, so that a step allocates nothing.
  std::vector<int> lanes_;
  std::vector<SlotRef> slots_;
  std::vector<SampledToken> reported_;
  std::vector<SamplerScratch> sampling_;  // one per thread
  std::vector<StackRow<T>> stack_rows_;
  AlignedBuffer<float> gathered_;    // inputs of a module, compact
  AlignedBuffer<float> states_;      // outputs of a module, compact
  AlignedBuffer<float> conditions_;  // conditioning of the lanes of a level
  AlignedBuffer<float> next_conditions_;
  AlignedBuffer<float> embeddings_;  // [lanes of level 0, D_0] content tokens
  AlignedBuffer<float> logits_;      // [kMaxLogitsRows, vocab_size]
};

}  // namespace photon
