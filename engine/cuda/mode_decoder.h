// Decoding of a step's rows of one mode, as graphs that are recorded at start: describes the rows
// to the device, puts the work on the stream, and reports tokens as the device gets to them.
//
// What a mode's rows read and write is its own, so that the modes of a step are put on the stream
// one after the other, and the device does not wait for the host in between.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "engine/cuda/decode_graphs.h"
#include "engine/cuda/hierarchical_encoder.h"
#include "engine/cuda/mirrored.h"
#include "engine/cuda/recursive_decoder.h"
#include "engine/engine.h"

namespace photon::cuda {

// A row that decodes, and how far the sink has seen it.
struct DecodeRow {
  const Row* row;
  int index;            // in the step's rows
  int64_t first_token;  // position of the meta-context's first token
  std::span<const TokenId> forced;
  int num_reported;
  bool ended = false;
};

// What an engine computes with; all of it outlives the decoders.
template <typename T>
struct Backend {
  const EngineShape& shape;
  const CudaModel<T>& model;
  const LatentPages<T>& pages;
  const HierarchicalEncoder<T>& encoder;
  const RecursiveDecoder<T>& decoder;
  MatrixProduct& product;
  Scratch<T>& scratch;
  float* x;  // the residual stream
};

// Appends the ids of the pages that cover `tokens` tokens of a row, and returns where they start.
int32_t AppendPages(const EngineShape& shape, const Row& row, int64_t tokens,
                    const HostBuffer<int32_t>& ids, int64_t& count);

template <typename T>
class ModeDecoder {
 public:
  // Failures are in allocator.status().
  ModeDecoder(GenerationMode mode, const Backend<T>& backend, int64_t max_page_ids,
              DeviceAllocator& allocator);

  // Records decoding of `bucket` rows.
  absl::Status Record(cudaStream_t stream, int bucket);

  // Puts one meta-context of each row on the stream, as a batch of `bucket` rows at least as many.
  void Launch(Work& work, std::span<DecodeRow> rows, int bucket);
  // After Launch: reports the rows' tokens as they are sampled, and stores the top states of those
  // that go on.
  void Follow(Work& work, std::span<DecodeRow> rows, TokenSink& sink);

 private:
  void Upload(Work& work, std::span<const DecodeRow> rows, int bucket);
  DecodeBatch DeviceBatch(int bucket) const;
  void Enqueue(Work& work, const DecodeBatch& batch, OnPoint on_point);
  void Report(DecodeRow& row, int batch_row, int end, TokenSink& sink);
  void CopyLogits(Work& work, std::span<const DecodeRow> rows, const float* logits, int first_lane,
                  int n, const SlotMap& slots) const;

  const GenerationMode mode_;
  const Backend<T> backend_;
  // What the device is told of the rows, and what the host hears back.
  Mirrored<int32_t> tokens_;
  Mirrored<MetaContext> metas_;
  Mirrored<int32_t> condition_pages_;
  Mirrored<RowSampling> sampling_;
  Mirrored<int32_t> page_ids_;
  HostBuffer<int32_t> latent_pages_;  // read by the device
  HostBuffer<TokenAndLogprob> sampled_, top_;
  DeviceBuffer<float> states_;
  std::vector<UniqueEvent> events_;     // one for each point of a step
  std::map<int, DecodeGraphs> graphs_;  // by number of rows
  int num_points_ = 0;                  // of the last Launch
  std::vector<SampledToken> reported_;
  std::vector<TokenLogprob> alternatives_;
};

}  // namespace photon::cuda
