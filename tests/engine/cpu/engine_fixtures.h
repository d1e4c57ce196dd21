// Small random models, and sequences driven through an engine as a scheduler would drive them.
#pragma once

#include <cstdint>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "engine/cpu/cpu_engine.h"
#include "engine/engine.h"
#include "engine/model/checkpoint.h"

namespace photon {

// A name for failures, and a config that covers some of the options.
struct NamedConfig {
  std::string name;
  ModelConfig config;

  // As GoogleTest calls it.
  friend void PrintTo(const NamedConfig& named, std::ostream* out) { *out << named.name; }
};

// One, two and three levels; between them every option of a config takes every value.
std::vector<NamedConfig> SmallConfigs();

// Random fp32 weights of `config`, every parameter randomised.
std::unique_ptr<Checkpoint> RandomCheckpoint(const ModelConfig& config, uint64_t seed = 1);

// fp32 on one thread, pages of two meta-contexts, unless changed.
CpuEngineOptions SmallOptions();
std::unique_ptr<Engine> MakeEngine(const Checkpoint& checkpoint,
                                   const CpuEngineOptions& options = SmallOptions());

std::vector<TokenId> RandomTokens(int count, int vocab_size, uint64_t seed);

// What a sequence has generated.
struct Generated {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<float> logits;  // [tokens and forced slots of the steps, vocab], if asked for

  bool operator==(const Generated&) const = default;
};

// One sequence: its tokens, its pages, and where it stands.
class Sequence {
 public:
  // Takes pages [first_page, ...) of the engine as it grows.
  Sequence(const EngineShape& shape, std::vector<TokenId> prompt, int first_page,
           GenerationMode mode = GenerationMode::kExact, Sampling sampling = {.temperature = 0});

  // The next step of this sequence: all tokens that its pages lack, then decode.
  Row NextRow(bool want_logits);
  // A step that only prefills the next `meta_contexts` whole ones.
  Row PrefillRow(int meta_contexts);
  // After the step of PrefillRow.
  void Prefilled(const Row& row) { cached_tokens_ += static_cast<int>(row.input.size()); }
  // After the step of NextRow, with the tokens that the sink saw.
  void Decoded(std::span<const TokenId> tokens, std::span<const float> logprobs);

  const Generated& generated() const { return generated_; }

 private:
  const EngineShape& shape_;
  std::vector<TokenId> tokens_;
  std::vector<PageId> pages_;
  int cached_tokens_ = 0;
  GenerationMode mode_;
  Sampling sampling_;
  std::vector<float> step_logits_;
  Generated generated_;
};

// Steps `sequences` together until each has been through `num_steps` steps.
void RunSteps(Engine& engine, std::span<Sequence*> sequences, int num_steps,
              bool want_logits = false);

// A single sequence from its prompt, alone in the engine.
Generated Generate(Engine& engine, std::vector<TokenId> prompt, int num_steps,
                   GenerationMode mode = GenerationMode::kExact,
                   Sampling sampling = {.temperature = 0}, bool want_logits = false);

// Logits [tokens.size()][vocab] of every token given those before it, computed meta-context by
// meta-context through the cache.
std::vector<std::vector<float>> TeacherForcedLogits(Engine& engine,
                                                    std::span<const TokenId> tokens);

// |a - b| / |b| over all elements.
double RelativeError(std::span<const float> a, std::span<const double> b);

}  // namespace photon
