#include "client/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace photon {
namespace {

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
