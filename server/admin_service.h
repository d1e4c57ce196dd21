// photon.v1.AdminService.
#pragma once

#include <functional>

#include "photon/v1/admin.grpc.pb.h"
#include "server/auth/request_registry.h"
#include "server/reload_call.h"

namespace photon {

class AdminService final : public v1::AdminService::CallbackService {
 public:
  struct Actions {
    std::function<void()> drain;
    ReloadCall::Reload reload;
    std::function<v1::GetStatsResponse()> stats;
  };

  // What is borrowed outlives the gRPC server. Actions come from any thread.
  AdminService(RequestRegistry* requests, Actions actions);

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* AbortRequest(grpc::CallbackServerContext* context,
                                         const v1::AbortRequestRequest* request,
                                         v1::AbortRequestResponse* response) override;
  grpc::ServerWriteReactor<v1::ReloadModelResponse>* ReloadModel(
      grpc::CallbackServerContext* context, const v1::ReloadModelRequest* request) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetStatsRequest* request,
                                     v1::GetStatsResponse* response) override;

 private:
  RequestRegistry* const requests_;
  const Actions actions_;
};

}  // namespace photon
