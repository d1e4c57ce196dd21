// An inference in flight: a GenerationCall whose messages become responses of the Open Inference
// Protocol.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/auth/authenticator.h"
#include "server/auth/request_registry.h"
#include "server/generation_call.h"
#include "server/kserve/inference_response.h"
#include "server/options.h"
#include "server/request_log.h"
#include "server/served_model.h"

namespace photon {

class Inference {
 public:
  // What inferences share; outlives them.
  struct Environment {
    CallEnvironment calls;
    RequestLimits limits;
    int64_t max_response_bytes = 0;  // of a response that comes whole
    RequestRegistry* requests = nullptr;
  };

  struct Settings {
    RequestName name;  // with the call's id, which is the inference's unless the request has one
    bool may_stream = false;
    TimePoint deadline = TimePoint::max();
    std::shared_ptr<const Caller> caller;
    std::function<void()> on_change;  // as GenerationCall's
  };

  // What is to be written next: a response, the end, both, or neither: nothing yet.
  struct Reading {
    std::optional<inference::ModelInferResponse> response;
    std::optional<absl::Status> end;
  };

  // Checks the request and says so in the log if it is refused. Nothing runs before Submit.
  static absl::StatusOr<std::unique_ptr<Inference>> Create(
      const Environment& environment, const inference::ModelInferRequest& request,
      Settings settings);

  // Ends what still runs, and writes the request's line in the log.
  ~Inference();
  Inference(const Inference&) = delete;
  Inference& operator=(const Inference&) = delete;

  // Calls on_change before it returns.
  void Submit() {
    call_->Submit();
    model_.End();
  }

  // One reader at a time; never calls on_change. With an error there may be responses before it.
  Reading Next();

  // The response that Next() gave last has been written.
  void Written();

  // Ends the inference with `why`, unless Next() has given its end.
  void Leave(const absl::Status& why) { call_->Leave(why); }

  // The frame of a response that says what went wrong.
  inference::ModelInferResponse Frame() const { return response_.Frame(); }

 private:
  Inference(const Environment& environment, ModelLease model, InferenceRequest request,
            std::vector<absl::StatusOr<Query>> queries, Settings settings);

  Reading NextPiece();
  Reading NextWhole();

  ModelLease model_;  // ends with Submit; the model stays
  const int64_t max_response_bytes_;
  const RequestName name_;
  InferenceResponse response_;
  std::shared_ptr<GenerationCall> call_;
  std::unique_ptr<RequestRegistry::Entry> abortable_;
  std::optional<SequenceIndex> in_flight_;  // whose piece is being written
  absl::Status status_;
};

}  // namespace photon
