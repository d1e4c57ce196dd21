// inference.GRPCInferenceService: the Open Inference Protocol, for clients of KServe and Triton.
// docs/kserve.md says what it offers of a PHOTON model.
#pragma once

#include <functional>
#include <string>

#include "inference/grpc_predict_v2.grpc.pb.h"
#include "server/kserve/inference.h"

namespace photon {

// Methods whose requests carry text read bytes: see byte_buffer_codec.h.
// clang-format off
using RawInferenceService =
    inference::GRPCInferenceService::WithCallbackMethod_ServerLive<
    inference::GRPCInferenceService::WithCallbackMethod_ServerReady<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelReady<
    inference::GRPCInferenceService::WithCallbackMethod_ServerMetadata<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelMetadata<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelInfer<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelStreamInfer<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelConfig<
    inference::GRPCInferenceService::WithRawCallbackMethod_ModelStatistics<
    inference::GRPCInferenceService::WithCallbackMethod_RepositoryIndex<
    inference::GRPCInferenceService::WithCallbackMethod_RepositoryModelLoad<
    inference::GRPCInferenceService::WithCallbackMethod_RepositoryModelUnload<
    inference::GRPCInferenceService::Service>>>>>>>>>>>>;
// clang-format on

class InferenceService final : public RawInferenceService {
 public:
  struct Hooks {
    std::function<bool()> alive;            // the process is worth keeping
    std::function<bool()> ready;            // the server takes requests
    std::function<SchedulerStats()> stats;  // of all that it has served
  };

  InferenceService(Inference::Environment environment, Hooks hooks);

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelConfig(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ModelStatistics(grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelLoad(
      grpc::CallbackServerContext* context, const inference::RepositoryModelLoadRequest* request,
      inference::RepositoryModelLoadResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelUnload(
      grpc::CallbackServerContext* context, const inference::RepositoryModelUnloadRequest* request,
      inference::RepositoryModelUnloadResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override;

 private:
  std::string ModelName() const;

  const Inference::Environment environment_;
  const Hooks hooks_;
};

}  // namespace photon
