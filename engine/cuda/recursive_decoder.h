// Recursive decode: the top-down half of the model, one meta-context for every row in lock-step.
// Docs: docs/model.md, "Inference".
//
// Nothing here depends on what the rows hold, so the same calls can be recorded once and replayed:
// forced tokens are in their slots beforehand and are not drawn, and rows that end are decoded to
// the end all the same.
#pragma once

#include <functional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/kernels/sample_tokens.h"
#include "engine/cuda/latent_pages.h"

namespace photon::cuda {

// Rows that decode together, on the device.
struct DecodeBatch {
  int num_rows = 0;
  int32_t* tokens = nullptr;                 // [num_rows, P_L]; forced ones are given
  const MetaContext* metas = nullptr;        // [num_rows] the meta-context that is decoded
  const int32_t* condition_pages = nullptr;  // [num_rows] whose top state precedes it; < 0: none
  const int32_t* page_ids = nullptr;         // that `metas` point into
  const RowSampling* sampling = nullptr;     // [num_rows]
  SampledOutput output;
  // If set, called with each block of logits [n, logits_stride()] of lanes first_lane and on.
  std::function<void(const float* logits, int first_lane, int n, const SlotMap& slots)> on_logits;
};

template <typename T>
class RecursiveDecoder {
 public:
  RecursiveDecoder(const CudaModel<T>& model, const LatentPages<T>& pages, int max_rows,
                   DeviceAllocator& allocator);

  // As HierarchicalEncoder::AddTo().
  static void AddTo(const CudaModel<T>& model, int max_rows, ScratchSize& size, int64_t& x);

  // Called when tokens have been put where the host sees them: those of slots before `end`.
  using OnSampled = absl::FunctionRef<void(int end)>;

  // Decodes in kExact mode: each unit is encoded before the next is predicted. Extends the growing
  // levels' keys and values, and hands the top states out.
  //   x       scratch
  //   states  [num_rows, Padded(D_L)]
  void DecodeExact(const Compute<T>& compute, const DecodeBatch& batch, float* x, float* states,
                   OnSampled on_sampled) const;

  // Decodes in kHierGen or kRecGen mode: all units of a level at once, no forced tokens. At least
  // two levels.
  void DecodeParallel(const Compute<T>& compute, const DecodeBatch& batch, float* x,
                      OnSampled on_sampled) const;
  // After DecodeParallel: extends the top stream by what the rows predicted, as kRecGen does.
  void FoldPredictions(const Compute<T>& compute, const DecodeBatch& batch, float* x,
                       float* states) const;

 private:
  // A *lane* is one group of a level that decodes: window, conditioning and prediction share its
  // number. Row r's groups of level i are lanes r * groups_per_meta(i) + g; in kExact only one
  // group of a row is open at a time, and its lane is r.
  struct Scratch {
    DeviceBuffer<T> windows;          // decoder positions of each lane
    DeviceBuffer<float> predictions;  // [lanes, C_l, D_{l-1}] or, in kExact, [lanes, D_{l-1}]
    DeviceBuffer<float> units;        // [max_rows, C_l, unit width] children of the open group
    DeviceBuffer<T> blocks;           // block span: the open block of each row's encoder
  };
  struct Rows {
    float* data;
    int64_t stride;
  };

  int64_t unit_width(int i) const { return Padded(model_.config().chunker_unit_width(i)); }
  int64_t decoder_width(int i) const { return model_.level(i).decoder.width(); }

  // Runs the converter and the first R positions of level i's decoder: predictions of slot 0.
  void Prime(const Compute<T>& compute, int i, int lanes, const float* conditions, float* x,
             Rows predictions) const;
  // Runs the position of content slot j, which is in x: predictions of slot j + 1.
  void Advance(const Compute<T>& compute, int i, int lanes, int j, float* x,
               Rows predictions) const;
  // Decodes one group of level i of each row, tokens [slot, slot + P_l), and leaves its children in
  // scratch_[i].units.
  void DecodeGroup(const Compute<T>& compute, const DecodeBatch& batch, int i, int slot,
                   const float* conditions, float* x, OnSampled on_sampled) const;
  // Folds each row's children of level i into one unit, encodes it and hands the state to `states`.
  // slot: the unit's first token.
  void Fold(const Compute<T>& compute, const DecodeBatch& batch, int i, int slot,
            const float* units, float* x, Rows states) const;
  // Samples each lane's slot from its prediction of level 0.
  void Sample(const Compute<T>& compute, const DecodeBatch& batch, const SlotMap& slots,
              int lanes) const;
  void CopyToX(const Compute<T>& compute, Rows from, int64_t width, int rows, float* x) const;

  const CudaModel<T>& model_;
  const LatentPages<T>& pages_;
  std::vector<Scratch> scratch_;
  DeviceBuffer<float> conditions_;  // [max_rows, D_L]
  DeviceBuffer<float> logits_;      // [max_logits_rows_, logits_stride()]
  int max_logits_rows_;
};

}  // namespace photon::cuda
