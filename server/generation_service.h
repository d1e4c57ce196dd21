// photon.v1.GenerationService over the scheduler.
#pragma once

#include <cstdint>

#include "photon/v1/generation.grpc.pb.h"
#include "scheduler/scheduler.h"
#include "server/model_facts.h"

namespace photon {

// Requests arrive as bytes: see byte_buffer_codec.h.
class GenerationService final
    : public v1::GenerationService::WithRawCallbackMethod_Generate<v1::GenerationService::Service> {
 public:
  // What is borrowed outlives the gRPC server.
  GenerationService(const ModelFacts* model, Scheduler* scheduler, int64_t max_unread_bytes);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;

 private:
  const ModelFacts* const model_;
  Scheduler* const scheduler_;
  const int64_t max_unread_bytes_;
};

}  // namespace photon
