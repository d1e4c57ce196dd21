// Health, reflection and the model service.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "tests/server/server_fixture.h"

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(ServerTest, KnowsTheHealthOfEachService) {
  Start();
  for (const char* service :
       {"", "photon.v1.GenerationService", "photon.v1.DocumentService", "photon.v1.ModelService",
        "inference.GRPCInferenceService", "grpc.health.v1.Health"}) {
    EXPECT_EQ(Health(service), HealthCheckResponse::SERVING) << service;
  }
  HealthCheckRequest unknown;
  unknown.set_service("nobody");
  HealthCheckResponse response;
  grpc::ClientContext check_context, watch_context;
  EXPECT_EQ(health_->Check(&check_context, unknown, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  const auto watch = health_->Watch(&watch_context, unknown);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  watch_context.TryCancel();
  EXPECT_FALSE(watch->Read(&response));
}

TEST_F(ServerTest, ListsItsServicesByReflection) {
  Start();
  std::string answer;
  // ServerReflectionRequest { list_services (7): "" }
  const grpc::Status status =
      CallRaw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              std::string("\x3a\x00", 2), &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(answer,
              AllOf(HasSubstr("photon.v1.GenerationService"), HasSubstr("photon.v1.ModelService"),
                    HasSubstr("grpc.health.v1.Health")));
  answer.clear();
  // ServerReflectionRequest { file_containing_symbol (4) }: clients need the descriptors.
  ASSERT_TRUE(CallRaw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      "\x22\x15grpc.health.v1.Health", &answer)
                  .ok());
  EXPECT_THAT(answer, HasSubstr("HealthCheckRequest"));
}

TEST_F(ServerTest, DescribesItsModel) {
  Start();
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(model_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.name(), "test");
  EXPECT_EQ(info.device(), "fake");
  EXPECT_EQ(info.max_context_tokens(), 4096);
  EXPECT_EQ(info.meta_context_tokens(), 4);
  ASSERT_EQ(info.levels_size(), 1);
  EXPECT_EQ(info.levels(0).encoder_span(), v1::ENCODER_SPAN_GLOBAL);
  EXPECT_EQ(info.levels(0).encoder().hidden_size(), 32);
  EXPECT_EQ(info.modes_size(), 2);
  EXPECT_EQ(info.default_mode(), v1::GENERATION_MODE_EXACT);
  EXPECT_EQ(info.bos_token_id(), 1);
  EXPECT_EQ(info.tokenizer_sha256(), TestTokenizer().fingerprint());
  EXPECT_EQ(info.cache().num_pages(), 1024);
}

TEST_F(ServerTest, TokenizesAndBack) {
  Start();
  v1::TokenizeRequest request;
  request.set_text("the fox 𝐛");
  request.set_add_bos(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context, detokenize_context, bad_context;
  ASSERT_TRUE(model_->Tokenize(&tokenize_context, request, &tokens).ok());
  EXPECT_EQ(tokens.token_ids(0), 1);
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(model_->Detokenize(&detokenize_context, back, &text).ok());
  EXPECT_EQ(text.text(), "the fox 𝐛");
  back.add_token_ids(768);
  const grpc::Status status = model_->Detokenize(&bad_context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("expected [0, 768), got 768"));
}

TEST_F(ServerTest, EstimatesWhatAGenerationTakes) {
  EngineShape shape = TestShape();
  shape.max_rows = 1;
  shape.num_pages = 64;  // 1024 tokens
  Start(shape);
  const auto estimate = [&](int prompt_tokens, std::optional<int> max_tokens) {
    v1::EstimateCostRequest request;
    request.set_prompt_tokens(prompt_tokens);
    if (max_tokens) request.set_max_tokens(*max_tokens);
    v1::EstimateCostResponse response;
    grpc::ClientContext context;
    const grpc::Status status = model_->EstimateCost(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  v1::EstimateCostResponse response = estimate(20, 13);
  EXPECT_EQ(response.pages(), 3);  // of 16 tokens
  EXPECT_EQ(response.cache_bytes(), 3 * 64);
  // Of each token: keys and values of 16 elements in an encoder layer and of 8 in a decoder layer.
  EXPECT_EQ(response.transformer_cache_bytes(), 33 * 2 * (16 + 8) * 2);
  EXPECT_TRUE(response.fits());
  EXPECT_TRUE(response.fits_now());
  EXPECT_EQ(response.expected_wait_ms(), 0);
  EXPECT_EQ(estimate(20, std::nullopt).max_tokens(), 16);
  EXPECT_FALSE(estimate(2000, 1).fits());
  EXPECT_FALSE(estimate(1'000'000'000, 2'000'000'000).fits());
  EXPECT_EQ(estimate(1'000'000'000, 2'000'000'000).cache_bytes(), 187'500'000LL * 64);

  // Where something runs, it has to wait.
  CloseGate();
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Request(500));
  gate_.Allow(1);
  gate_.AwaitStep(2);
  EXPECT_TRUE(Eventually([&] { return !estimate(20, 13).fits_now(); }));
  EXPECT_TRUE(estimate(20, 13).fits());
  gate_.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());

  v1::EstimateCostRequest text;
  text.mutable_prompt()->set_text("the fox");
  grpc::ClientContext text_context, bad_context;
  EXPECT_TRUE(model_->EstimateCost(&text_context, text, &response).ok());
  EXPECT_EQ(response.prompt_tokens(),
            static_cast<int>(TestTokenizer().Encode("the fox").size()) + 1);
  text.set_max_tokens(0);
  EXPECT_EQ(model_->EstimateCost(&bad_context, text, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace photon
