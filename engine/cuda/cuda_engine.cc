#include "engine/cuda/cuda_engine.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/cuda/hierarchical_encoder.h"
#include "engine/cuda/mode_decoder.h"
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
// The one on which cuBLASLt multiplies e4m3 matrices with a scale for each row.
constexpr int kQuantizedMajor = 9, kQuantizedMinor = 0;

// Numbers of rows that decoding is recorded for: two for each power of two, and four from 16 on,
// so that at most a fifth of a large step is computed for nobody.
std::vector<int> RowBuckets(int max_rows) {
  std::vector<int> buckets;
  for (int power = 1; power < max_rows; power *= 2) {
    const int parts = power < 2 ? 1 : power < 16 ? 2 : 4;
    for (int part = 0; part < parts; ++part) {
      const int rows = power + power / parts * part;
      if (rows < max_rows) buckets.push_back(rows);
    }
  }
  buckets.push_back(max_rows);
  return buckets;
}

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
        model_(checkpoint.config(), checkpoint.weights(),
               options.quantization == CudaEngineOptions::Quantization::kFp8, allocator),
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
    max_quantised_rows_ = static_cast<int>(size.act_scales);
    x_ = allocator.Allocate<float>(x, "residual stream");
    states_ = allocator.Allocate<float>(int64_t{max_metas_} * pages_.latent_width(), "top states");
    const int64_t pages_per_row = (int64_t{config.max_context} + meta) / shape_.page_tokens + 1;
    prefill_.emplace(shape_, pages_per_row * shape_.max_rows, allocator);
    encoder_.emplace(model_, pages_, max_metas_, allocator);
    decoder_.emplace(model_, pages_, shape_.max_rows, allocator);
    const Backend<T> backend{shape_,    model_,    pages_,   *encoder_,
                             *decoder_, *product_, scratch_, x_.data()};
    for (const GenerationMode mode : shape_.modes) {
      if (IsExact(mode) && mode != GenerationMode::kExact) continue;
      decoders_.try_emplace(mode, mode, backend, pages_per_row * shape_.max_rows, allocator);
    }
    TakePool(options.kv_memory, allocator);
  }

  const EngineShape& shape() const override { return shape_; }

  bool is_quantised() const { return model_.is_quantised(); }
  // Chooses the algorithms of quantised products, so that a step does not find that there are none.
  absl::Status PrepareProducts() { return model_.PrepareProducts(*product_, max_quantised_rows_); }

  // Records decoding for every mode and number of rows.
  absl::Status RecordGraphs(const CudaEngineOptions::OnRecorded& on_recorded) {
    const int total = static_cast<int>(decoders_.size() * buckets_.size());
    size_t free_before = 0, free = 0, total_bytes = 0;
    absl::Status status = ToStatus(cudaMemGetInfo(&free_before, &total_bytes), "cudaMemGetInfo");
    int recorded = 0;
    for (const int bucket : buckets_) {
      for (auto& [mode, decoder] : decoders_) {
        if (status.ok()) status = decoder.Record(stream_.get(), bucket);
        if (!status.ok()) return status;
        ++recorded;
      }
      status = ToStatus(cudaMemGetInfo(&free, &total_bytes), "cudaMemGetInfo");
      if (on_recorded) on_recorded(recorded, total, static_cast<int64_t>(free_before - free));
    }
    return status;
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
          AppendPages(shape_, row, row.cached_tokens + whole, inputs.page_ids.host, num_page_ids);
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
                       /*in_runs=*/true, x_.data(), states_.data());
      pages_.StoreLatents(work, states_.data(), inputs.latent_pages.device.data() + begin, count);
    }
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
    for (auto& [mode, batch] : batches) {
      const auto size = static_cast<int>(batch.size());
      const int bucket = *std::lower_bound(buckets_.begin(), buckets_.end(), size);
      decoders_.at(mode).Launch(work, batch, bucket);
    }
    for (auto& [mode, batch] : batches) decoders_.at(mode).Follow(work, batch, sink);
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
  int max_quantised_rows_ = 0;  // of any product
  DeviceBuffer<float> x_, states_;
  std::optional<PrefillInputs> prefill_;
  std::optional<HierarchicalEncoder<T>> encoder_;
  std::optional<RecursiveDecoder<T>> decoder_;
  std::map<GenerationMode, ModeDecoder<T>> decoders_;
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
absl::StatusOr<std::string> UseDevice(const CudaEngineOptions& options) {
  const int device = options.device;
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
  if (options.quantization == CudaEngineOptions::Quantization::kFp8 &&
      (properties.major != kQuantizedMajor || properties.minor != kQuantizedMinor)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "quantization: fp8 needs compute capability ", kQuantizedMajor, ".", kQuantizedMinor, ", ",
        properties.name, " has ", properties.major, ".", properties.minor));
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
  if (options.quantization == CudaEngineOptions::Quantization::kFp8 && !engine->is_quantised()) {
    return absl::InvalidArgumentError(
        "quantization: fp8 has no effect: no product of this checkpoint has sizes that are "
        "multiples of 16");
  }
  // Uploads and zeroes are on another stream than the engine's.
  absl::Status status = ToStatus(cudaDeviceSynchronize(), "upload of weights");
  if (status.ok()) status = engine->PrepareProducts();
  if (status.ok() && options.use_graphs) status = engine->RecordGraphs(options.on_recorded);
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
  const bool is_fp8 = options.quantization == CudaEngineOptions::Quantization::kFp8;
  if (is_fp8 && options.compute != CudaEngineOptions::Compute::kBF16) {
    status.Update(
        absl::InvalidArgumentError("CudaEngineOptions.quantization: fp8 quantises bf16, not f32"));
  }
  for (int i = 0; i < config.num_levels(); ++i) {
    status.Update(cuda::CheckHeads("encoder", i, config.levels[i].encoder));
    status.Update(cuda::CheckHeads("decoder", i, config.levels[i].decoder));
  }
  if (!status.ok()) return status;
  const absl::StatusOr<std::string> name = cuda::UseDevice(options);
  if (!name.ok()) return name.status();

  const bool is_bf16 = options.compute == CudaEngineOptions::Compute::kBF16;
  EngineShape shape{
      .device = absl::StrCat("cuda:", options.device, " (", *name, ", ",
                             is_fp8    ? "fp8"
                             : is_bf16 ? "bf16"
                                       : "fp32",
                             ")"),
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
