#include "engine/cpu/cpu_engine.h"

#include <algorithm>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/cpu/hierarchical_encoder.h"
#include "engine/cpu/host_memory.h"
#include "engine/cpu/recursive_decoder.h"
#include "engine/validate_step.h"

namespace photon {
namespace {

// Tokens encoded together: enough for the products to be bound by arithmetic.
constexpr int kEncodeTokens = 1024;

BatchLimits Limits(const ModelConfig& config, const EngineShape& shape) {
  const int meta = config.meta_tokens();
  return {.max_rows = shape.max_rows,
          .max_encode_tokens = std::max(1, kEncodeTokens / meta) * meta};
}

// The weights, packed, and what computes with them.
template <typename T>
struct PackedModel {
  PackedModel(const Checkpoint& checkpoint, const BatchLimits& limits, int threads, Isa isa)
      : pool(threads),
        context{KernelsFor<T>(isa), KernelsFor<float>(isa), pool},
        model(checkpoint.config(), checkpoint.weights(), limits, context) {}

  ThreadPool pool;
  CpuContext<T> context;
  CpuModel<T> model;
};

template <typename T>
class CpuEngine final : public Engine {
 public:
  CpuEngine(std::unique_ptr<PackedModel<T>> packed, const EngineShape& shape,
            const PageLayout& layout, const BatchLimits& limits,
            std::shared_ptr<AllottedMemory> allotted)
      : shape_(shape),
        validator_(shape),
        packed_(std::move(packed)),
        pages_(layout, shape.num_pages, packed_->model.config().levels.back().encoder.hidden_size),
        allotted_(std::move(allotted)),
        encoder_(packed_->model, pages_, limits),
        decoder_(packed_->model, pages_, limits, packed_->context),
        decode_rows_(shape.max_rows, DecodeRow(shape.meta_tokens)) {
    if (allotted_ != nullptr) pool_entry_ = allotted_->Add(pages_.data(), pages_.size_bytes());
    jobs_.reserve(shape.max_rows);
    reencoded_.reserve(int64_t{shape.max_rows} * shape.meta_tokens);
  }

  const EngineShape& shape() const override { return shape_; }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    if (absl::Status status = validator_.Validate(copies, rows); !status.ok()) return status;
    for (const PageCopy& copy : copies) pages_.Copy(copy.from, copy.to);
    Prefill(rows);
    Decode(rows, sink);
    return absl::OkStatus();
  }

 private:
  int WholeTokens(const Row& row) const {
    return static_cast<int>(row.input.size()) / shape_.meta_tokens * shape_.meta_tokens;
  }

  // With a single level there is nothing to predict in parallel.
  bool IsExact(const Row& row) const {
    return row.mode == GenerationMode::kExact || row.input.size() % shape_.meta_tokens != 0 ||
           packed_->model.config().num_levels() == 1;
  }

  void Prefill(std::span<const Row> rows) {
    jobs_.clear();
    for (const Row& row : rows) {
      const int whole = WholeTokens(row);
      if (whole > 0) jobs_.push_back({row.input.first(whole), row.cached_tokens, row.pages.data()});
    }
    encoder_.Encode(jobs_);
  }

  void Decode(std::span<const Row> rows, TokenSink& sink) {
    const std::span<DecodeRow> all(decode_rows_);
    const size_t num_exact = BeginDecoding(rows, true, all);
    const std::span<DecodeRow> exact = all.first(num_exact);
    const std::span<DecodeRow> parallel =
        all.subspan(num_exact, BeginDecoding(rows, false, all.subspan(num_exact)));
    if (!exact.empty()) decoder_.DecodeExact(exact, sink);
    if (parallel.empty()) return;
    decoder_.DecodeParallel(parallel, sink);
    Reencode(parallel);
  }

  // Takes the rows that decode in kExact, or those that do not, into the front of `out`; returns
  // how many they are.
  size_t BeginDecoding(std::span<const Row> rows, bool is_exact, std::span<DecodeRow> out) {
    size_t count = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      if (!row.decode || IsExact(row) != is_exact) continue;
      const int whole = WholeTokens(row);
      const int64_t first_token = row.cached_tokens + whole;
      const float* condition = first_token == 0 ? packed_->model.start_latent().data()
                                                : pages_.Latent(row.pages.data(), first_token - 1);
      out[count++].Begin(row, static_cast<int>(i), first_token, row.input.subspan(whole),
                         condition);
    }
    return count;
  }

  // kHierGen rows go on from their tokens' real states.
  void Reencode(std::span<const DecodeRow> rows) {
    jobs_.clear();
    reencoded_.clear();
    for (const DecodeRow& row : rows) {
      if (row.ended || row.row->mode != GenerationMode::kHierGen) continue;
      const size_t first = reencoded_.size();
      for (const SampledLogits& sampled : row.tokens) reencoded_.push_back(sampled.token);
      // The reserved memory does not move while it grows.
      jobs_.push_back(
          {std::span(reencoded_).subspan(first), row.first_token, row.row->pages.data()});
    }
    encoder_.Encode(jobs_);
  }

