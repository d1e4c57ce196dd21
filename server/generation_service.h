// photon.v1.GenerationService over the scheduler.
#pragma once

#include "photon/v1/generation.grpc.pb.h"
#include "server/call_stream.h"
#include "server/options.h"

namespace photon {

// Requests arrive as bytes: see byte_buffer_codec.h.
class GenerationService final : public v1::GenerationService::WithRawCallbackMethod_Generate<
                                    v1::GenerationService::WithRawCallbackMethod_GenerateBatch<
                                        v1::GenerationService::Service>> {
 public:
  // What is borrowed outlives the gRPC server.
  GenerationService(const CallEnvironment& calls, const RequestLimits& limits);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateBatch(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;

 private:
  const CallEnvironment calls_;
  const RequestLimits limits_;
};

}  // namespace photon
