#include "server/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/auth/authenticator.h"

namespace photon {

bool operator==(const FieldProblem& a, const FieldProblem& b) {
  return a.field == b.field && a.problem == b.problem;
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

google::rpc::Status DetailsOf(const absl::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(ToGrpcStatus(status).error_details()));
  return details;
}

// The detail of its type, which is there once.
template <typename Detail>
Detail Find(const google::rpc::Status& details) {
  Detail found;
  int count = 0;
  for (const auto& any : details.details()) {
    if (any.UnpackTo(&found)) ++count;
  }
  EXPECT_EQ(count, 1) << details.ShortDebugString();
  return found;
}

TEST(FieldProblems, EachFieldHasItsProblem) {
  EXPECT_THAT(FieldProblems("parameters.sampling.top_p: expected (0, 1], got 2; ids[3]: too large"),
              ElementsAre(FieldProblem{"parameters.sampling.top_p", "expected (0, 1], got 2"},
                          FieldProblem{"ids[3]", "too large"}));
}

TEST(FieldProblems, SemicolonsMayBePartOfAProblem) {
  EXPECT_THAT(FieldProblems("n: bad; Really bad; worse: much; x"),
              ElementsAre(FieldProblem{"n", "bad; Really bad"}, FieldProblem{"worse", "much; x"}));
}

TEST(FieldProblems, OtherMessagesNameNoField) {
  for (const char* message : {"", "the queue is full: 9 wait", "a call of 3", ": x", "field:x"}) {
    EXPECT_THAT(FieldProblems(message), IsEmpty()) << message;
  }
}

TEST(GrpcStatus, SuccessHasNoDetails) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
}

TEST(GrpcStatus, DetailsRepeatCodeAndMessageAndSayWhy) {
  const google::rpc::Status details = DetailsOf(absl::UnavailableError("the server is draining"));
  EXPECT_EQ(details.code(), 14);
  EXPECT_EQ(details.message(), "the server is draining");
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.ErrorInfo");
  const auto info = Find<google::rpc::ErrorInfo>(details);
  EXPECT_EQ(info.reason(), "UNAVAILABLE");
  EXPECT_EQ(info.domain(), "photon.v1");
}

TEST(GrpcStatus, BadRequestsNameTheirFields) {
  const auto bad = Find<google::rpc::BadRequest>(
      DetailsOf(absl::InvalidArgumentError("prompt: is long; parameters.n: expected 1")));
  ASSERT_EQ(bad.field_violations_size(), 2);
  EXPECT_EQ(bad.field_violations(1).field(), "parameters.n");
  EXPECT_EQ(bad.field_violations(1).description(), "expected 1");
}

TEST(GrpcStatus, ThoseWhoAreTurnedAwayLearnWhenToComeAgain) {
  const absl::Status full = absl::ResourceExhaustedError("the queue is full");
  EXPECT_EQ(Find<google::rpc::RetryInfo>(DetailsOf(full)).retry_delay().seconds(), 1);
  const auto delay =
      Find<google::rpc::RetryInfo>(DetailsOf(WithRetryDelay(full, std::chrono::milliseconds(2500))))
          .retry_delay();
  EXPECT_GE(delay.seconds() * 1000 + delay.nanos() / 1'000'000, 2500);
}

}  // namespace
}  // namespace photon
