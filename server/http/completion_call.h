// A completion on HTTP's wire: a GenerationCall answered as JSON or as server-sent events.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/auth/request_registry.h"
#include "server/generation_call.h"
#include "server/http/completion_response.h"
#include "server/http/http_message.h"
#include "server/request_log.h"

namespace photon {

class CompletionCall final : public HttpAnswer {
 public:
  struct Settings {
    bool stream = false;
    int64_t max_response_bytes = 0;
    RequestName name;
    std::unique_ptr<RequestRegistry::Entry> abortable;  // lets others abort the call
  };

  // Submits `call`, whose on_change is the waker of the request.
  CompletionCall(std::shared_ptr<GenerationCall> call, CompletionResponse response,
                 Settings settings);

  HttpPart Next() override;
  void OnClosed(bool complete) override;

 private:
  HttpPart NextEvents();
  HttpPart NextWhole();
  HttpPart Failure(const absl::Status& error);

  const std::shared_ptr<GenerationCall> call_;
  CompletionResponse response_;
  const Settings settings_;
  std::vector<SequenceIndex> in_flight_;  // whose messages the last part carries
  bool head_given_ = false;
  bool ended_ = false;
  absl::Status status_;
};

}  // namespace photon
