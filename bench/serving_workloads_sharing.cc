// Workloads in which sequences share what they begin with: questions, samples, and their memory.
#include <algorithm>
#include <cstdio>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/serving_metrics.h"
#include "bench/serving_workloads.h"

namespace photon {
namespace {

constexpr int kSharedSamples = 64;

}  // namespace

absl::Status Workloads::RunQuestions() {
  if (absl::Status status =
          CheckContext("questions", options_.document_tokens + options_.question_tokens_max +
                                        options_.answer_tokens);
      !status.ok()) {
    return status;
  }
  const auto document = [this](int variant, int round) {
    return Text(3'000'000 + variant, round, options_.document_tokens);
  };
  const auto question = [this](int variant, int round, int index) {
    const uint64_t kind = 4'000'000 + 1000 * variant + round;
    std::seed_seq seed{options_.seed, kind, static_cast<uint64_t>(index)};
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<int> length(options_.question_tokens_min,
                                              options_.question_tokens_max);
    return Text(kind, index, length(random));
  };
  const auto call = [this](std::vector<std::vector<TokenId>> prompts) {
    return ServingCall{.prompts = std::move(prompts),
                       .max_tokens = options_.answer_tokens,
                       .mode = options_.mode,
                       .temperature = options_.temperature,
                       .seed = 1};
  };
  const auto questions = [this, question](int variant, int round) {
    std::vector<std::vector<TokenId>> all;
    for (int q = 0; q < options_.questions; ++q) all.push_back(question(variant, round, q));
    return all;
  };

  // Each question in a call of its own, the document before it. Where nothing is to be shared, the
  // document's first token is another for each question, so that no prompt begins like another.
  const auto calls = [=, this](int variant, int round, bool shares) {
    std::vector<ServingCall> all;
    for (int q = 0; q < options_.questions; ++q) {
      std::vector<TokenId> prompt = document(variant, round);
      if (!shares) prompt[0] = q % target_->facts().vocab_size;
      const std::vector<TokenId> tail = question(variant, round, q);
      prompt.insert(prompt.end(), tail.begin(), tail.end());
      all.push_back(call({std::move(prompt)}));
    }
    return all;
  };
  const auto together = [this](auto prepare) -> absl::StatusOr<nlohmann::json> {
    absl::StatusOr<LoadRecord> record = RunTogether(*target_, prepare);
    if (!record.ok()) return record.status();
    return ServingMetrics(*record, target_->facts());
  };
  const auto prepared = [=](int variant, bool shares) {
    return [=](int round) {
      return together([all = calls(variant, round, shares)]() mutable
                          -> absl::StatusOr<std::vector<ServingCall>> { return std::move(all); });
    };
  };
  // The document is created, and the questions asked of it in one call. The window begins before
  // the first or between the two.
  const auto asked = [=, this](int variant, bool counts_creation) {
    return [=, this](int round) -> absl::StatusOr<nlohmann::json> {
      const std::vector<TokenId> text = document(variant, round);
      absl::StatusOr<std::string> id;
      if (!counts_creation) {
        id = target_->CreateDocument(text);
        if (!id.ok()) return id.status();
      }
      ServingCall ask = call(questions(variant, round));
      absl::StatusOr<nlohmann::json> metrics =
          together([&]() -> absl::StatusOr<std::vector<ServingCall>> {
            if (counts_creation) id = target_->CreateDocument(text);
            if (!id.ok()) return id.status();
            ask.document = *id;
            return std::vector<ServingCall>{std::move(ask)};
          });
      if (!metrics.ok()) return metrics.status();
      if (absl::Status status = target_->DeleteDocument(*id); !status.ok()) return status;
      return metrics;
    };
  };
  return Measure("questions", {{"nothing shared", prepared(0, false)},
                               {"prefix found by the index", prepared(1, true)},
                               {"document created and asked", asked(2, true)},
                               {"document asked", asked(3, false)}})
      .status();
}

absl::Status Workloads::RunSamples() {
  if (absl::Status status =
          CheckContext("samples", options_.sample_prompt_tokens + options_.output_tokens);
      !status.ok()) {
    return status;
  }
  const auto run = [this](std::vector<ServingCall> calls) -> absl::StatusOr<nlohmann::json> {
    absl::StatusOr<LoadRecord> record = RunTogether(
        *target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> { return std::move(calls); });
    if (!record.ok()) return record.status();
    return ServingMetrics(*record, target_->facts());
  };
  const auto call = [this](uint64_t kind, int index, int samples) {
    return ServingCall{.prompts = {Text(kind, index, options_.sample_prompt_tokens)},
                       .samples = samples,
                       .max_tokens = options_.output_tokens,
                       .mode = options_.mode,
                       .temperature = options_.temperature,
                       .seed = 1};
  };
  std::vector<Variant> variants;
  const int most = *std::max_element(options_.samples.begin(), options_.samples.end());
  variants.push_back({absl::StrCat(most, " prompts"), [=](int round) {
                        std::vector<ServingCall> calls;
                        for (int i = 0; i < most; ++i) {
                          calls.push_back(call(5'000'000 + round, i, 1));
                        }
                        return run(std::move(calls));
                      }});
  for (const int samples : options_.samples) {
    variants.push_back(
        {absl::StrCat(samples, samples == 1 ? " sample" : " samples"),
         [=](int round) { return run({call(6'000'000 + 1000 * samples + round, 0, samples)}); }});
  }
  return Measure("samples", variants).status();
}

absl::Status Workloads::RunMemory() {
  const ServingFacts& facts = target_->facts();
  if (!target_->stats().has_value()) {
    return absl::FailedPreconditionError("memory: needs the scheduler in this process");
  }
  // Every sequence writes its last page throughout its output.
  const int output = facts.page_tokens;
  std::printf("\nmemory, bytes per sequence: peak of pages in use, by sequences\n");
  std::printf("%8s %12s %12s %14s %14s %8s %8s\n", "tokens", "latents", "in pages",
              absl::StrCat("of ", kSharedSamples, " samples").c_str(), "transformer", "ratio",
              "shared");
  nlohmann::json rows = nlohmann::json::array();
  for (const int length : options_.lengths) {
    if (absl::Status status = CheckContext("memory", length); !status.ok()) return status;
    if (length <= output || length % facts.page_tokens != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("memory: lengths are multiples of a page's ", facts.page_tokens,
                       " tokens and more than one, got ", length));
    }
    const auto peak_bytes = [&](int samples) -> absl::StatusOr<double> {
      ShowProgress(absl::StrCat("memory: ", samples, " of ", length, " tokens"), 0);
      ServingCall call{.prompts = {Text(7'000'000 + length, samples, length - output)},
                       .samples = samples,
                       .max_tokens = output,
                       .mode = options_.mode};
      absl::StatusOr<LoadRecord> record =
          RunTogether(*target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> {
            return std::vector<ServingCall>{std::move(call)};
          });
      if (!record.ok()) return record.status();
      return static_cast<double>(record->peak_pages_in_use * facts.page_bytes) / samples;
    };
    const absl::StatusOr<double> alone = peak_bytes(1);
    if (!alone.ok()) return alone.status();
    const absl::StatusOr<double> shared = peak_bytes(kSharedSamples);
    if (!shared.ok()) return shared.status();
    const double latents = facts.kv_width_that_grows_per_token * options_.element_bytes * length;
    const double transformer =
        static_cast<double>(facts.kv_width_of_all_layers) * options_.element_bytes * length;
    ClearProgress();
    std::printf("%8d %12.0f %12.0f %14.0f %14.0f %8.1f %8.1f\n", length, latents, *alone, *shared,
                transformer, transformer / *alone, transformer / *shared);
    std::fflush(stdout);
    rows.push_back({{"tokens", length},
                    {"latent_bytes", latents},
                    {"page_bytes_per_sequence", *alone},
                    {"page_bytes_per_sample", *shared},
                    {"samples", kSharedSamples},
                    {"transformer_bytes", transformer}});
  }
  report_.push_back({{"workload", "memory"}, {"rows", std::move(rows)}});
  return absl::OkStatus();
}

