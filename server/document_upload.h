// One CreateDocument call: takes the text in, has the cache filled with it, and answers when that
// is done.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "photon/v1/document.pb.h"
#include "scheduler/scheduler.h"
#include "server/auth/authenticator.h"
#include "server/document_store.h"
#include "server/model_facts.h"
#include "server/options.h"
#include "server/request_log.h"
#include "server/served_model.h"

namespace photon {

// What uploads need; outlives them.
struct UploadEnvironment {
  const ModelHost* models = nullptr;
  const Clock* clock = nullptr;
  DocumentLimits limits;
};

// What the messages of an upload bring, put together and checked. For one thread at a time.
class DocumentContent {
 public:
  DocumentContent(const DocumentLimits& limits, const ModelFacts* model)
      : limits_(limits), model_(model) {}

  // kInvalidArgument: the message may not stand here, or has fields that are wrong.
  absl::Status Add(v1::CreateDocumentRequest& message);

  // The document's tokens, after the last message. kInvalidArgument: it is empty or too long.
  absl::StatusOr<std::vector<TokenId>> Finish() const;

  const std::string& display_name() const { return display_name_; }
  std::chrono::seconds ttl() const { return ttl_; }

 private:
  absl::Status AddSettings(v1::DocumentSettings& settings);
  absl::Status AddTokenIds(const v1::TokenIds& ids);

  const DocumentLimits limits_;
  const ModelFacts* const model_;
  bool has_settings_ = false;
  std::string display_name_;
  std::chrono::seconds ttl_{};
  std::string text_;
  std::vector<TokenId> ids_;
};

// A life of `ttl_s` seconds; kInvalidArgument names the limit.
absl::StatusOr<std::chrono::seconds> CheckTtl(int64_t ttl_s, const DocumentLimits& limits);

// As the methods return it.
v1::Document ToProto(const Document& document, TimePoint now);

// Lives until gRPC is done with the call and the scheduler with the sequence.
class DocumentUpload final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  static DocumentUpload* Start(grpc::CallbackServerContext* context, RequestName name,
                               const UploadEnvironment& environment, grpc::ByteBuffer* response);

 private:
  class Listener;

  DocumentUpload(grpc::CallbackServerContext* context, RequestName name,
                 const UploadEnvironment& environment, grpc::ByteBuffer* response);

  // gRPC's side.
  void OnReadDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // The scheduler's side.
  void OnFinish(SequenceEnd end, const SequenceStats& stats);

  absl::Status AddMessage();
  void Submit();
  // Keeps what was prefilled as a document, and answers with it.
  void Keep(PinId pin) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the call, unless it has ended.
  void End(const absl::Status& status, std::unique_lock<std::mutex> lock);

  grpc::CallbackServerContext* const context_;
  const RequestName name_;
  const UploadEnvironment environment_;
  // From the first message until the document is submitted: whose vocabulary it is.
  ModelLease lease_;
  const std::shared_ptr<ServedModel> model_;
  std::unique_ptr<CallRegistry::Entry> entry_;
  const std::shared_ptr<const Caller> caller_;
  grpc::ByteBuffer* const response_;  // gRPC's, until Finish
  grpc::ByteBuffer read_buffer_;      // of the read in flight
  DocumentContent content_;           // of the thread that reads

  std::mutex mutex_;
  std::shared_ptr<DocumentUpload> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::unique_ptr<DocumentStore::Place> place_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const std::vector<TokenId>> tokens_ ABSL_GUARDED_BY(mutex_);
  TimePoint expires_ ABSL_GUARDED_BY(mutex_);
  std::optional<SequenceId> sequence_ ABSL_GUARDED_BY(mutex_);
  std::optional<RequestSummary> summary_ ABSL_GUARDED_BY(mutex_);  // for the log
  std::string document_id_ ABSL_GUARDED_BY(mutex_);                // once it is kept
  bool client_left_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);  // Finish was called
};

}  // namespace photon
