// A majority vote of samples that come one by one.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace photon {

// Counts the answers of `n` samples, equal after normalisation (answer.h). Each sample is heard of
// once, in any order: it has an answer, has none, or will not vote.
class Vote {
 public:
  struct Candidate {
    std::string answer;  // as the sample with the lowest index wrote it
    int votes = 0;
    int first_sample = 0;
  };

  explicit Vote(int n) : num_open_(n) {}

  void Add(int sample, const std::optional<std::string>& answer);
  // Of a sample that was cut off.
  void Abstain();

  // The leader cannot be overtaken any more, not even caught up with: whatever the open samples
  // answer, in whatever order, it wins.
  bool decided() const;

  // Most votes first; of equals the one whose first sample has the lowest index.
  std::vector<Candidate> Ranking() const;

  int num_without_answer() const { return num_without_answer_; }

 private:
  int num_open_;  // not heard of yet
  int num_without_answer_ = 0;
  int most_votes_ = 0;
  int second_votes_ = 0;                         // of another answer than the leader's
  std::map<std::string, Candidate> candidates_;  // by normalised answer
};

}  // namespace photon