absl::Status Workloads::RunMix() {
  if (absl::Status status = CheckContext(
          "mix", options_.document_tokens + options_.question_tokens_max + options_.answer_tokens);
      !status.ok()) {
    return status;
  }
  // Each call asks `questions` of one of the documents, `samples` times each, and the documents
  // take turns. The smallest numbers of each are what ratios are to.
  std::vector<Variant> variants;
  for (const int documents : options_.mix_documents) {
    for (const int questions : options_.mix_questions) {
      for (const int samples : options_.mix_samples) {
        variants.push_back({absl::StrCat(documents, " x ", questions, " x ", samples),
                            [this, documents, questions, samples](int round) {
                              return AskAll(documents, questions, samples, round);
                            }});
      }
    }
  }
  return Measure("mix", variants).status();
}

absl::StatusOr<nlohmann::json> Workloads::AskAll(int documents, int questions, int samples,
                                                 int round) {
  const uint64_t kind = 9'000'000 + 1000 * round;
  std::vector<std::string> ids;
  // Document and its questions: a document's prefill is part of what is measured.
  absl::StatusOr<LoadRecord> record =
      RunTogether(*target_, [&]() -> absl::StatusOr<std::vector<ServingCall>> {
        std::vector<ServingCall> calls;
        for (int d = 0; d < documents; ++d) {
          absl::StatusOr<std::string> id =
              target_->CreateDocument(Text(kind, d, options_.document_tokens));
          if (!id.ok()) return id.status();
          ids.push_back(*id);
          ServingCall call{.document = *std::move(id),
                           .samples = samples,
                           .max_tokens = options_.answer_tokens,
                           .mode = options_.mode,
                           .temperature = options_.temperature,
                           .seed = 1};
          for (int q = 0; q < questions; ++q) {
            call.prompts.push_back(Text(kind + 1 + d, q, options_.question_tokens_min));
          }
          calls.push_back(std::move(call));
        }
        return calls;
      });
  if (!record.ok()) return record.status();
  for (const std::string& id : ids) {
    if (absl::Status status = target_->DeleteDocument(id); !status.ok()) return status;
  }
  return ServingMetrics(*record, target_->facts(), options_.level);
}

}  // namespace photon
