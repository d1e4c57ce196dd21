#include "engine/cuda/cuda_engine.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/cuda/decode_graphs.h"
#include "engine/cuda/hierarchical_encoder.h"
#include "engine/cuda/kernels/rows.h"
#include "engine/cuda/recursive_decoder.h"
#include "engine/validate_step.h"

namespace photon {
namespace cuda {
namespace {

// Tokens encoded together: enough for the products to be bound by arithmetic.
constexpr int kEncodeTokens = 8192;
// Device memory left to the driver when the pool takes a share of what is free.
constexpr int64_t kReservedBytes = int64_t{256} << 20;
constexpr int kMinComputeCapability = 8;

// Numbers of rows that decoding is recorded for: steps of a half up to 4, then two per power of
// two.
std::vector<int> RowBuckets(int max_rows) {
  std::vector<int> buckets;
  for (int power = 1; power < max_rows; power *= 2) {
    buckets.push_back(power);
    if (power >= 2 && power / 2 * 3 < max_rows) buckets.push_back(power / 2 * 3);
  }
  buckets.push_back(max_rows);
  return buckets;
}

// Written on the host and sent to the device.
template <typename Value>
struct Mirrored {
  HostBuffer<Value> host;
  DeviceBuffer<Value> device;

  Mirrored(int64_t count, std::string_view what, DeviceAllocator& allocator)
      : host(allocator.AllocateHost<Value>(count, what)),
        device(allocator.Allocate<Value>(count, what)) {}

  void Upload(Work& work, int64_t count) const {
    if (count == 0) return;
    work.Run("upload", [&](cudaStream_t stream) {
      return cudaMemcpyAsync(device.data(), host.data(), count * sizeof(Value),
                             cudaMemcpyHostToDevice, stream);
    });
  }
};

// What a step's prefill tells the device.
struct PrefillInputs {
  PrefillInputs(const EngineShape& shape, int64_t max_page_ids, DeviceAllocator& allocator)
      : tokens(shape.max_prefill_tokens, "prefill tokens", allocator),
        metas(shape.max_prefill_tokens / shape.meta_tokens, "prefill meta-contexts", allocator),
        latent_pages(metas.host.size(), "prefill pages", allocator),
        page_ids(max_page_ids, "prefill page ids", allocator) {}

  Mirrored<int32_t> tokens;
  Mirrored<MetaContext> metas;
  Mirrored<int32_t> latent_pages;  // whose top state a meta-context replaces; < 0: none
  Mirrored<int32_t> page_ids;
};

// What a batch's decode tells the device, and what it hears back.
struct DecodeInputs {
  DecodeInputs(const EngineShape& shape, int64_t max_page_ids, DeviceAllocator& allocator)
      : tokens(int64_t{shape.max_rows} * shape.meta_tokens, "decode tokens", allocator),
        metas(shape.max_rows, "decode meta-contexts", allocator),
        condition_pages(shape.max_rows, "decode conditions", allocator),
        sampling(shape.max_rows, "decode sampling", allocator),
        page_ids(max_page_ids + 1, "decode page ids", allocator),
        latent_pages(allocator.AllocateHost<int32_t>(shape.max_rows, "decode pages")),
        sampled(allocator.AllocateHost<TokenAndLogprob>(tokens.host.size(), "sampled tokens")),
        top(allocator.AllocateHost<TokenAndLogprob>(tokens.host.size() * kMaxTopLogprobs,
                                                    "sampled alternatives")) {}

