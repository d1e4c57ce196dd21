#include "client/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(ResultText, SpeedIsTokensOverTheTimeOfPrefillAndDecode) {
  v1::GenerationResult result;
  result.set_finish_reason(v1::FINISH_REASON_LENGTH);
  result.mutable_usage()->set_generated_tokens(50);
  result.mutable_timings()->set_queue_ms(1000);
  result.mutable_timings()->set_prefill_ms(100);
  result.mutable_timings()->set_decode_ms(400);
  EXPECT_THAT(ResultText(result),
              StartsWith("50 tokens in 0.50 s, 100.0 tokens/s; ended by max-tokens\n"));
}

TEST(ResultText, WithoutATokenTheSpeedIsZero) {
  EXPECT_THAT(ResultText({}), StartsWith("0 tokens in 0.00 s, 0.0 tokens/s"));
}

TEST(ResultText, SaysWhichStopConditionWasMet) {
  v1::GenerationResult result;
  result.set_finish_reason(v1::FINISH_REASON_STOP_STRING);
  result.set_stop_string("The End");
  EXPECT_THAT(ResultText(result), HasSubstr("ended by stop string \"The End\""));
  result.set_finish_reason(v1::FINISH_REASON_STOP_TOKEN);
  result.set_stop_token_id(2);
  EXPECT_THAT(ResultText(result), HasSubstr("ended by stop token 2\n"));
}

TEST(ModelInfoText, NamesEveryLevelAndTheDefaultMode) {
  v1::GetModelInfoResponse info;
  info.add_modes(v1::GENERATION_MODE_EXACT);
  info.add_modes(v1::GENERATION_MODE_RECGEN);
  info.set_default_mode(v1::GENERATION_MODE_RECGEN);
  info.add_levels()->set_encoder_span(v1::ENCODER_SPAN_BLOCK);
  info.add_levels()->set_encoder_span(v1::ENCODER_SPAN_GLOBAL);
  const std::string text = ModelInfoText(info);
  EXPECT_THAT(text, HasSubstr("exact, recgen (default)"));
  EXPECT_THAT(text, HasSubstr("level 1"));
  EXPECT_THAT(text, HasSubstr("level 2"));
  EXPECT_THAT(text, HasSubstr("block encoder"));
  EXPECT_THAT(text, HasSubstr("global encoder"));
}

TEST(IntegrationText, HasTheCountsAndALineForEachAnswer) {
  v1::IntegrationResult integration;
  integration.set_samples_finished(5);
  integration.set_samples_cancelled(3);
  integration.set_saved_tokens(96);
  v1::AnswerCount& answer = *integration.add_answers();
  answer.set_answer("42");
  answer.set_votes(4);
  answer.set_sample_index(1);
  EXPECT_THAT(IntegrationText(integration), AllOf(StartsWith("5 samples finished, 3 cancelled"),
                                                  HasSubstr("at most 96 more saved"),
                                                  EndsWith("\n4 votes, first sample 1: 42\n")));
}

TEST(DocumentText, IsOneLine) {
  v1::Document document;
  document.set_id("0123");
  document.set_num_tokens(7);
  document.set_display_name("tale");
  document.set_expires_unix_ms(1'000'000'000'000);
  EXPECT_EQ(DocumentText(document),
            "0123  7 tokens  0 bytes of cache  expires 2001-09-09T01:46:40Z  tale\n");
}

TEST(EstimateText, SaysWhenItFits) {
  v1::EstimateCostResponse estimate;
  EXPECT_THAT(EstimateText(estimate), HasSubstr("fits          never\n"));
  estimate.set_fits(true);
  EXPECT_THAT(EstimateText(estimate), HasSubstr("fits          later\n"));
  estimate.set_fits_now(true);
  estimate.set_cache_bytes(10);
  estimate.set_transformer_cache_bytes(400);
  EXPECT_THAT(EstimateText(estimate),
              AllOf(HasSubstr("fits          now\n"), HasSubstr("this is 2.5 %")));
}

TEST(JsonLine, IsOneLineUnderTheProtosNamesWithDefaults) {
  v1::GenerateResponse response;
  response.set_text("two\nlines");
  response.add_token_ids(7);
  const std::string line = JsonLine(response);
  EXPECT_THAT(line, EndsWith("}\n"));
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_THAT(line, HasSubstr(R"("token_ids":[7])"));
  EXPECT_THAT(line, HasSubstr(R"("logprobs":[])"));
  EXPECT_THAT(line, Not(HasSubstr("result")));
}

}  // namespace
}  // namespace photon
