#include "server/vote.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace photon {
namespace {

TEST(Vote, CountsAnswersThatMeanTheSame) {
  Vote vote(4);
  vote.Add(2, "1,000");
  vote.Add(0, "Thousand");
  vote.Add(1, "1e3");
  vote.Add(3, std::nullopt);
  const auto ranking = vote.Ranking();
  ASSERT_EQ(ranking.size(), 2u);
  EXPECT_EQ(ranking[0].votes, 2);
  EXPECT_EQ(ranking[0].answer, "1e3");  // as sample 1 wrote it
  EXPECT_EQ(ranking[0].first_sample, 1);
  EXPECT_EQ(vote.num_without_answer(), 1);
}

TEST(Vote, IsDecidedOnceTheLeaderCannotBeCaughtUpWith) {
  Vote vote(8);
  for (int sample = 0; sample < 4; ++sample) {
    EXPECT_FALSE(vote.decided());
    vote.Add(sample, "yes");
  }
  EXPECT_FALSE(vote.decided());  // four others could say no
  vote.Add(4, std::nullopt);
  EXPECT_TRUE(vote.decided());
}

TEST(Vote, StaysOpenForATie) {
  Vote vote(3);
  vote.Add(0, "a");
  vote.Add(1, "b");
  EXPECT_FALSE(vote.decided());
  vote.Abstain();
  EXPECT_FALSE(vote.decided());
  EXPECT_EQ(vote.Ranking()[0].answer, "a");
}

TEST(Vote, BreaksTiesByTheLowestSampleIndex) {
  Vote vote(4);
  vote.Add(3, "late");
  vote.Add(2, "late");
  vote.Add(1, "early");
  vote.Add(0, "early");
  EXPECT_EQ(vote.Ranking()[0].answer, "early");
}

// In whatever order samples come, and wherever the vote stops early, the winner is the one of all.
TEST(Vote, HasTheSameWinnerInAnyOrderAndAfterAnEarlyStop) {
  std::mt19937_64 random(7);
  int early = 0;
  for (int round = 0; round < 2000; ++round) {
    const int n = 1 + static_cast<int>(random() % 12);
    std::vector<std::optional<std::string>> answers(n);
    for (auto& answer : answers) {
      const uint64_t choice = random() % 8;
      if (choice < 7) answer = choice < 4 ? "a" : choice < 6 ? "b" : "c";
    }
    Vote all(n);
    for (int sample = 0; sample < n; ++sample) all.Add(sample, answers[sample]);
    const auto ranking = all.Ranking();

    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    Vote vote(n);
    for (int i = 0; i < n && !vote.decided(); ++i) {
      vote.Add(order[i], answers[order[i]]);
      if (vote.decided() && i + 1 < n) ++early;
    }
    ASSERT_EQ(vote.Ranking().empty(), ranking.empty());
    if (ranking.empty()) continue;
    ASSERT_EQ(vote.Ranking()[0].answer, ranking[0].answer);
  }
  EXPECT_GT(early, 500);
}

}  // namespace
}  // namespace photon