  EngineShape shape_;
  StepValidator validator_;
  std::unique_ptr<PackedModel<T>> packed_;
  LatentPages<T> pages_;
  const std::shared_ptr<AllottedMemory> allotted_;
  std::unique_ptr<AllottedMemory::Entry> pool_entry_;  // of pages_
  HierarchicalEncoder<T> encoder_;
  RecursiveDecoder<T> decoder_;
  // Of the step that runs; kept, so that a step allocates nothing.
  std::vector<DecodeRow> decode_rows_;  // [max_rows]
  std::vector<EncodeJob> jobs_;
  std::vector<TokenId> reencoded_;
};

// `shape` lacks the number of pages: what a share of memory comes to is known once the weights are
// packed.
template <typename T>
absl::StatusOr<std::unique_ptr<Engine>> PackAndAllocate(const Checkpoint& checkpoint,
                                                        const CpuEngineOptions& options,
                                                        EngineShape shape, const PageLayout& layout,
                                                        int threads, Isa isa) {
  const BatchLimits limits = Limits(checkpoint.config(), shape);
  // Refused here, not killed by the system in the middle of it.
  const auto free_bytes = [&]() -> absl::StatusOr<int64_t> {
    const absl::StatusOr<int64_t> free = FreeHostMemory();
    if (!free.ok()) return free.status();
    const int64_t untaken = options.allotted == nullptr ? 0 : options.allotted->UntakenBytes();
    return std::max<int64_t>(0, *free - untaken);
  };
  const int64_t weight_bytes = NumParameters(checkpoint.config()) * static_cast<int64_t>(sizeof(T));
  if (const auto free = free_bytes(); free.ok() && weight_bytes > *free) {
    return absl::ResourceExhaustedError(
        absl::StrCat("weights: ", weight_bytes, " bytes needed, ", *free, " free"));
  }
  auto packed = std::make_unique<PackedModel<T>>(checkpoint, limits, threads, isa);

  const absl::StatusOr<int64_t> free = free_bytes();
  if (!free.ok() && options.kv_memory.is_share()) return free.status();
  const int64_t bytes = options.kv_memory.Resolve(free.value_or(0));
  shape.num_pages = static_cast<int>(std::min<int64_t>(bytes / layout.page_bytes, INT32_MAX));
  const auto exhausted = [&](const std::string& problem) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "kv_memory of ", options.kv_memory.ToString(),
        options.kv_memory.is_share() ? absl::StrCat(" (", bytes, " bytes)") : "", ": ", problem));
  };
  if (shape.num_pages < 1) {
    return exhausted(absl::StrCat("a page of ", layout.page_tokens, " tokens takes ",
                                  layout.page_bytes, " bytes"));
  }
  if (free.ok() && bytes > *free) {
    return exhausted(absl::StrCat(*free, " bytes are free once the weights are loaded"));
  }
  try {
    return std::make_unique<CpuEngine<T>>(std::move(packed), shape, layout, limits,
                                          options.allotted);
  } catch (const std::bad_alloc&) {
    return exhausted("the system does not allot that much");
  }
}

absl::Status CheckAtLeast(const char* name, int64_t minimum, int64_t value) {
  if (value >= minimum) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("CpuEngineOptions.", name, ": must be at least ", minimum, ", got ", value));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> CreateCpuEngine(const Checkpoint& checkpoint,
                                                        const CpuEngineOptions& options) {
  const ModelConfig& config = checkpoint.config();
  const int meta = config.meta_tokens();
  for (const absl::Status& status :
       {CheckAtLeast("threads", 0, options.threads),
        CheckAtLeast("page_tokens", 1, options.page_tokens),
        CheckAtLeast("max_rows", 1, options.max_rows),
        CheckAtLeast("max_prefill_tokens", meta, options.max_prefill_tokens)}) {
    if (!status.ok()) return status;
  }
  if (!options.kv_memory.is_valid()) {
    return absl::InvalidArgumentError(
        absl::StrCat("CpuEngineOptions.kv_memory: must be at least one byte, or above 0% and up to "
                     "100%, got ",
                     options.kv_memory.ToString()));
  }
  const Isa isa = options.isa.value_or(BestIsa());
  if (!IsaSupported(isa)) {
    return absl::InvalidArgumentError(
        absl::StrCat("CpuEngineOptions.isa: this processor has no ", IsaName(isa)));
  }
  const int threads =
      options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  const bool is_bf16 = options.compute == CpuEngineOptions::Compute::kBF16;

  const PageLayout layout(config, (options.page_tokens + meta - 1) / meta * meta,
                          is_bf16 ? sizeof(BFloat16) : sizeof(float));
  EngineShape shape{
      .device = absl::StrCat("cpu (", IsaName(isa), ", ", is_bf16 ? "bf16" : "fp32", ", ", threads,
                             threads == 1 ? " thread)" : " threads)"),
      .vocab_size = config.vocab_size,
      .meta_tokens = meta,
      .max_context = config.max_context,
      .page_tokens = layout.page_tokens,
      .page_bytes = layout.page_bytes,
      .max_rows = options.max_rows,
      .max_prefill_tokens = options.max_prefill_tokens,
      .modes = {GenerationMode::kExact, GenerationMode::kHierGen},
  };
  if (config.num_levels() > 1) shape.modes.push_back(GenerationMode::kRecGen);
  return is_bf16 ? PackAndAllocate<BFloat16>(checkpoint, options, shape, layout, threads, isa)
                 : PackAndAllocate<float>(checkpoint, options, shape, layout, threads, isa);
}

}  // namespace photon
