// What the HTTP port answers: completions as OpenAI's API has them, the models, health, metrics,
// and a page for people. docs/http.md is its manual.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "scheduler/clock.h"
#include "server/auth/authenticator.h"
#include "server/auth/request_registry.h"
#include "server/generation_call.h"
#include "server/http/http_message.h"
#include "server/http/http_options.h"
#include "server/options.h"

namespace photon {

// Any thread.
class HttpService {
 public:
  // What is borrowed outlives the service.
  struct Environment {
    CallEnvironment calls;
    const Clock* clock = nullptr;
    RequestLimits limits;
    int64_t max_response_bytes = 0;
    // Whether the process is worth keeping.
    std::function<bool()> alive;
    // Whether requests are taken, as the gRPC health service has it.
    std::function<bool()> ready;
    // Of all that is served.
    std::function<SchedulerStats()> stats;
    // In Prometheus's text format; null: there is no /metrics.
    std::function<std::string()> metrics;
    Authenticator* authenticator = nullptr;
    RequestRegistry* requests = nullptr;
  };

  explicit HttpService(Environment environment);

  // An HttpHandler.
  std::shared_ptr<HttpAnswer> Handle(HttpRequest request, HttpWaker waker) const;

 private:
  // Answers that are there at once.
  HttpResponse ListModels() const;
  HttpResponse GetModel(std::string_view id) const;
  HttpResponse Alive() const;
  HttpResponse Ready() const;
  HttpResponse Stats() const;

  std::shared_ptr<HttpAnswer> Dispatch(HttpRequest request, const std::string& request_id,
                                       HttpWaker waker) const;
  std::shared_ptr<HttpAnswer> Complete(const HttpRequest& request,
                                       std::shared_ptr<const Caller> caller,
                                       const std::string& request_id, HttpWaker waker) const;

  const Environment environment_;
  const int64_t created_;  // seconds since the epoch
  const TimePoint started_;
};

}  // namespace photon
