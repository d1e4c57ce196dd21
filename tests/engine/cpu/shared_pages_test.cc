#include "tests/engine/cpu/shared_pages.h"

#include <cstring>
#include <deque>

#include "engine/cpu/hierarchical_encoder.h"
#include "engine/cpu/recursive_decoder.h"
#include "gtest/gtest.h"

namespace photon {
namespace {

using Compute = CpuEngineOptions::Compute;

// Two engines of one checkpoint: one whose pages are shared, one for sequences alone.
struct Engines {
  Engines(const NamedConfig& named, Compute compute, int max_rows = 16,
          std::optional<Isa> isa = std::nullopt)
      : name(named.name), checkpoint(RandomCheckpoint(named.config)) {
    CpuEngineOptions options = SmallOptions();
    options.compute = compute;
    options.isa = isa;
    options.page_tokens = 4 * named.config.meta_tokens();
    options.max_rows = max_rows;
    options.max_prefill_tokens = 4096;
    options.threads = 3;
    shared = MakeEngine(*checkpoint, options);
    options.threads = 1;
    options.max_rows = 1;
    alone = MakeEngine(*checkpoint, options);
    name += ", " + shared->shape().device;
  }

  std::string name;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Engine> shared, alone;
};

// Sampling settings that have little in common.
Sampling SomeSampling(uint64_t i) {
  return {.temperature = i % 4 == 0 ? 0.0f : 0.5f + 0.3f * static_cast<float>(i % 5),
          .top_k = i % 3 == 0 ? 0 : static_cast<int>(i % 20),
          .top_p = i % 2 == 0 ? 1.0f : 0.7f,
          .min_p = i % 5 == 0 ? 0.02f : 0.0f,
          .seed = i * 77,
          .query = static_cast<uint32_t>(i % 3),
          .sample = static_cast<uint32_t>(i),
          .top_logprobs = i % 3 == 1 ? static_cast<int>(i % kMaxTopLogprobs) : 0};
}

void Vary(SharedSequence& sequence, const EngineShape& shape, uint64_t i) {
  sequence.mode = shape.modes[i % shape.modes.size()];
  sequence.sampling = SomeSampling(i);
  sequence.want_logits = i % 2 == 0;
}

void ExpectAsAlone(Engines& engines, const SharedSequence& sequence) {
  ExpectAsUnshared(*engines.alone, sequence);
  for (const Decoded& decoded : sequence.history) {
    if (decoded.mode == GenerationMode::kRecGen) return;
  }
  ExpectAsRebuiltFromTokens(*engines.alone, sequence);
}

// Calls test(engines) for every small config and both kinds of arithmetic.
void ForEachEngine(int max_rows, absl::FunctionRef<void(Engines&)> test) {
  for (const NamedConfig& named : SmallConfigs()) {
    for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
      Engines engines(named, compute, max_rows);
      SCOPED_TRACE(engines.name);
      test(engines);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// Bytes of a pool in which three sequences of `metas` meta-contexts were decoded in kExact, and in
// which the same tokens were prefilled; or, with `mode` kRecGen, were decoded so.
template <typename T>
void ExpectDecodedPagesEqualPrefilledOnes(const NamedConfig& named, GenerationMode mode) {
  const auto checkpoint = RandomCheckpoint(named.config);
  const ModelConfig& config = checkpoint->config();
  const int meta = config.meta_tokens(), metas = 5, num_rows = 3;
  const BatchLimits limits{.max_rows = num_rows, .max_encode_tokens = 4 * meta};
  ThreadPool pool(2);
  const CpuContext<T> context{KernelsFor<T>(BestIsa()), KernelsFor<float>(BestIsa()), pool};
  CpuModel<T> model(config, checkpoint->weights(), limits, context);
  const PageLayout layout(config, 2 * meta, sizeof(T));
  const int pages_per_row = 3, num_pages = pages_per_row * num_rows;
  const int width = config.levels.back().encoder.hidden_size;
  LatentPages<T> decoded(layout, num_pages, width), prefilled(layout, num_pages, width);
  RecursiveDecoder<T> decoder(model, decoded, limits, context);
  HierarchicalEncoder<T> encoder(model, prefilled, limits);

  struct IgnoreTokens final : TokenSink {
    bool OnTokens(int, std::span<const SampledToken>) override { return true; }
  } sink;
  std::vector<std::vector<TokenId>> tokens(num_rows);
  std::vector<std::vector<PageId>> pages(num_rows);
  std::vector<Row> rows(num_rows);
  for (int r = 0; r < num_rows; ++r) {
    for (int p = 0; p < pages_per_row; ++p) pages[r].push_back(PageId{p * num_rows + r});
    rows[r] = {.pages = pages[r], .mode = mode, .sampling = SomeSampling(r + 1)};
  }
  std::vector<DecodeRow> decoding(num_rows, DecodeRow(meta));
  const std::vector<TokenId> forced = {1, 2};
  for (int m = 0; m < metas; ++m) {
    for (int r = 0; r < num_rows; ++r) {
      const int64_t first = int64_t{m} * meta;
      const bool is_forced = r == 1 && m == 2 && mode == GenerationMode::kExact;
      decoding[r].Begin(
          rows[r], r, first, is_forced ? forced : std::span<const TokenId>(),
          m == 0 ? model.start_latent().data() : decoded.Latent(pages[r].data(), first - 1));
    }
    if (mode == GenerationMode::kExact) {
      decoder.DecodeExact(decoding, sink);
    } else {
      decoder.DecodeParallel(decoding, sink);
    }
    for (int r = 0; r < num_rows; ++r) {
      for (const SampledLogits& sampled : decoding[r].tokens) tokens[r].push_back(sampled.token);
    }
  }
  std::vector<EncodeJob> jobs;
  for (int r = 0; r < num_rows; ++r) jobs.push_back({tokens[r], 0, pages[r].data()});
  encoder.Encode(jobs);

  ASSERT_EQ(layout.level_offsets[0], 0);
  const auto page = [&](LatentPages<T>& pool, int p) {
    return reinterpret_cast<const std::byte*>(pool.Kv(0, nullptr).base) + p * layout.page_bytes;
  };
  for (int p = 0; p < num_pages; ++p) {
    EXPECT_EQ(std::memcmp(page(decoded, p), page(prefilled, p), layout.page_bytes) == 0,
              mode == GenerationMode::kExact)
        << named.name << ", page " << p;
  }
}

TEST(LatentPages, ExactDecodingWritesWhatPrefillingTheSameTokensWrites) {
  for (const NamedConfig& named : SmallConfigs()) {
    ExpectDecodedPagesEqualPrefilledOnes<float>(named, GenerationMode::kExact);
    ExpectDecodedPagesEqualPrefilledOnes<BFloat16>(named, GenerationMode::kExact);
  }
}

TEST(LatentPages, RecGenWritesPredictionsThatPrefillingDoesNot) {
  for (const NamedConfig& named : SmallConfigs()) {
    if (named.config.num_levels() == 1) continue;
    ExpectDecodedPagesEqualPrefilledOnes<float>(named, GenerationMode::kRecGen);
    ExpectDecodedPagesEqualPrefilledOnes<BFloat16>(named, GenerationMode::kRecGen);
  }
}

TEST(SharedPages, ForksDecodeInOneStepWhatTheyWouldAlone) {
  ForEachEngine(16, [](Engines& engines) {
    const EngineShape& shape = engines.shared->shape();
    SharedPool pool(*engines.shared, 1);
    // One full page and half of the next.
    SharedSequence parent;
    parent.tokens = RandomTokens(6 * shape.meta_tokens, shape.vocab_size, 1);
    parent.want_logits = true;
    pool.Step(std::vector<SharedPool::Part>{{.sequence = &parent, .prefill_metas = 6}});
    std::vector<SharedSequence> forks;
    std::vector<SharedSequence*> all = {&parent};
    for (uint64_t i = 0; i < 12; ++i) {
      // A few go on from the boundary, others have a question of their own.
      const auto more =
          RandomTokens(i % 3 == 0 ? 0 : static_cast<int>(i), shape.vocab_size, 100 + i);
      forks.push_back(pool.Fork(parent, parent.cached_tokens, more));
      Vary(forks.back(), shape, i);
    }
    for (SharedSequence& fork : forks) all.push_back(&fork);
    for (int step = 0; step < 3; ++step) pool.Decode(all);
    EXPECT_EQ(forks[0].pages[0], parent.pages[0]);
    EXPECT_NE(forks[0].pages[1], parent.pages[1]);
    for (const SharedSequence* sequence : all) ExpectAsAlone(engines, *sequence);
  });
}

TEST(SharedPages, AForkInsideAPageItsOwnerHasWrittenOnEqualsTheUnsharedRun) {
  ForEachEngine(16, [](Engines& engines) {
    const EngineShape& shape = engines.shared->shape();
    SharedPool pool(*engines.shared, 2);
    SharedSequence owner;
    owner.tokens = RandomTokens(2 * shape.meta_tokens + 1, shape.vocab_size, 2);
    SharedSequence* owners[] = {&owner};
    for (int step = 0; step < 3; ++step) pool.Decode(owners);
    // Five meta-contexts in pages of four: boundaries at the start of a page, inside, at its end.
    std::deque<SharedSequence> forks;
    std::vector<SharedSequence*> all = {&owner};
    for (int boundary = 0; boundary <= owner.cached_tokens; boundary += shape.meta_tokens) {
      for (uint64_t i = 0; i < 2; ++i) {
        const auto more = RandomTokens(static_cast<int>(i) * (shape.meta_tokens + 1),
                                       shape.vocab_size, boundary + i);
        forks.push_back(pool.Fork(owner, boundary, more));
        Vary(forks.back(), shape, boundary / shape.meta_tokens + i);
        if (forks.back().mode == GenerationMode::kRecGen) forks.back().mode = owner.mode;
        all.push_back(&forks.back());
      }
    }
    // In the first of these steps the copies are made and the owner writes on.
    for (int step = 0; step < 2; ++step) pool.Decode(all);
    for (const SharedSequence* sequence : all) ExpectAsAlone(engines, *sequence);
  });
}

TEST(SharedPages, ACopiedPageNoLongerFollowsItsSource) {
  ForEachEngine(4, [](Engines& engines) {
    const EngineShape& shape = engines.shared->shape();
    SharedPool pool(*engines.shared, 3);
    SharedSequence owner;
    owner.tokens = RandomTokens(3 * shape.meta_tokens, shape.vocab_size, 3);
    pool.Step(std::vector<SharedPool::Part>{{.sequence = &owner, .prefill_metas = 3}});
    SharedSequence fork = pool.Fork(owner, owner.cached_tokens, {});
    fork.want_logits = true;
    // The owner fills its page and leaves it before the fork's first step.
    SharedSequence *owners[] = {&owner}, *forks[] = {&fork};
    for (int step = 0; step < 2; ++step) pool.Decode(owners);
    pool.Release(owner);
    for (int step = 0; step < 2; ++step) pool.Decode(forks);
    ExpectAsAlone(engines, fork);
  });
}

TEST(SharedPages, ARowAmongSixtyThreeOthersAndAfterPausesIsAsAlone) {
  ForEachEngine(64, [](Engines& engines) {
    const EngineShape& shape = engines.shared->shape();
    SharedPool pool(*engines.shared, 4);
    std::vector<SharedSequence> sequences(64);
    for (uint64_t i = 0; i < sequences.size(); ++i) {
      sequences[i].tokens = RandomTokens(static_cast<int>(i * 7 % 31), shape.vocab_size, 400 + i);
      Vary(sequences[i], shape, i);
    }
    for (uint64_t step = 0; step < 4; ++step) {
      std::vector<SharedSequence*> running;
      for (uint64_t i = 0; i < sequences.size(); ++i) {
        // All of them first and last; in between every third one pauses.
        if (step % 3 == 0 || (i + step) % 3 != 0) running.push_back(&sequences[i]);
      }
      pool.Decode(running);
    }
    for (const SharedSequence& sequence : sequences) ExpectAsAlone(engines, sequence);
  });
}

// A pool in use: sequences come, fork at any boundary, pause, prefill in pieces, are cut off in a
// meta-context, are preempted and rebuilt, and go.
void RunRandomly(Engines& engines, uint64_t seed) {
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  SharedPool pool(*engines.shared, seed);
  const EngineShape& shape = pool.shape();
  const int meta = shape.meta_tokens;
  const int pages_at_most = shape.max_context / shape.page_tokens + 1;
  std::deque<SharedSequence> live, gone;
  for (int step = 0; step < 30; ++step) {
    while (static_cast<int>(live.size()) < shape.max_rows && below(3) > 0 &&
           pool.num_free() > (static_cast<int>(live.size()) + 2) * pages_at_most) {
      SharedSequence next;
      const SharedSequence* parent = live.empty() ? nullptr : &live[below(live.size())];
      if (parent != nullptr && parent->has_run && below(2) == 0) {
        const bool is_rebuilt = parent->mode != GenerationMode::kRecGen;
        int boundary = parent->cached_tokens;
        if (is_rebuilt && below(2) == 0) boundary = below(boundary / meta + 1) * meta;
        // What kRecGen predicted takes no input where a lower level is global.
        const auto more =
            RandomTokens(is_rebuilt ? below(2 * meta) : 0, shape.vocab_size, random());
        if (boundary + static_cast<int>(more.size()) + meta > shape.max_context) continue;
        next = pool.Fork(*parent, boundary, more);
        Vary(next, shape, random());
        if (!is_rebuilt) next.mode = GenerationMode::kRecGen;
      } else {
        next.tokens = RandomTokens(below(6 * meta), shape.vocab_size, random());
        Vary(next, shape, random());
      }
      live.push_back(std::move(next));
    }
    std::vector<SharedPool::Part> parts;
    for (SharedSequence& sequence : live) {
      const int waiting = static_cast<int>(sequence.tokens.size()) - sequence.cached_tokens;
      if (!pool.CanDecode(sequence) || below(4) == 0) continue;
      SharedPool::Part part{.sequence = &sequence};
      if (waiting > 2 * meta && below(2) == 0) {
        part.prefill_metas = 1 + below(2);
      } else if (below(8) == 0) {
        part.stop_after = 1 + below(meta);
      }
      parts.push_back(part);
    }
    pool.Step(parts);
    if (testing::Test::HasFatalFailure()) return;
    for (size_t i = 0; i < live.size();) {
      SharedSequence& sequence = live[i];
      if (!pool.CanDecode(sequence) || below(12) == 0) {
        pool.Release(sequence);
        gone.push_back(std::move(sequence));
        live.erase(live.begin() + static_cast<int64_t>(i));
        continue;
      }
      if (below(10) == 0 && sequence.mode != GenerationMode::kRecGen) pool.Release(sequence);
      ++i;
    }
  }
  for (SharedSequence& sequence : live) {
    pool.Release(sequence);
    gone.push_back(std::move(sequence));
  }
  EXPECT_EQ(pool.num_free(), shape.num_pages);
  for (const SharedSequence& sequence : gone) ExpectAsAlone(engines, sequence);
}

TEST(SharedPages, APoolInRandomUseChangesNoSequence) {
  ForEachEngine(12, [](Engines& engines) {
    for (uint64_t seed = 0; seed < 3; ++seed) RunRandomly(engines, seed);
  });
}

TEST(SharedPages, EveryInstructionSetChangesNoSequence) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (!IsaSupported(isa)) continue;
    for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
      // Three levels, block and global spans.
      Engines engines(SmallConfigs()[2], compute, 12, isa);
      SCOPED_TRACE(engines.name);
      RunRandomly(engines, 9);
    }
  }
}

}  // namespace
}  // namespace photon
