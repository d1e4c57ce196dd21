// photon-counted-workloads: fixed pieces of work whose instructions are counted.
//
//   photon-counted-workloads --list                    the names of all
//   photon-counted-workloads --write-model FOLDER      the random weights that they compute with
//   photon-counted-workloads exact-8-rows FOLDER
//
// Each workload is set up first and then done once inside CountedRegion(), where
// bench/instructions/check.py has Callgrind count. What depends on the machine is fixed: AVX2
// kernels, one thread.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/idle_engine.h"
#include "engine/cpu/cpu_engine.h"
#include "engine/model/checkpoint.h"
#include "engine/model/random_checkpoint.h"
#include "scheduler/scheduler.h"

namespace photon {

// Named on Callgrind's command line. The body is behind a pointer, so the call stays a call.
[[gnu::noinline]] void CountedRegion(const std::function<void()>& body) {
  body();
}

namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Value(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

// --- The engine ---

constexpr int kContext = 128;

// Two levels of 4 x 4, wide enough that products are most of the work, as in models people serve.
ModelConfig CountedConfig() {
  const auto stack = [](int width, int layers) {
    return StackConfig{.hidden_size = width,
                       .num_layers = layers,
                       .num_heads = width / 32,
                       .num_kv_heads = width / 32,
                       .head_dim = 32,
                       .intermediate_size = 2 * width,
                       .qk_norm = true};
  };
  const auto level = [&](EncoderSpan span) {
    LevelConfig config;
    config.chunk_size = 4;
    config.converter_width = 2;
    config.encoder = stack(128, 2);
    config.decoder = stack(128, 2);
    config.chunker.type = ChunkerConfig::Type::kLinear;
    config.converter = {.kernel = 1, .out_norm = true, .bias = true};
    config.encoder_span = span;
    return config;
  };
  ModelConfig config;
  config.vocab_size = 2048;
  config.embedding_dim = 128;
  config.encoder_embedding_dim = 128;
  config.levels = {level(EncoderSpan::kBlock), level(EncoderSpan::kGlobal)};
  config.tie_word_embeddings = true;
  config.max_context = 2 * kContext;
  return config;
}

class DropTokens final : public TokenSink {
 public:
  bool OnTokens(int, std::span<const SampledToken>) override { return true; }
};

struct StepWork {
  int rows = 1;
  bool decode = true;
  GenerationMode mode = GenerationMode::kExact;
  float top_p = 1;  // below 1: draws instead of taking the best
};

void CountStep(const StepWork& work, const std::string& model) {
  const auto checkpoint = Value(Checkpoint::Load(model));
  const auto engine =
      Value(CreateCpuEngine(*checkpoint, {.threads = 1,
                                          .kv_memory = MemoryBudget::Bytes(16 << 20),
                                          .page_tokens = kContext,
                                          .max_rows = work.rows,
                                          .isa = Isa::kAvx2}));
  std::vector<TokenId> prompt(kContext);
  for (int i = 0; i < kContext; ++i) prompt[i] = (i * 7919 + 3) % engine->shape().vocab_size;
  const PageId prompt_page{0};
  const Row prefill = {.input = prompt, .pages = {&prompt_page, 1}, .decode = false};
  // Rows share the page of the prompt and write one of their own.
  std::vector<std::array<PageId, 2>> pages(work.rows);
  std::vector<Row> rows;
  for (int r = 0; r < work.rows; ++r) {
    pages[r] = {prompt_page, PageId{1 + r}};
    rows.push_back({.cached_tokens = kContext,
                    .pages = pages[r],
                    .mode = work.mode,
                    .sampling = {.temperature = work.top_p < 1 ? 1.0f : 0.0f,
                                 .top_p = work.top_p,
                                 .seed = static_cast<uint64_t>(r)}});
  }
  DropTokens sink;
  if (work.decode) Check(engine->Step({}, {&prefill, 1}, sink));
  const std::span<const Row> counted = work.decode ? rows : std::span(&prefill, 1);
  CountedRegion([&] { Check(engine->Step({}, counted, sink)); });
}

// --- The scheduler ---

class CountEnds final : public SequenceListener {
 public:
  explicit CountEnds(int* ends) : ends_(ends) {}
  std::optional<size_t> OnTokens(std::span<const SampledToken>) override { return std::nullopt; }
  void OnFinish(SequenceEnd, const SequenceStats&) override { ++*ends_; }

 private:
  int* const ends_;
};

// Submits `count` prompts of 512 tokens, of which `shared` begin alike, for 64 tokens each, and
// runs until all have ended. Counted is the thread that plans: its turns, pages and prefix index.
// The engine's own thread is not.
void CountScheduler(int count, int shared) {
  const EngineShape shape = IdleEngine::Shape(4096, 2048, count, 4 * count);
  IdleEngine engine(shape);
  const SteadyClock clock;
  const auto scheduler = Value(Scheduler::Create(&engine, &clock, {}));
  int ends = 0;
  CountedRegion([&] {
    std::vector<Scheduler::Submission> submissions;
    for (int i = 0; i < count; ++i) {
      SequenceRequest request{.max_tokens = 64};
      for (int t = 0; t < 512; ++t) {
        const int text = t < shared ? 0 : i;
        request.prompt.push_back((t * 7919 + text * 104729 + 3) % shape.vocab_size);
      }
      submissions.push_back({std::move(request), std::make_unique<CountEnds>(&ends)});
    }
    Check(scheduler->SubmitAll(std::move(submissions)).status());
    while (ends < count) Check(scheduler->RunStep());
  });
}

struct Workload {
  const char* name;
  std::function<void(const std::string& model)> run;
};

std::vector<Workload> AllWorkloads() {
  using Mode = GenerationMode;
  const auto step = [](const StepWork& work) {
    return [work](const std::string& model) { CountStep(work, model); };
  };
  return {
      {"prefill-128-tokens", step({.decode = false})},
      {"exact-1-row", step({})},
      {"exact-8-rows", step({.rows = 8})},
      {"exact-8-rows-top-p", step({.rows = 8, .top_p = 0.9f})},
      {"hiergen-8-rows", step({.rows = 8, .mode = Mode::kHierGen})},
      {"recgen-8-rows", step({.rows = 8, .mode = Mode::kRecGen})},
      {"schedule-64-prompts", [](const std::string& /*model*/) { CountScheduler(64, 0); }},
      {"schedule-64-questions", [](const std::string& /*model*/) { CountScheduler(64, 448); }},
  };
}

}  // namespace
}  // namespace photon

int main(int argc, char** argv) {
  const std::vector<photon::Workload> workloads = photon::AllWorkloads();
  if (argc == 2 && std::string_view(argv[1]) == "--list") {
    for (const photon::Workload& workload : workloads) std::printf("%s\n", workload.name);
    return 0;
  }
  if (argc == 3 && std::string_view(argv[1]) == "--write-model") {
    photon::Check(photon::WriteRandomCheckpoint(photon::CountedConfig(), {.seed = 1}, argv[2]));
    return 0;
  }
  for (const photon::Workload& workload : workloads) {
    if (argc != 3 || argv[1] != std::string_view(workload.name)) continue;
    workload.run(argv[2]);
    return 0;
  }
  std::fprintf(stderr,
               "usage: photon-counted-workloads --list | --write-model FOLDER | WORKLOAD FOLDER\n");
  return 2;
}
