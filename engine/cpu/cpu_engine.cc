#include "engine/cpu/cpu_engine.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/cpu/hierarchical_encoder.h"
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

template <typename T>
class CpuEngine final : public Engine {
 public:
  CpuEngine(const Checkpoint& checkpoint, const EngineShape& shape, const PageLayout& layout,
            int threads, Isa isa)
      : shape_(shape),
        pool_(threads),
        context_{KernelsFor<T>(isa), KernelsFor<float>(isa), pool_},
        model_(checkpoint.config(), checkpoint.weights(), Limits(checkpoint.config(), shape),
               context_),
        pages_(layout, shape.num_pages, checkpoint.config().levels.back().encoder.hidden_size),
        encoder_(model_, pages_, Limits(checkpoint.config(), shape)),
        decoder_(model_, pages_, Limits(checkpoint.config(), shape), context_) {}

  const EngineShape& shape() const override { return shape_; }

  absl::Status Step(std::span<const PageCopy> copies, std::span<const Row> rows,
                    TokenSink& sink) override {
    if (absl::Status status = ValidateStep(shape_, copies, rows); !status.ok()) return status;
    for (const PageCopy& copy : copies) pages_.Copy(copy.from, copy.to);
    Prefill(rows);
    Decode(rows, sink);
    return absl::OkStatus();
  }

 private:
  int WholeTokens(const Row& row) const {
    return static_cast<int>(row.input.size()) / shape_.meta_tokens * shape_.meta_tokens;
  }

  void Prefill(std::span<const Row> rows) {
    std::vector<EncodeJob> jobs;
    for (const Row& row : rows) {
      const int whole = WholeTokens(row);
      if (whole > 0) jobs.push_back({row.input.first(whole), row.cached_tokens, row.pages.data()});
    }
    encoder_.Encode(jobs);
  }

  void Decode(std::span<const Row> rows, TokenSink& sink) {
    std::vector<DecodeRow> exact, parallel;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      if (!row.decode) continue;
      const int whole = WholeTokens(row);
      const int64_t first_token = row.cached_tokens + whole;
      const float* condition = first_token == 0 ? model_.start_latent().data()
                                                : pages_.Latent(row.pages.data(), first_token - 1);
      const std::span<const TokenId> forced = row.input.subspan(whole);
      // With a single level there is nothing to predict in parallel.
      const bool is_exact = row.mode == GenerationMode::kExact || !forced.empty() ||
                            model_.config().num_levels() == 1;
      (is_exact ? exact : parallel)
          .emplace_back(row, static_cast<int>(i), first_token, forced, condition,
                        shape_.meta_tokens);
    }
    if (!exact.empty()) decoder_.DecodeExact(exact, sink);
    if (parallel.empty()) return;
    decoder_.DecodeParallel(parallel, sink);
    Reencode(parallel);
  }

  // kHierGen rows go on from their tokens' real states.
  void Reencode(std::span<const DecodeRow> rows) {
    std::vector<std::vector<TokenId>> tokens;
    std::vector<EncodeJob> jobs;
    tokens.reserve(rows.size());
    for (const DecodeRow& row : rows) {
      if (row.ended || row.row->mode != GenerationMode::kHierGen) continue;
      std::vector<TokenId>& ids = tokens.emplace_back();
      for (const SampledLogits& sampled : row.tokens) ids.push_back(sampled.token);
      jobs.push_back({ids, row.first_token, row.row->pages.data()});
    }
    encoder_.Encode(jobs);
  }

  EngineShape shape_;
  ThreadPool pool_;
  CpuContext<T> context_;
  CpuModel<T> model_;
  LatentPages<T> pages_;
  HierarchicalEncoder<T> encoder_;
  RecursiveDecoder<T> decoder_;
};

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
       {CheckAtLeast("threads", 0, options.threads), CheckAtLeast("kv_bytes", 1, options.kv_bytes),
        CheckAtLeast("page_tokens", 1, options.page_tokens),
        CheckAtLeast("max_rows", 1, options.max_rows),
        CheckAtLeast("max_prefill_tokens", meta, options.max_prefill_tokens)}) {
    if (!status.ok()) return status;
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
  const int64_t num_pages = std::min<int64_t>(options.kv_bytes / layout.page_bytes, INT32_MAX);
  if (num_pages < 1) {
    return absl::ResourceExhaustedError(absl::StrCat("kv_bytes: a page of ", layout.page_tokens,
                                                     " tokens takes ", layout.page_bytes,
                                                     " bytes, got ", options.kv_bytes));
  }
  EngineShape shape{
      .device = absl::StrCat("cpu (", IsaName(isa), ", ", is_bf16 ? "bf16" : "fp32", ", ", threads,
                             threads == 1 ? " thread)" : " threads)"),
      .vocab_size = config.vocab_size,
      .meta_tokens = meta,
      .max_context = config.max_context,
      .page_tokens = layout.page_tokens,
      .num_pages = static_cast<int>(num_pages),
      .page_bytes = layout.page_bytes,
      .max_rows = options.max_rows,
      .max_prefill_tokens = options.max_prefill_tokens,
      .modes = {GenerationMode::kExact, GenerationMode::kHierGen},
  };
  if (config.num_levels() > 1) shape.modes.push_back(GenerationMode::kRecGen);
  if (is_bf16) {
    return std::make_unique<CpuEngine<BFloat16>>(checkpoint, shape, layout, threads, isa);
  }
  return std::make_unique<CpuEngine<float>>(checkpoint, shape, layout, threads, isa);
}

}  // namespace photon
