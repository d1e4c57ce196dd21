// A GenerationCall on gRPC's wire: one write in flight at a time.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/clock.h"
#include "server/call_output.h"
#include "server/generation_call.h"
#include "server/generation_request.h"

namespace photon {

// Lives until gRPC is done with the call.
class CallStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // A message of the method's own type.
  using Encoder = grpc::ByteBuffer (*)(CallOutput::Message message);

  struct Call {
    grpc::CallbackServerContext* context = nullptr;
    RequestName name;
  };

  // A reactor that is already failing with `error`.
  static CallStream* Reject(Call call, const absl::Status& error);

  // A reactor for `queries`, which are submitted to `model` together; see GenerationCall::Create.
  // Those with an error fail alone; one that the scheduler refuses fails the call.
  static CallStream* Start(Call call, const CallEnvironment& environment,
                           std::shared_ptr<ServedModel> model,
                           std::vector<absl::StatusOr<Query>> queries, Encoder encoder);

 private:
  explicit CallStream(Call call);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Starts the next write, or finishes the call, unless a write is in flight.
  void Advance();
  void LogCall() const;

  const Call call_;
  Encoder encoder_ = nullptr;
  std::shared_ptr<GenerationCall> generation_;  // null: rejected
  std::shared_ptr<CallStream> self_;            // until OnDone
  grpc::ByteBuffer write_buffer_;               // of the write in flight

  std::mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;  // there was a message
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<SequenceIndex> written_sequence_ ABSL_GUARDED_BY(mutex_);  // of the write in flight
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called: no more writes
  absl::Status status_;                             // constant once finishing_
};

// Messages as Generate, GenerateBatch and Ask send them.
grpc::ByteBuffer EncodeGenerateResponse(CallOutput::Message message);
grpc::ByteBuffer EncodeGenerateBatchResponse(CallOutput::Message message);
grpc::ByteBuffer EncodeAskResponse(CallOutput::Message message);

// The deadline of a call in the scheduler's time.
TimePoint DeadlineOf(const grpc::CallbackServerContext& context);

// Why there is nobody to write to, of a call that was cancelled.
absl::Status WhyTheClientLeft(const grpc::CallbackServerContext& context);

// Tells a client that found the server full when to try again.
void AddRetryPushback(grpc::CallbackServerContext& context, const absl::Status& status);

}  // namespace photon
