#include "server/vote.h"

#include <algorithm>
#include <tuple>

#include "server/answer.h"

namespace photon {

void Vote::Add(int sample, const std::optional<std::string>& answer) {
  --num_open_;
  if (!answer.has_value()) {
    ++num_without_answer_;
    return;
  }
  const auto [it, inserted] = candidates_.try_emplace(NormalizeAnswer(*answer));
  Candidate& candidate = it->second;
  if (inserted || sample < candidate.first_sample) {
    candidate.answer = *answer;
    candidate.first_sample = sample;
  }
  ++candidate.votes;
  // An answer that catches up with the leader was second, or becomes it.
  if (candidate.votes > most_votes_) {
    most_votes_ = candidate.votes;
  } else {
    second_votes_ = std::max(second_votes_, candidate.votes);
  }
}

void Vote::Abstain() {
  --num_open_;
}

bool Vote::decided() const {
  return most_votes_ > second_votes_ + num_open_;
}

std::vector<Vote::Candidate> Vote::Ranking() const {
  std::vector<Candidate> ranking;
  for (const auto& [normalized, candidate] : candidates_) ranking.push_back(candidate);
  std::sort(ranking.begin(), ranking.end(), [](const Candidate& a, const Candidate& b) {
    return std::make_tuple(-a.votes, a.first_sample) < std::make_tuple(-b.votes, b.first_sample);
  });
  return ranking;
}

}  // namespace photon
