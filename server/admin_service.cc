#include "server/admin_service.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/status/status.h"
#include "server/auth/call_guard.h"
#include "server/request_id.h"
#include "server/unary_call.h"

namespace photon {

AdminService::AdminService(RequestRegistry* requests, Actions actions)
    : requests_(requests), actions_(std::move(actions)) {}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest*, v1::DrainResponse*) {
  const std::string id = TakeRequestId(context);
  spdlog::info("method=Drain id={} caller={}: draining", id, CallOf(*context).caller()->name());
  actions_.drain();
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* AdminService::AbortRequest(grpc::CallbackServerContext* context,
                                                     const v1::AbortRequestRequest* request,
                                                     v1::AbortRequestResponse* response) {
  if (request->request_id().empty()) {
    return FinishUnary(context, absl::InvalidArgumentError("request_id: is empty"));
  }
  // This call has no id of its own, or it might end itself.
  response->set_num_aborted(requests_->Cancel(request->request_id()));
  if (response->num_aborted() == 0) {
    return FinishUnary(context, absl::NotFoundError("request_id: no such request is in flight"));
  }
  spdlog::info("method=AbortRequest aborted={} number={} caller={}", request->request_id(),
               response->num_aborted(), CallOf(*context).caller()->name());
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerWriteReactor<v1::ReloadModelResponse>* AdminService::ReloadModel(
    grpc::CallbackServerContext* context, const v1::ReloadModelRequest* request) {
  const std::string id = TakeRequestId(context);
  spdlog::info("method=ReloadModel id={} caller={} directory={}", id,
               CallOf(*context).caller()->name(), request->directory());
  return ReloadCall::Start(request->directory(), actions_.reload);
}

grpc::ServerUnaryReactor* AdminService::GetStats(grpc::CallbackServerContext* context,
                                                 const v1::GetStatsRequest*,
                                                 v1::GetStatsResponse* response) {
  TakeRequestId(context);
  *response = actions_.stats();
  return FinishUnary(context, absl::OkStatus());
}

}  // namespace photon
