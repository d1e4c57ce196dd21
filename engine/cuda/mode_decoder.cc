#include "engine/cuda/mode_decoder.h"

#include <algorithm>
#include <utility>

namespace photon::cuda {

int32_t AppendPages(const EngineShape& shape, const Row& row, int64_t tokens,
                    const HostBuffer<int32_t>& ids, int64_t& count) {
  const auto start = static_cast<int32_t>(count);
  const int64_t pages = (tokens + shape.page_tokens - 1) / shape.page_tokens;
  for (int64_t i = 0; i < pages; ++i) ids[count++] = static_cast<int32_t>(row.pages[i]);
  return start;
}

template <typename T>
ModeDecoder<T>::ModeDecoder(GenerationMode mode, const Backend<T>& backend, int64_t max_page_ids,
                            DeviceAllocator& allocator)
    : mode_(mode),
      backend_(backend),
      tokens_(int64_t{backend.shape.max_rows} * backend.shape.meta_tokens, "decode tokens",
              allocator),
      metas_(backend.shape.max_rows, "decode meta-contexts", allocator),
      condition_pages_(backend.shape.max_rows, "decode conditions", allocator),
      sampling_(backend.shape.max_rows, "decode sampling", allocator),
      page_ids_(max_page_ids + 1, "decode page ids", allocator),
      latent_pages_(allocator.AllocateHost<int32_t>(backend.shape.max_rows, "decode pages")),
      sampled_(allocator.AllocateHost<TokenAndLogprob>(tokens_.host.size(), "sampled tokens")),
      top_(allocator.AllocateHost<TokenAndLogprob>(tokens_.host.size() * kMaxTopLogprobs,
                                                   "sampled alternatives")),
      states_(allocator.Allocate<float>(
          int64_t{backend.shape.max_rows} * backend.pages.latent_width(), "top states")) {
  for (int i = 0; i < backend.shape.meta_tokens; ++i) {
    cudaEvent_t event = nullptr;
    allocator.Update(
        ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                 "cudaEventCreate"));
    events_.emplace_back(event);
  }
}

template <typename T>
absl::Status ModeDecoder<T>::Record(cudaStream_t stream, int bucket) {
  // Once for real, on the spare page: kernels are loaded and algorithms chosen outside the
  // recording.
  Work work(stream);
  Upload(work, {}, bucket);
  const DecodeBatch batch = DeviceBatch(bucket);
  Enqueue(work, batch, [] {});
  work.Update(ToStatus(cudaStreamSynchronize(stream), "a step before the recording"));
  if (!work.ok()) return work.status();
  absl::StatusOr<DecodeGraphs> graphs = DecodeGraphs::Record(
      stream, [&](Work& recorded, OnPoint on_point) { Enqueue(recorded, batch, on_point); });
  if (!graphs.ok()) return graphs.status();
  graphs_.emplace(bucket, *std::move(graphs));
  return absl::OkStatus();
}

template <typename T>
void ModeDecoder<T>::Launch(Work& work, std::span<DecodeRow> rows, int bucket) {
  Upload(work, rows, bucket);
  num_points_ = 0;
  const auto record_event = [&] {
    work.Run("cudaEventRecord", [&](cudaStream_t stream) {
      return cudaEventRecord(events_[num_points_].get(), stream);
    });
    ++num_points_;
  };
  const bool wants_logits = std::any_of(
      rows.begin(), rows.end(), [](const DecodeRow& row) { return !row.row->logits.empty(); });
  const auto graphs = graphs_.find(bucket);
  if (!wants_logits && graphs != graphs_.end()) return graphs->second.Replay(work, record_event);
  DecodeBatch batch = DeviceBatch(bucket);
  if (wants_logits) {
    batch.on_logits = [&](const float* logits, int first_lane, int n, const SlotMap& slots) {
      CopyLogits(work, rows, logits, first_lane, n, slots);
    };
  }
  Enqueue(work, batch, record_event);
}

template <typename T>
void ModeDecoder<T>::Follow(Work& work, std::span<DecodeRow> rows, TokenSink& sink) {
  const int meta = backend_.shape.meta_tokens;
  for (int point = 0; point < num_points_ && work.ok(); ++point) {
    work.Update(ToStatus(cudaEventSynchronize(events_[point].get()), "decode"));
    if (!work.ok()) return;
    // kExact samples slot after slot; in parallel all groups end with the last point.
    const bool is_last = point + 1 == num_points_;
    const int end = mode_ != GenerationMode::kExact && is_last ? meta : point + 1;
    for (size_t r = 0; r < rows.size(); ++r) {
      if (!rows[r].ended) Report(rows[r], static_cast<int>(r), end, sink);
    }
    sink.OnSlotEnd();
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const DecodeRow& row = rows[r];
    const int64_t page = row.first_token / backend_.shape.page_tokens;
    latent_pages_[static_cast<int64_t>(r)] =
        row.ended ? -1 : static_cast<int32_t>(row.row->pages[page]);
  }
  backend_.pages.StoreLatents(work, states_.data(), latent_pages_.data(),
                              static_cast<int>(rows.size()));
}

