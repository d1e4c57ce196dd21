#include "server/document_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/scheduler/fake_clock.h"
#include "tests/scheduler/fake_engine.h"
#include "tests/scheduler/recorded_sequence.h"

namespace photon {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr TenantId kAlice{1};
constexpr TenantId kBob{2};

class DocumentStoreTest : public ::testing::Test {
 protected:
  DocumentStoreTest() {
    auto scheduler = Scheduler::Create(&engine_, &clock_, {});
    EXPECT_TRUE(scheduler.ok()) << scheduler.status();
    scheduler_ = *std::move(scheduler);
    store_ = std::make_unique<DocumentStore>(DocumentLimits{.max_per_tenant = 2, .max_in_total = 3},
                                             &clock_, scheduler_.get());
  }

  // A pin that holds a page.
  PinId Prefill(TenantId tenant, TimePoint expires) {
    SequenceRequest request;
    request.prompt = {static_cast<TokenId>(++num_prefilled_), 1, 2, 3};
    request.max_tokens = 0;
    request.pin_until = DocumentStore::PinUntil(expires);
    request.tenant = tenant;
    const auto record = std::make_shared<RecordedSequence>();
    EXPECT_TRUE(
        scheduler_->Submit(std::move(request), std::make_unique<RecordingListener>(record)).ok());
    while (!record->end.has_value()) EXPECT_TRUE(scheduler_->RunStep().ok());
    EXPECT_TRUE(record->stats.pin.has_value());
    return record->stats.pin.value_or(PinId{});
  }

  Document Add(TenantId tenant, seconds ttl, const std::string& name = "") {
    auto place = store_->Reserve(tenant);
    EXPECT_TRUE(place.ok()) << place.status();
    Document document;
    document.display_name = name;
    document.tokens = std::make_shared<std::vector<TokenId>>(4, 1);
    document.created = clock_.Now();
    document.expires = clock_.Now() + ttl;
    document.pin = Prefill(tenant, document.expires);
    return store_->Add(*std::move(place), std::move(document));
  }

  int NumPins() {
    EXPECT_TRUE(scheduler_->RunStep().ok());
    return scheduler_->stats().num_pins;
  }

  FakeClock clock_;
  FakeEngine engine_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<DocumentStore> store_;
  int num_prefilled_ = 0;
};

TEST_F(DocumentStoreTest, KeepsADocumentForItsTenantAlone) {
  const Document document = Add(kAlice, seconds(10), "tale");
  EXPECT_EQ(document.id.size(), 32u);
  const auto found = store_->Find(kAlice, document.id);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->display_name, "tale");
  EXPECT_EQ(found->tenant, kAlice);
  EXPECT_TRUE(absl::IsNotFound(store_->Find(kBob, document.id).status()));
  EXPECT_EQ(store_->Find(kBob, document.id).status(),
            store_->Delete(kBob, document.id));  // as if it did not exist
  EXPECT_TRUE(
      absl::IsNotFound(store_->Extend(kBob, document.id, clock_.Now() + seconds(100)).status()));
  EXPECT_TRUE(store_->List(kBob).empty());
  EXPECT_EQ(store_->List(kAlice).size(), 1u);
}

TEST_F(DocumentStoreTest, ForgetsADocumentThatExpiresAndGivesItsPinUp) {
  const Document document = Add(kAlice, seconds(10));
  clock_.Advance(seconds(10) - Duration(1));
  EXPECT_TRUE(store_->Find(kAlice, document.id).ok());
  EXPECT_EQ(NumPins(), 1);
  clock_.Advance(Duration(1));
  EXPECT_TRUE(absl::IsNotFound(store_->Find(kAlice, document.id).status()));
  EXPECT_EQ(NumPins(), 0);
}

TEST_F(DocumentStoreTest, LetsPinsLapseWhereNobodyAsks) {
  Add(kAlice, seconds(10));
  clock_.Advance(seconds(60));
  EXPECT_EQ(NumPins(), 0);
}

TEST_F(DocumentStoreTest, ADocumentThatCanBeFoundIsPinned) {
  const Document document = Add(kAlice, seconds(10));
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(seconds(9));
    ASSERT_TRUE(store_->Extend(kAlice, document.id, clock_.Now() + seconds(10)).ok());
    EXPECT_EQ(NumPins(), 1);
  }
  EXPECT_TRUE(store_->Extend(kAlice, document.id, clock_.Now() + seconds(1)).ok());
  clock_.Advance(seconds(1));
  EXPECT_TRUE(absl::IsNotFound(store_->Find(kAlice, document.id).status()));
}

TEST_F(DocumentStoreTest, DeletesOnce) {
  const Document document = Add(kAlice, seconds(10));
  EXPECT_TRUE(store_->Delete(kAlice, document.id).ok());
  EXPECT_TRUE(absl::IsNotFound(store_->Delete(kAlice, document.id)));
  EXPECT_EQ(NumPins(), 0);
}

TEST_F(DocumentStoreTest, LimitsDocumentsOfATenantAndOfAll) {
  Add(kAlice, seconds(10));
  auto place = store_->Reserve(kAlice);
  ASSERT_TRUE(place.ok());
  const auto refused = store_->Reserve(kAlice);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("2 documents of at most 2"));
  place->reset();  // an upload that failed
  Add(kAlice, seconds(20));
  Add(kBob, seconds(20));
  EXPECT_THAT(std::string(store_->Reserve(kBob).status().message()),
              HasSubstr("the server has 3 documents of at most 3"));
  clock_.Advance(seconds(10));
  EXPECT_TRUE(store_->Reserve(kBob).ok());
}

TEST_F(DocumentStoreTest, ListsTheOldestFirst) {
  const std::string first = Add(kAlice, seconds(100), "first").id;
  clock_.Advance(seconds(1));
  const std::string second = Add(kAlice, seconds(10), "second").id;
  const auto list = store_->List(kAlice);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].id, first);
  EXPECT_EQ(list[1].id, second);
}

}  // namespace
}  // namespace photon