  Mirrored<int32_t> tokens;
  Mirrored<MetaContext> metas;
  Mirrored<int32_t> condition_pages;
  Mirrored<RowSampling> sampling;
  Mirrored<int32_t> page_ids;
  HostBuffer<int32_t> latent_pages;  // a step's rows, batch after batch; read by the device
  HostBuffer<TokenAndLogprob> sampled, top;
};

// A row that decodes, and how far the sink has seen it.
struct DecodeRow {
  const Row* row;
  int index;            // in the step's rows
  int64_t first_token;  // position of the meta-context's first token
  std::span<const TokenId> forced;
  int num_reported;
  bool ended = false;
};

template <typename T>
class CudaEngine final : public Engine {
 public:
  // Failures are in allocator.status().
  CudaEngine(const Checkpoint& checkpoint, const CudaEngineOptions& options, EngineShape shape,
             UniqueStream stream, std::unique_ptr<MatrixProduct> product,
             DeviceAllocator& allocator)
      : shape_(std::move(shape)),
        device_(options.device),
        buckets_(RowBuckets(shape_.max_rows)),
        stream_(std::move(stream)),
        product_(std::move(product)),
        model_(checkpoint.config(), checkpoint.weights(), allocator),
        pages_(PageLayout(checkpoint.config(), shape_.page_tokens, sizeof(T)),
               checkpoint.config().levels.back().encoder.hidden_size) {
    const ModelConfig& config = model_.config();
    const int meta = shape_.meta_tokens;
    max_metas_ = std::max(shape_.max_rows,
                          std::max(1, std::min(kEncodeTokens, shape_.max_prefill_tokens) / meta));
    ScratchSize size;
    int64_t x = 0;
    HierarchicalEncoder<T>::AddTo(model_, max_metas_, size, x);
    RecursiveDecoder<T>::AddTo(model_, shape_.max_rows, size, x);
    scratch_ = size.Allocate<T>(allocator);
    x_ = allocator.Allocate<float>(x, "residual stream");
    states_ = allocator.Allocate<float>(int64_t{max_metas_} * pages_.latent_width(), "top states");
    const int64_t pages_per_row = (int64_t{config.max_context} + meta) / shape_.page_tokens + 1;
    prefill_.emplace(shape_, pages_per_row * shape_.max_rows, allocator);
    decode_.emplace(shape_, pages_per_row * shape_.max_rows, allocator);
    for (int i = 0; i < meta; ++i) {
      cudaEvent_t event = nullptr;
      allocator.Update(
          ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                   "cudaEventCreate"));
      events_.emplace_back(event);
    }
    encoder_.emplace(model_, pages_, max_metas_, allocator);
    decoder_.emplace(model_, pages_, shape_.max_rows, allocator);
    TakePool(options.kv_memory, allocator);
  }

  const EngineShape& shape() const override { return shape_; }

