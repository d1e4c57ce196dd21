#include "server/integrator.h"

#include <algorithm>
#include <utility>

namespace photon {
namespace {

// Keeps a histogram of many long answers inside a message.
constexpr size_t kMaxReportedAnswerBytes = 1024;

std::string Report(const std::string& answer) {
  return std::string(TruncateUtf8(answer, kMaxReportedAnswerBytes));
}

}  // namespace

Integrator::Integrator(std::shared_ptr<const IntegrationOptions> options, int n)
    : options_(std::move(options)), n_(n), texts_(n), vote_(n) {}

void Integrator::Add(EndedSample sample) {
  ++num_added_;
  counts_.set_generated_tokens(counts_.generated_tokens() + sample.generated_tokens);
  if (!sample.finished) {
    counts_.set_samples_cancelled(counts_.samples_cancelled() + 1);
    counts_.set_saved_tokens(counts_.saved_tokens() + sample.max_tokens - sample.generated_tokens);
    vote_.Abstain();
    return;
  }
  counts_.set_samples_finished(counts_.samples_finished() + 1);
  if (options_->extractor.has_value()) {
    vote_.Add(sample.index, options_->extractor->Extract(sample.text));
    texts_[sample.index] = std::move(sample.text);
    return;
  }
  const bool better = !best_.has_value() || sample.mean_logprob > best_mean_logprob_ ||
                      (sample.mean_logprob == best_mean_logprob_ && sample.index < *best_);
  if (!better) return;
  if (best_.has_value()) texts_[*best_].clear();
  best_ = sample.index;
  best_mean_logprob_ = sample.mean_logprob;
  texts_[sample.index] = std::move(sample.text);
}

bool Integrator::decided() const {
  return options_->extractor.has_value() && !options_->run_all_samples && vote_.decided();
}

v1::IntegrationResult Integrator::Result() const {
  v1::IntegrationResult result = counts_;
  std::optional<int> winner = best_;
  if (options_->extractor.has_value()) {
    const std::vector<Vote::Candidate> ranking = vote_.Ranking();
    for (const Vote::Candidate& candidate : ranking) {
      v1::AnswerCount& count = *result.add_answers();
      count.set_answer(Report(candidate.answer));
      count.set_votes(candidate.votes);
      count.set_sample_index(candidate.first_sample);
    }
    if (!ranking.empty()) {
      winner = ranking[0].first_sample;
      result.set_answer(Report(ranking[0].answer));
    }
    result.set_samples_without_answer(vote_.num_without_answer());
  } else if (best_.has_value()) {
    result.set_mean_logprob(static_cast<float>(best_mean_logprob_));
  }
  if (winner.has_value()) {
    result.set_sample_index(*winner);
    result.set_text(texts_[*winner]);
  }
  return result;
}

}  // namespace photon
