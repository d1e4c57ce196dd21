// photon.v1.ModelService: what is served, and its tokenizer.
#pragma once

#include "photon/v1/model.grpc.pb.h"
#include "server/served_model.h"

namespace photon {

// Requests with text arrive as bytes: see byte_buffer_codec.h.
class ModelService final : public v1::ModelService::WithCallbackMethod_GetModelInfo<
                               v1::ModelService::WithRawCallbackMethod_Tokenize<
                                   v1::ModelService::WithCallbackMethod_Detokenize<
                                       v1::ModelService::WithRawCallbackMethod_EstimateCost<
                                           v1::ModelService::Service>>>> {
 public:
  // What is borrowed outlives the gRPC server.
  explicit ModelService(const ModelHost* models);

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* EstimateCost(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;

 private:
  const ModelHost* const models_;
};

}  // namespace photon
