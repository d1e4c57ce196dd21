#include "server/generation_output.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/server/test_model.h"

namespace photon {
namespace {

std::vector<SampledToken> Sampled(const std::vector<TokenId>& ids) {
  std::vector<SampledToken> tokens(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) tokens[i].token = ids[i];
  return tokens;
}

Query AfterBos() {
  Query query;
  query.sequence.prompt = {1};
  return query;
}

TEST(GenerationOutput, EndsAtTheTokenThatCompletesAStopString) {
  const std::vector<TokenId> ids = TestTokenizer().Encode("The fox ran home. The owl slept.");
  for (size_t batch = 1; batch <= ids.size(); ++batch) {
    Query query = AfterBos();
    query.stop_strings = {"zzz", "me. T"};
    GenerationOutput output(query, TestTokenizer());
    v1::GenerateResponse message;
    size_t accepted = 0;
    const std::vector<SampledToken> tokens = Sampled(ids);
    for (size_t begin = 0; begin < tokens.size(); begin += batch) {
      const auto piece = std::span(tokens).subspan(begin, std::min(batch, tokens.size() - begin));
      const auto end = output.Append(piece, message);
      accepted += end.value_or(piece.size());
      if (end.has_value()) break;
    }
    SequenceStats stats;
    stats.generated_tokens = static_cast<int>(accepted);
    output.Finish(SequenceEnd::kListener, stats, message);
    EXPECT_EQ(message.text(), "The fox ran ho");
    EXPECT_EQ(message.result().finish_reason(), v1::FINISH_REASON_STOP_STRING);
    EXPECT_EQ(message.result().stop_string(), "me. T");
    EXPECT_EQ(static_cast<size_t>(message.token_ids_size()), accepted);
    // Not one token more than the stop string took.
    const std::vector<TokenId> all(ids.begin(), ids.begin() + accepted);
    const std::vector<TokenId> fewer(ids.begin(), ids.begin() + accepted - 1);
    EXPECT_NE(TestTokenizer().Decode(all).find("me. T"), std::string::npos);
    EXPECT_EQ(TestTokenizer().Decode(fewer).find("me. T"), std::string::npos);
  }
}

TEST(GenerationOutput, CountsAStopTokenButShowsNoTextOfIt) {
  const TokenId stop = TestTokenizer().Encode("fox").back();
  Query query = AfterBos();
  query.sequence.stop_tokens = {2, stop};
  GenerationOutput output(query, TestTokenizer());
  v1::GenerateResponse message;
  const std::vector<TokenId> the = TestTokenizer().Encode("the");
  EXPECT_FALSE(output.Append(Sampled(the), message).has_value());
  EXPECT_EQ(output.Append(Sampled({stop, 9, 9}), message), 1u);
  output.Finish(SequenceEnd::kListener, {}, message);
  EXPECT_EQ(message.text(), "the");
  EXPECT_EQ(message.result().finish_reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(message.result().stop_token_id(), stop);
  EXPECT_EQ(message.token_ids_size(), static_cast<int>(the.size()) + 1);
}

TEST(GenerationOutput, HoldsBackUnfinishedCharacters) {
  const std::vector<TokenId> ids = TestTokenizer().Encode("𝐛");  // four byte pieces
  ASSERT_GE(ids.size(), 4u);
  GenerationOutput output(AfterBos(), TestTokenizer());
  std::string text;
  for (TokenId id : ids) {
    v1::GenerateResponse message;
    output.Append(Sampled({id}), message);
    EXPECT_TRUE(message.text().empty() || message.text() == "𝐛");
    text += message.text();
  }
  EXPECT_EQ(text, "𝐛");
}

TEST(GenerationOutput, GivesEverythingBackAtTheEnd) {
  Query query = AfterBos();
  query.stop_strings = {"fox and owl"};
  GenerationOutput output(query, TestTokenizer());
  v1::GenerateResponse first, last;
  output.Append(Sampled(TestTokenizer().Encode("the fox and")), first);
  EXPECT_EQ(first.text(), "the ");
  output.Finish(SequenceEnd::kLength, {}, last);
  EXPECT_EQ(last.text(), "fox and");
  EXPECT_EQ(last.result().finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(GenerationOutput, ReportsLogprobsIfAsked) {
  Query query = AfterBos();
  query.logprobs = true;
  GenerationOutput output(query, TestTokenizer());
  const TokenLogprob top[] = {{7, -0.25f}, {8, -2.0f}};
  SampledToken token;
  token.token = 8;
  token.logprob = -2.0f;
  token.top = top;
  v1::GenerateResponse message;
  output.Append({&token, 1}, message);
  ASSERT_EQ(message.logprobs_size(), 1);
  EXPECT_EQ(message.logprobs(0).logprob(), -2.0f);
  ASSERT_EQ(message.logprobs(0).top_size(), 2);
  EXPECT_EQ(message.logprobs(0).top(0).token_id(), 7);
  EXPECT_EQ(message.logprobs(0).top(0).logprob(), -0.25f);
}

}  // namespace
}  // namespace photon
