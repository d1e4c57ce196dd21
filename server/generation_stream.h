// One Generate call: the tokens of a sequence on their way to a client.
//
//   scheduler's thread                              gRPC's threads
//   GenerationStream::Listener -- pending message --> one write in flight at a time
//
// Tokens that come while a write is in flight are put together in the next message, so a slow
// reader gets fewer and larger messages and never holds up a step. One that leaves more than
// `max_unread_bytes` unread loses its sequence.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "photon/v1/generation.pb.h"
#include "scheduler/scheduler.h"
#include "server/generation_output.h"

namespace photon {

// Lives until gRPC is done with the call and the scheduler with the sequence.
class GenerationStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // A reactor that is already failing with `error`.
  static GenerationStream* Reject(grpc::CallbackServerContext* context, std::string request_id,
                                  const absl::Status& error);

  // A reactor for `generation`, which is submitted to `scheduler`; both borrowed things outlive it.
  static GenerationStream* Start(grpc::CallbackServerContext* context, std::string request_id,
                                 Generation generation, const Tokenizer& tokenizer,
                                 Scheduler* scheduler, int64_t max_unread_bytes);

 private:
  class Listener;

  GenerationStream(grpc::CallbackServerContext* context, std::string request_id);

  // gRPC's side.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // The scheduler's side.
  std::optional<size_t> OnTokens(std::span<const SampledToken> tokens);
  void OnFinish(SequenceEnd end, const SequenceStats& stats);

  void Submit(Generation generation, Scheduler* scheduler);
  // Starts the next write, or finishes the call, unless a write is in flight.
  void Advance(std::unique_lock<std::mutex> lock);
  void LogRequest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;
  const std::string request_id_;
  Scheduler* scheduler_ = nullptr;
  int64_t max_unread_bytes_ = 0;
  grpc::ByteBuffer write_buffer_;  // of the write in flight

  std::mutex mutex_;
  std::shared_ptr<GenerationStream> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::optional<GenerationOutput> output_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse pending_ ABSL_GUARDED_BY(mutex_);
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called: no more writes
  bool client_left_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<SequenceId> sequence_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);          // once the outcome is known
  std::optional<v1::GenerationResult> result_ ABSL_GUARDED_BY(mutex_);  // for the log
};

}  // namespace photon
