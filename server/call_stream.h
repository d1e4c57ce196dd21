// A streaming call in flight: its sequences in the scheduler, its output on the wire.
//
//   the loop thread                     gRPC's threads
//   Listener --> CallOutput (bounded) --> one write in flight at a time
//                     |
//         a sequence past its mark: Scheduler::Pause, once written: Resume
//
// So a reader that stops holds up its own call alone: one by one its sequences pause, keep their
// pages for a while, and end. Everything that this file says to the scheduler is a call that any
// thread may make.
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
#include "scheduler/scheduler.h"
#include "server/auth/authenticator.h"
#include "server/call_output.h"
#include "server/generation_request.h"

namespace photon {

// What streaming calls need; outlives them.
struct CallEnvironment {
  Scheduler* scheduler = nullptr;
  const Tokenizer* tokenizer = nullptr;
  int64_t max_unread_bytes = 0;
};

// Lives until gRPC is done with the call and the scheduler with its sequences.
class CallStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // A message of the method's own type.
  using Encoder = grpc::ByteBuffer (*)(CallOutput::Message message);

  struct Call {
    grpc::CallbackServerContext* context = nullptr;
    const char* method = "";  // for the log
    std::string request_id;
  };

  // A reactor that is already failing with `error`.
  static CallStream* Reject(Call call, const absl::Status& error);

  // A reactor for `queries`, which are submitted together. Those with an error fail alone; one that
  // the scheduler refuses fails the call.
  static CallStream* Start(Call call, const CallEnvironment& environment,
                           std::vector<absl::StatusOr<Query>> queries, Encoder encoder);

 private:
  class Listener;

  explicit CallStream(Call call);

  // gRPC's side.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // The scheduler's side.
  std::optional<size_t> OnTokens(SequenceIndex index, std::span<const SampledToken> tokens);
  void OnFinish(SequenceIndex index, SequenceEnd end, const SequenceStats& stats);

  void Submit();
  // Searches answers in what the query of sequence `index` has said, on a thread of gRPC's.
  void StartIntegration(SequenceIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunIntegration(SequenceIndex index);
  void CancelAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next write, or finishes the call, unless a write is in flight.
  void Advance(std::unique_lock<std::mutex> lock);
  void LogCall() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Call call_;
  std::shared_ptr<const Caller> caller_;
  Encoder encoder_ = nullptr;
  Scheduler* scheduler_ = nullptr;
  grpc::ByteBuffer write_buffer_;  // of the write in flight

  std::mutex mutex_;
  std::shared_ptr<CallStream> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::optional<CallOutput> output_ ABSL_GUARDED_BY(mutex_);
  std::vector<SequenceId> ids_ ABSL_GUARDED_BY(mutex_);  // empty until all are submitted
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<SequenceIndex> written_sequence_ ABSL_GUARDED_BY(mutex_);  // of the write in flight
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called: no more writes
  bool client_left_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);  // once the outcome is known
};

// Gives queries that the scheduler could never run their errors, so that they fail alone.
void CheckThatEachFits(const Scheduler& scheduler, std::vector<absl::StatusOr<Query>>& queries);

// Messages as Generate, GenerateBatch and Ask send them.
grpc::ByteBuffer EncodeGenerateResponse(CallOutput::Message message);
grpc::ByteBuffer EncodeGenerateBatchResponse(CallOutput::Message message);
grpc::ByteBuffer EncodeAskResponse(CallOutput::Message message);

// The deadline of a call in the scheduler's time.
TimePoint DeadlineOf(const grpc::CallbackServerContext& context);

// Tells a client that found the server full when to try again.
void AddRetryPushback(grpc::CallbackServerContext& context, const absl::Status& status);

}  // namespace photon
