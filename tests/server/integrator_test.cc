#include "server/integrator.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "engine/model/utf8.h"

namespace photon {
namespace {

EndedSample Finished(int index, std::string text, double mean_logprob = 0) {
  return {.index = index,
          .finished = true,
          .text = std::move(text),
          .generated_tokens = 10,
          .max_tokens = 100,
          .mean_logprob = mean_logprob};
}

std::shared_ptr<IntegrationOptions> MajorityOfNumbers() {
  auto options = std::make_shared<IntegrationOptions>();
  options->extractor = AnswerExtractor::LastNumber();
  return options;
}

TEST(Integrator, ReturnsTheWinnerTheHistogramAndWhatWasSaved) {
  Integrator integrator(MajorityOfNumbers(), 5);
  integrator.Add(Finished(3, "it is 7"));
  integrator.Add(Finished(1, "it is 7.0"));
  integrator.Add(Finished(0, "no idea"));
  EXPECT_FALSE(integrator.decided());
  integrator.Add(Finished(4, "8"));
  EXPECT_FALSE(integrator.decided());
  integrator.Add({.index = 2, .finished = false, .generated_tokens = 4, .max_tokens = 100});
  EXPECT_TRUE(integrator.complete());
  const v1::IntegrationResult result = integrator.Result();
  EXPECT_EQ(result.sample_index(), 1);
  EXPECT_EQ(result.answer(), "7.0");
  EXPECT_EQ(result.text(), "it is 7.0");
  ASSERT_EQ(result.answers_size(), 2);
  EXPECT_EQ(result.answers(0).votes(), 2);
  EXPECT_EQ(result.answers(1).answer(), "8");
  EXPECT_EQ(result.answers(1).sample_index(), 4);
  EXPECT_EQ(result.samples_finished(), 4);
  EXPECT_EQ(result.samples_cancelled(), 1);
  EXPECT_EQ(result.samples_without_answer(), 1);
  EXPECT_EQ(result.generated_tokens(), 44);
  EXPECT_EQ(result.saved_tokens(), 96);
}

TEST(Integrator, IsDecidedByAMajorityUnlessAllAreToRun) {
  for (const bool run_all : {false, true}) {
    auto options = MajorityOfNumbers();
    options->run_all_samples = run_all;
    Integrator integrator(options, 3);
    integrator.Add(Finished(0, "5"));
    integrator.Add(Finished(1, "5"));
    EXPECT_EQ(integrator.decided(), !run_all);
  }
}

TEST(Integrator, HasNoWinnerWithoutAnAnswer) {
  Integrator integrator(MajorityOfNumbers(), 2);
  integrator.Add(Finished(0, "none"));
  integrator.Add(Finished(1, ""));
  const v1::IntegrationResult result = integrator.Result();
  EXPECT_FALSE(result.has_sample_index());
  EXPECT_EQ(result.samples_without_answer(), 2);
}

TEST(Integrator, TakesTheBestMeanLogprobAndOfEqualsTheLowestIndex) {
  Integrator integrator(std::make_shared<IntegrationOptions>(), 4);
  integrator.Add(Finished(2, "two", -0.5));
  integrator.Add(Finished(0, "zero", -0.7));
  integrator.Add(Finished(1, "one", -0.5));
  EXPECT_FALSE(integrator.decided());
  integrator.Add({.index = 3, .text = "cut off", .max_tokens = 5, .mean_logprob = 0});
  const v1::IntegrationResult result = integrator.Result();
  EXPECT_EQ(result.sample_index(), 1);
  EXPECT_EQ(result.text(), "one");
  EXPECT_EQ(result.mean_logprob(), -0.5f);
  EXPECT_EQ(result.answers_size(), 0);
}

TEST(Integrator, CutsLongAnswersInTheReportButComparesThemWhole) {
  auto options = std::make_shared<IntegrationOptions>();
  options->extractor = AnswerExtractor::WholeText();
  Integrator integrator(options, 2);
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "ä";
  integrator.Add(Finished(0, text + "a"));
  integrator.Add(Finished(1, text + "b"));
  const v1::IntegrationResult result = integrator.Result();
  ASSERT_EQ(result.answers_size(), 2);
  EXPECT_EQ(result.answer().size(), 1024u);
  EXPECT_TRUE(IsValidUtf8(result.answer()));
  EXPECT_EQ(result.text(), text + "a");
}

}  // namespace
}  // namespace photon