// Describes the rows to the device, and fills the bucket with rows that write to the spare page.
template <typename T>
void ModeDecoder<T>::Upload(Work& work, std::span<const DecodeRow> rows, int bucket) {
  const int meta = backend_.shape.meta_tokens;
  int64_t num_page_ids = 0;
  for (int r = 0; r < bucket; ++r) {
    int32_t* tokens = tokens_.host.data() + int64_t{r} * meta;
    std::fill_n(tokens, meta, 0);
    if (r >= static_cast<int>(rows.size())) {
      page_ids_.host[num_page_ids] = backend_.pages.spare_page();
      metas_.host[r] = {static_cast<int32_t>(num_page_ids), 0};
      condition_pages_.host[r] = -1;
      sampling_.host[r] = {.num_forced = meta};
      continue;
    }
    const DecodeRow& row = rows[r];
    std::copy(row.forced.begin(), row.forced.end(), tokens);
    const int32_t pages =
        AppendPages(backend_.shape, *row.row, row.first_token + meta, page_ids_.host, num_page_ids);
    metas_.host[r] = {pages, static_cast<int32_t>(row.first_token / meta)};
    condition_pages_.host[r] =
        row.first_token == 0
            ? -1
            : static_cast<int32_t>(
                  row.row->pages[(row.first_token - 1) / backend_.shape.page_tokens]);
    const Sampling& sampling = row.row->sampling;
    sampling_.host[r] = {.temperature = sampling.temperature,
                         .top_p = sampling.top_p,
                         .min_p = sampling.min_p,
                         .top_k = sampling.top_k,
                         .seed = sampling.seed,
                         .query = sampling.query,
                         .sample = sampling.sample,
                         .first_token = row.first_token,
                         .top_logprobs = sampling.top_logprobs,
                         .num_forced = static_cast<int32_t>(row.forced.size())};
  }
  tokens_.Upload(work, int64_t{bucket} * meta);
  metas_.Upload(work, bucket);
  condition_pages_.Upload(work, bucket);
  sampling_.Upload(work, bucket);
  page_ids_.Upload(work, num_page_ids + 1);
}

template <typename T>
DecodeBatch ModeDecoder<T>::DeviceBatch(int bucket) const {
  return {.num_rows = bucket,
          .tokens = tokens_.device.data(),
          .metas = metas_.device.data(),
          .condition_pages = condition_pages_.device.data(),
          .page_ids = page_ids_.device.data(),
          .sampling = sampling_.device.data(),
          .output = {.meta_tokens = backend_.shape.meta_tokens,
                     .top_stride = kMaxTopLogprobs,
                     .tokens = tokens_.device.data(),
                     .sampled = sampled_.data(),
                     .top = top_.data()}};
}

// Puts one meta-context of a batch on the stream; its top states end in states_.
template <typename T>
void ModeDecoder<T>::Enqueue(Work& work, const DecodeBatch& batch, OnPoint on_point) {
  const Compute<T> compute{work, backend_.product, backend_.scratch};
  float* x = backend_.x;
  const auto on_sampled = [&](int) { on_point(); };
  switch (mode_) {
    case GenerationMode::kExact:
      backend_.decoder.DecodeExact(compute, batch, x, states_.data(), on_sampled);
      break;
    case GenerationMode::kHierGen:
      backend_.decoder.DecodeParallel(compute, batch, x, on_sampled);
      backend_.encoder.Encode(compute, batch.tokens, batch.metas, batch.num_rows, batch.page_ids,
                              /*in_runs=*/false, x, states_.data());
      break;
    case GenerationMode::kRecGen:
      backend_.decoder.DecodeParallel(compute, batch, x, on_sampled);
      backend_.decoder.FoldPredictions(compute, batch, x, states_.data());
      break;
  }
}

// Reports a row's tokens of slots before `end` that the sink has not seen.
template <typename T>
void ModeDecoder<T>::Report(DecodeRow& row, int batch_row, int end, TokenSink& sink) {
  if (end <= row.num_reported) return;
  const size_t alternatives =
      std::min(row.row->sampling.top_logprobs, backend_.model.config().vocab_size);
  const int count = end - row.num_reported;
  reported_.clear();
  alternatives_.resize(count * alternatives);  // before any span points into it
  for (int i = 0; i < count; ++i) {
    const int64_t place = int64_t{batch_row} * backend_.shape.meta_tokens + row.num_reported + i;
    const TokenAndLogprob& sampled = sampled_[place];
    const std::span<TokenLogprob> mine(alternatives_.data() + i * alternatives, alternatives);
    for (size_t n = 0; n < alternatives; ++n) {
      const TokenAndLogprob& other = top_[place * kMaxTopLogprobs + n];
      mine[n] = {other.token, other.logprob};
    }
    reported_.push_back({sampled.token, sampled.logprob, mine});
  }
  row.num_reported = end;
  row.ended = !sink.OnTokens(row.index, reported_);
}

// Logits of lanes [first_lane, first_lane + n) to the rows that want them.
template <typename T>
void ModeDecoder<T>::CopyLogits(Work& work, std::span<const DecodeRow> rows, const float* logits,
                                int first_lane, int n, const SlotMap& slots) const {
  const int64_t vocab = backend_.shape.vocab_size;
  for (int lane = first_lane; lane < first_lane + n; ++lane) {
    const int r = lane / slots.per_row;
    if (r >= static_cast<int>(rows.size()) || rows[r].row->logits.empty()) continue;
    const int64_t slot = lane % slots.per_row * slots.stride + slots.first;
    work.Run("copy of logits", [&](cudaStream_t stream) {
      return cudaMemcpyAsync(rows[r].row->logits.data() + slot * vocab,
                             logits + (lane - first_lane) * backend_.model.logits_stride(),
                             vocab * sizeof(float), cudaMemcpyDeviceToHost, stream);
    });
  }
}

template class ModeDecoder<float>;
template class ModeDecoder<__nv_bfloat16>;

}  // namespace photon::cuda