  // Records decoding for every mode and number of rows.
  absl::Status RecordGraphs() {
    for (const int bucket : buckets_) {
      for (const GenerationMode mode : shape_.modes) {
        if (IsExact(mode) && mode != GenerationMode::kExact) continue;
        // Once for real, on the spare page: kernels are loaded and algorithms chosen outside the
        // recording.
        Work work(stream_.get());
        UploadBatch(work, {}, bucket);
        const DecodeBatch batch = DeviceBatch(bucket);
        Enqueue(work, mode, batch, [] {});
        Synchronise(work);
        if (!work.ok()) return work.status();
        absl::StatusOr<DecodeGraphs> graphs = DecodeGraphs::Record(
            stream_.get(),
            [&](Work& recorded, OnPoint on_point) { Enqueue(recorded, mode, batch, on_point); });
        if (!graphs.ok()) return graphs.status();
        graphs_.emplace(std::pair(mode, bucket), *std::move(graphs));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    if (!failure_.ok()) return failure_;
    if (absl::Status status = validator_->Validate(copies, rows); !status.ok()) return status;
    Work work(stream_.get());
    // The caller's thread may be another one than last time.
    work.Update(ToStatus(cudaSetDevice(device_), "cudaSetDevice"));
    for (const PageCopy& copy : copies) pages_.Copy(work, copy.from, copy.to);
    Prefill(work, rows);
    Decode(work, rows, sink);
    Synchronise(work);
    failure_ = work.status();
    return failure_;
  }

 private:
  void TakePool(const MemoryBudget& budget, DeviceAllocator& allocator) {
    const PageLayout& layout = pages_.layout();
    size_t free = 0, total = 0;
    allocator.Update(ToStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
    const int64_t kv_bytes =
        budget.Resolve(std::max<int64_t>(0, static_cast<int64_t>(free) - kReservedBytes));
    const int64_t pages = std::min<int64_t>(kv_bytes / layout.page_bytes, INT32_MAX - 1);
    if (pages < 1) {
      allocator.Update(absl::ResourceExhaustedError(
          absl::StrCat("latent pool: a page of ", layout.page_tokens, " tokens takes ",
                       layout.page_bytes, " bytes, there are ", kv_bytes)));
      return;
    }
    shape_.num_pages = static_cast<int>(pages);
    shape_.page_bytes = layout.page_bytes;
    pages_.Allocate(shape_.num_pages, allocator);
    validator_.emplace(shape_);
  }

  Compute<T> With(Work& work) { return {work, *product_, scratch_}; }

  // With a single level there is nothing to predict in parallel.
  bool IsExact(GenerationMode mode) const {
    return mode == GenerationMode::kExact || model_.config().num_levels() == 1;
  }

  int WholeTokens(const Row& row) const {
    return static_cast<int>(row.input.size()) / shape_.meta_tokens * shape_.meta_tokens;
  }

  // Appends the ids of the pages that cover `tokens` tokens of a row, and returns where they start.
  int32_t AppendPages(const Row& row, int64_t tokens, const HostBuffer<int32_t>& ids,
                      int64_t& count) const {
    const auto start = static_cast<int32_t>(count);
    const int64_t pages = (tokens + shape_.page_tokens - 1) / shape_.page_tokens;
    for (int64_t i = 0; i < pages; ++i) ids[count++] = static_cast<int32_t>(row.pages[i]);
    return start;
  }

  void Synchronise(Work& work) {
    // Also after an error: the device must be done with the step's buffers.
    work.Update(ToStatus(cudaStreamSynchronize(stream_.get()), "step"));
  }

  void Prefill(Work& work, std::span<const Row> rows) {
    const PrefillInputs& inputs = *prefill_;
    const int meta = shape_.meta_tokens;
    int64_t num_metas = 0, num_page_ids = 0;
    for (const Row& row : rows) {
      const int whole = WholeTokens(row);
      if (whole == 0) continue;
      const int32_t pages =
          AppendPages(row, row.cached_tokens + whole, inputs.page_ids.host, num_page_ids);
      for (int t = 0; t < whole; t += meta, ++num_metas) {
        std::copy_n(row.input.data() + t, meta, inputs.tokens.host.data() + num_metas * meta);
        const int64_t first_token = int64_t{row.cached_tokens} + t;
        inputs.metas.host[num_metas] = {pages, static_cast<int32_t>(first_token / meta)};
        // Of the meta-contexts that are encoded together, a page keeps the last one's top state.
        const int64_t page = first_token / shape_.page_tokens;
        const bool goes_on = t + meta < whole &&
                             (first_token + meta) / shape_.page_tokens == page &&
                             (num_metas + 1) % max_metas_ != 0;
        inputs.latent_pages.host[num_metas] = goes_on ? -1 : static_cast<int32_t>(row.pages[page]);
      }
    }
    if (num_metas == 0) return;
    inputs.tokens.Upload(work, num_metas * meta);
    inputs.metas.Upload(work, num_metas);
    inputs.latent_pages.Upload(work, num_metas);
    inputs.page_ids.Upload(work, num_page_ids);
    for (int64_t begin = 0; begin < num_metas; begin += max_metas_) {
      const int count = static_cast<int>(std::min<int64_t>(max_metas_, num_metas - begin));
      encoder_->Encode(With(work), inputs.tokens.device.data() + begin * meta,
                       inputs.metas.device.data() + begin, count, inputs.page_ids.device.data(),
                       x_.data(), states_.data());
      StoreStates(work, inputs.latent_pages.device.data() + begin, count);
    }
  }

  void StoreStates(Work& work, const int32_t* pages, int count) {
    work.Run("store_latents", [&](cudaStream_t stream) {
      return LaunchStoreLatents(states_.data(), pages, pages_.latents(), pages_.latent_stride(),
                                pages_.latent_width(), count, stream);
    });
  }

  void Decode(Work& work, std::span<const Row> rows, TokenSink& sink) {
    std::map<GenerationMode, std::vector<DecodeRow>> batches;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      if (!row.decode) continue;
      const int whole = WholeTokens(row);
      const std::span<const TokenId> forced = row.input.subspan(whole);
      const bool is_exact = IsExact(row.mode) || !forced.empty();
      batches[is_exact ? GenerationMode::kExact : row.mode].push_back(
          {.row = &row,
           .index = static_cast<int>(i),
           .first_token = int64_t{row.cached_tokens} + whole,
           .forced = forced,
           .num_reported = static_cast<int>(forced.size())});
    }
    int first = 0;
    for (auto& [mode, batch] : batches) {
      DecodeBatchOf(work, mode, batch, first, sink);
      first += static_cast<int>(batch.size());
    }
  }

  // `first`: rows of the step that other batches have decoded.
  void DecodeBatchOf(Work& work, GenerationMode mode, std::span<DecodeRow> rows, int first,
                     TokenSink& sink) {
    const int bucket =
        *std::lower_bound(buckets_.begin(), buckets_.end(), static_cast<int>(rows.size()));
    UploadBatch(work, rows, bucket);
    int points = 0;
    const auto record_event = [&] {
      work.Run("cudaEventRecord",
               [&](cudaStream_t stream) { return cudaEventRecord(events_[points].get(), stream); });
      ++points;
    };
    const bool wants_logits = std::any_of(
        rows.begin(), rows.end(), [](const DecodeRow& row) { return !row.row->logits.empty(); });
    const auto graphs = graphs_.find({mode, bucket});
    if (wants_logits || graphs == graphs_.end()) {
      DecodeBatch batch = DeviceBatch(bucket);
      if (wants_logits) {
        batch.on_logits = [&](const float* logits, int first_lane, int n, const SlotMap& slots) {
          CopyLogits(work, rows, logits, first_lane, n, slots);
        };
      }
      Enqueue(work, mode, batch, record_event);
    } else {
      graphs->second.Replay(work, record_event);
    }
    Follow(work, mode, rows, points, sink);
    int32_t* latent_pages = decode_->latent_pages.data() + first;
    for (size_t r = 0; r < rows.size(); ++r) {
      const DecodeRow& row = rows[r];
      latent_pages[r] =
          row.ended ? -1
                    : static_cast<int32_t>(row.row->pages[row.first_token / shape_.page_tokens]);
    }
    StoreStates(work, latent_pages, static_cast<int>(rows.size()));
  }

  // Describes the rows to the device, and fills the bucket with rows that write to the spare page.
  void UploadBatch(Work& work, std::span<const DecodeRow> rows, int bucket) {
    const DecodeInputs& inputs = *decode_;
    const int meta = shape_.meta_tokens;
    int64_t num_page_ids = 0;
    for (int r = 0; r < bucket; ++r) {
      int32_t* tokens = inputs.tokens.host.data() + int64_t{r} * meta;
      std::fill_n(tokens, meta, 0);
      if (r >= static_cast<int>(rows.size())) {
        inputs.page_ids.host[num_page_ids] = pages_.spare_page();
        inputs.metas.host[r] = {static_cast<int32_t>(num_page_ids), 0};
        inputs.condition_pages.host[r] = -1;
        inputs.sampling.host[r] = {.num_forced = meta};
        continue;
      }
      const DecodeRow& row = rows[r];
      std::copy(row.forced.begin(), row.forced.end(), tokens);
      const int32_t pages =
          AppendPages(*row.row, row.first_token + meta, inputs.page_ids.host, num_page_ids);
      inputs.metas.host[r] = {pages, static_cast<int32_t>(row.first_token / meta)};
      inputs.condition_pages.host[r] =
          row.first_token == 0
              ? -1
              : static_cast<int32_t>(row.row->pages[(row.first_token - 1) / shape_.page_tokens]);
      const Sampling& sampling = row.row->sampling;
      inputs.sampling.host[r] = {.temperature = sampling.temperature,
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
    inputs.tokens.Upload(work, int64_t{bucket} * meta);
    inputs.metas.Upload(work, bucket);
    inputs.condition_pages.Upload(work, bucket);
    inputs.sampling.Upload(work, bucket);
    inputs.page_ids.Upload(work, num_page_ids + 1);
  }

  DecodeBatch DeviceBatch(int bucket) const {
    const DecodeInputs& inputs = *decode_;
    return {.num_rows = bucket,
            .tokens = inputs.tokens.device.data(),
            .metas = inputs.metas.device.data(),
            .condition_pages = inputs.condition_pages.device.data(),
            .page_ids = inputs.page_ids.device.data(),
            .sampling = inputs.sampling.device.data(),
            .output = {.meta_tokens = shape_.meta_tokens,
                       .top_stride = kMaxTopLogprobs,
                       .tokens = inputs.tokens.device.data(),
                       .sampled = inputs.sampled.data(),
                       .top = inputs.top.data()}};
  }

  // Puts one meta-context of a batch on the stream; its top states end in states_.
  void Enqueue(Work& work, GenerationMode mode, const DecodeBatch& batch, OnPoint on_point) {
    const Compute<T> compute = With(work);
    const auto on_sampled = [&](int) { on_point(); };
    switch (mode) {
      case GenerationMode::kExact:
        decoder_->DecodeExact(compute, batch, x_.data(), states_.data(), on_sampled);
        break;
      case GenerationMode::kHierGen:
        decoder_->DecodeParallel(compute, batch, x_.data(), on_sampled);
        encoder_->Encode(compute, batch.tokens, batch.metas, batch.num_rows, batch.page_ids,
                         x_.data(), states_.data());
        break;
      case GenerationMode::kRecGen:
        decoder_->DecodeParallel(compute, batch, x_.data(), on_sampled);
        decoder_->FoldPredictions(compute, batch, x_.data(), states_.data());
        break;
    }
  }

  // Reports tokens as the device gets to the points where they are sampled.
  void Follow(Work& work, GenerationMode mode, std::span<DecodeRow> rows, int points,
              TokenSink& sink) {
    std::vector<SampledToken> tokens;
    std::vector<TokenLogprob> top;
    for (int point = 0; point < points && work.ok(); ++point) {
      work.Update(ToStatus(cudaEventSynchronize(events_[point].get()), "decode"));
      if (!work.ok()) return;
      // kExact samples slot after slot; in parallel all groups end with the last point.
      const bool is_last = point + 1 == points;
      const int end = mode != GenerationMode::kExact && is_last ? shape_.meta_tokens : point + 1;
      for (size_t r = 0; r < rows.size(); ++r) {
        if (!rows[r].ended) Report(rows[r], static_cast<int>(r), end, tokens, top, sink);
      }
    }
  }

  // Reports a row's tokens of slots before `end` that the sink has not seen.
  void Report(DecodeRow& row, int batch_row, int end, std::vector<SampledToken>& tokens,
              std::vector<TokenLogprob>& top, TokenSink& sink) {
    if (end <= row.num_reported) return;
    const size_t alternatives =
        std::min(row.row->sampling.top_logprobs, model_.config().vocab_size);
    const int count = end - row.num_reported;
    tokens.clear();
    top.resize(count * alternatives);  // before any span points into it
    for (int i = 0; i < count; ++i) {
      const int64_t place = int64_t{batch_row} * shape_.meta_tokens + row.num_reported + i;
      const TokenAndLogprob& sampled = decode_->sampled[place];
      const std::span<TokenLogprob> mine(top.data() + i * alternatives, alternatives);
      for (size_t n = 0; n < alternatives; ++n) {
        const TokenAndLogprob& other = decode_->top[place * kMaxTopLogprobs + n];
        mine[n] = {other.token, other.logprob};
      }
      tokens.push_back({sampled.token, sampled.logprob, mine});
    }
    row.num_reported = end;
    row.ended = !sink.OnTokens(row.index, tokens);
  }

  // Logits of lanes [first_lane, first_lane + n) to the rows that want them.
  void CopyLogits(Work& work, std::span<DecodeRow> rows, const float* logits, int first_lane, int n,
                  const SlotMap& slots) {
    const int64_t vocab = shape_.vocab_size;
    for (int lane = first_lane; lane < first_lane + n; ++lane) {
      const int r = lane / slots.per_row;
      if (r >= static_cast<int>(rows.size()) || rows[r].row->logits.empty()) continue;
      const int64_t slot = lane % slots.per_row * slots.stride + slots.first;
      work.Run("copy of logits", [&](cudaStream_t stream) {
        return cudaMemcpyAsync(rows[r].row->logits.data() + slot * vocab,
                               logits + (lane - first_lane) * model_.logits_stride(),
                               vocab * sizeof(float), cudaMemcpyDeviceToHost, stream);
      });
    }
  }

  EngineShape shape_;
  int device_;
  std::vector<int> buckets_;
  UniqueStream stream_;
  std::unique_ptr<MatrixProduct> product_;
  CudaModel<T> model_;
  LatentPages<T> pages_;
  int max_metas_;  // encoded together
  Scratch<T> scratch_;
  DeviceBuffer<float> x_, states_;
  std::optional<PrefillInputs> prefill_;
  std::optional<DecodeInputs> decode_;
  std::vector<UniqueEvent> events_;  // one for each point of a step
  std::optional<HierarchicalEncoder<T>> encoder_;
  std::optional<RecursiveDecoder<T>> decoder_;
  std::map<std::pair<GenerationMode, int>, DecodeGraphs> graphs_;
  std::optional<StepValidator> validator_;
  absl::Status failure_;
};

absl::Status CheckAtLeast(const char* name, int64_t minimum, int64_t value) {
  if (value >= minimum) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("CudaEngineOptions.", name, ": must be at least ", minimum, ", got ", value));
}

absl::Status CheckHeads(const char* stack, int level, const StackConfig& config) {
  if (config.head_dim <= kMaxHeadDim) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("levels[", level, "].", stack,
                                                 ".head_dim: at most ", kMaxHeadDim,
                                                 " on a GPU, got ", config.head_dim));
}

// The device's name, if it is there and new enough.
absl::StatusOr<std::string> UseDevice(int device) {
  const absl::StatusOr<int> count = CountCudaDevices();
  if (!count.ok()) return absl::FailedPreconditionError(count.status().message());
  if (device < 0 || device >= *count) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: no device ", device, ", there are ", *count));
  }
  cudaDeviceProp properties;
  absl::Status status = ToStatus(cudaSetDevice(device), "cudaSetDevice");
  status.Update(ToStatus(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
  if (!status.ok()) return status;
  if (properties.major < kMinComputeCapability) {
    return absl::FailedPreconditionError(absl::StrCat("cuda: ", properties.name,
                                                      " has compute capability ", properties.major,
                                                      ".", properties.minor, "; 8.0 is needed"));
  }
  return std::string(properties.name);
}

template <typename T>
absl::StatusOr<std::unique_ptr<Engine>> Create(const Checkpoint& checkpoint,
                                               const CudaEngineOptions& options,
                                               EngineShape shape) {
  DeviceAllocator allocator;
  cudaStream_t raw_stream = nullptr;
  const absl::Status stream_status =
      ToStatus(cudaStreamCreateWithFlags(&raw_stream, cudaStreamNonBlocking), "cudaStreamCreate");
  UniqueStream stream(raw_stream);
  if (!stream_status.ok()) return stream_status;
  auto product = MatrixProduct::Create(allocator);
  if (!product.ok()) return product.status();
  auto engine = std::make_unique<CudaEngine<T>>(checkpoint, options, std::move(shape),
                                                std::move(stream), *std::move(product), allocator);
  if (!allocator.status().ok()) return allocator.status();
  // Uploads and zeroes are on another stream than the engine's.
  absl::Status status = ToStatus(cudaDeviceSynchronize(), "upload of weights");
  if (status.ok() && options.use_graphs) status = engine->RecordGraphs();
  if (!status.ok()) return status;
  return engine;
}

}  // namespace
}  // namespace cuda

absl::StatusOr<int> CountCudaDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  const std::string message =
      error == cudaSuccess
          ? "cuda: no device"
          : absl::StrCat("cuda: ", cudaGetErrorString(error), " (", static_cast<int>(error), ")");
  const bool is_absent =
      error == cudaSuccess || error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
  return is_absent ? absl::NotFoundError(message) : absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<Engine>> CreateCudaEngine(const Checkpoint& checkpoint,
                                                         const CudaEngineOptions& options) {
  const ModelConfig& config = checkpoint.config();
  const int meta = config.meta_tokens();
  absl::Status status;
  for (const absl::Status& checked :
       {cuda::CheckAtLeast("page_tokens", 1, options.page_tokens),
        cuda::CheckAtLeast("max_rows", 1, options.max_rows),
        cuda::CheckAtLeast("max_prefill_tokens", meta, options.max_prefill_tokens)}) {
    status.Update(checked);
  }
  if (!options.kv_memory.is_valid()) {
    status.Update(absl::InvalidArgumentError(
        "CudaEngineOptions.kv_memory: must be at least one byte, or above 0% and up to 100%"));
  }
  for (int i = 0; i < config.num_levels(); ++i) {
    status.Update(cuda::CheckHeads("encoder", i, config.levels[i].encoder));
    status.Update(cuda::CheckHeads("decoder", i, config.levels[i].decoder));
  }
  if (!status.ok()) return status;
  const absl::StatusOr<std::string> name = cuda::UseDevice(options.device);
  if (!name.ok()) return name.status();

  const bool is_bf16 = options.compute == CudaEngineOptions::Compute::kBF16;
  EngineShape shape{
      .device =
          absl::StrCat("cuda:", options.device, " (", *name, ", ", is_bf16 ? "bf16" : "fp32", ")"),
      .vocab_size = config.vocab_size,
      .meta_tokens = meta,
      .max_context = config.max_context,
      .page_tokens = (options.page_tokens + meta - 1) / meta * meta,
      .max_rows = options.max_rows,
      .max_prefill_tokens = options.max_prefill_tokens,
      .modes = {GenerationMode::kExact, GenerationMode::kHierGen},
  };
  if (config.num_levels() > 1) shape.modes.push_back(GenerationMode::kRecGen);
  if (is_bf16) return cuda::Create<__nv_bfloat16>(checkpoint, options, std::move(shape));
  return cuda::Create<float>(checkpoint, options, std::move(shape));
}

}  // namespace photon
