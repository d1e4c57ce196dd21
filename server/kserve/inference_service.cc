#include "server/kserve/inference_service.h"

#include <chrono>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "server/kserve/inference_call.h"
#include "server/kserve/inference_request.h"
#include "server/kserve/inference_stream.h"
#include "server/unary_call.h"

namespace photon {
namespace {

constexpr char kPlatform[] = "photon";
constexpr char kBackend[] = "photon";

inference::ModelMetadataResponse MetadataOf(const std::string& model_name) {
  inference::ModelMetadataResponse response;
  response.set_name(model_name);
  response.add_versions(kModelVersion);
  response.set_platform(kPlatform);
  const auto add = [](const TensorTemplate& spec, auto& tensors) {
    auto& tensor = *tensors.Add();
    tensor.set_name(spec.name);
    tensor.set_datatype(spec.datatype);
    tensor.add_shape(-1);
    tensor.add_shape(spec.last_dimension);
  };
  for (const TensorTemplate& spec : InputTensors()) add(spec, *response.mutable_inputs());
  for (const TensorTemplate& spec : OutputTensors()) add(spec, *response.mutable_outputs());
  return response;
}

inference::DataType DataTypeOf(const std::string& datatype) {
  static const std::map<std::string, inference::DataType> kTypes = {
      {"BOOL", inference::TYPE_BOOL},
      {"BYTES", inference::TYPE_STRING},
      {"FP32", inference::TYPE_FP32},
      {"INT32", inference::TYPE_INT32},
      {"UINT64", inference::TYPE_UINT64}};
  return kTypes.at(datatype);
}

inference::ModelConfig ConfigOf(const std::string& model_name, int max_batch_size) {
  inference::ModelConfig config;
  config.set_name(model_name);
  config.set_platform(kPlatform);
  config.set_backend(kBackend);
  config.set_max_batch_size(max_batch_size);
  config.mutable_model_transaction_policy()->set_decoupled(true);
  bool required = true;
  for (const TensorTemplate& spec : InputTensors()) {
    inference::ModelInput& input = *config.add_input();
    input.set_name(spec.name);
    input.set_data_type(DataTypeOf(spec.datatype));
    input.add_dims(spec.last_dimension);
    input.set_optional(!std::exchange(required, false));
  }
  for (const TensorTemplate& spec : OutputTensors()) {
    inference::ModelOutput& output = *config.add_output();
    output.set_name(spec.name);
    output.set_data_type(DataTypeOf(spec.datatype));
    output.add_dims(spec.last_dimension);
  }
  return config;
}

inference::ModelStatistics StatisticsOf(const std::string& model_name,
                                        const SchedulerStats& stats) {
  inference::ModelStatistics statistics;
  statistics.set_name(model_name);
  statistics.set_version(kModelVersion);
  const int64_t ended = std::accumulate(stats.finished.begin(), stats.finished.end(), int64_t{0});
  const int64_t failed = stats.finished[static_cast<size_t>(SequenceEnd::kEngineFailed)];
  statistics.set_inference_count(ended);
  statistics.set_execution_count(stats.steps);
  inference::InferStatistics& counts = *statistics.mutable_inference_stats();
  counts.mutable_success()->set_count(ended - failed);
  counts.mutable_fail()->set_count(failed);
  counts.mutable_compute_infer()->set_count(stats.steps);
  counts.mutable_compute_infer()->set_ns(
      std::chrono::duration_cast<std::chrono::nanoseconds>(stats.step_time).count());
  return statistics;
}

}  // namespace

InferenceService::InferenceService(Inference::Environment environment, Hooks hooks)
    : environment_(environment), hooks_(std::move(hooks)) {}

std::string InferenceService::ModelName() const {
  return environment_.calls.models->current()->facts().name;
}

grpc::ServerUnaryReactor* InferenceService::ServerLive(grpc::CallbackServerContext* context,
                                                       const inference::ServerLiveRequest*,
                                                       inference::ServerLiveResponse* response) {
  TakeRequestId(context);
  response->set_live(hooks_.alive());
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ServerReady(grpc::CallbackServerContext* context,
                                                        const inference::ServerReadyRequest*,
                                                        inference::ServerReadyResponse* response) {
  TakeRequestId(context);
  response->set_ready(hooks_.ready());
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ServerMetadata(
    grpc::CallbackServerContext* context, const inference::ServerMetadataRequest*,
    inference::ServerMetadataResponse* response) {
  TakeRequestId(context);
  response->set_name("photon-server");
  response->set_version(PHOTON_VERSION);
  for (const char* extension :
       {"model_configuration", "model_repository", "statistics", "parameters", "schedule_policy"}) {
    response->add_extensions(extension);
  }
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ModelReady(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request_buffer,
                                                       grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<inference::ModelReadyRequest>(
      context, *request_buffer, *response_buffer,
      [&](const inference::ModelReadyRequest& request)
          -> absl::StatusOr<inference::ModelReadyResponse> {
        inference::ModelReadyResponse response;
        response.set_ready(CheckModel(request.name(), request.version(), ModelName()).ok() &&
                           hooks_.ready());
        return response;
      });
}

grpc::ServerUnaryReactor* InferenceService::ModelMetadata(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request_buffer,
                                                          grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<inference::ModelMetadataRequest>(
      context, *request_buffer, *response_buffer,
      [&](const inference::ModelMetadataRequest& request)
          -> absl::StatusOr<inference::ModelMetadataResponse> {
        const std::string name = ModelName();
        if (absl::Status status = CheckModel(request.name(), request.version(), name);
            !status.ok()) {
          return status;
        }
        return MetadataOf(name);
      });
}

grpc::ServerUnaryReactor* InferenceService::ModelConfig(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request_buffer,
                                                        grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<inference::ModelConfigRequest>(
      context, *request_buffer, *response_buffer,
      [&](const inference::ModelConfigRequest& request)
          -> absl::StatusOr<inference::ModelConfigResponse> {
        const std::string name = ModelName();
        if (absl::Status status = CheckModel(request.name(), request.version(), name);
            !status.ok()) {
          return status;
        }
        inference::ModelConfigResponse response;
        *response.mutable_config() = ConfigOf(name, environment_.limits.max_prompts);
        return response;
      });
}

grpc::ServerUnaryReactor* InferenceService::ModelStatistics(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer* request_buffer,
                                                            grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<inference::ModelStatisticsRequest>(
      context, *request_buffer, *response_buffer,
      [&](const inference::ModelStatisticsRequest& request)
          -> absl::StatusOr<inference::ModelStatisticsResponse> {
        const std::string name = ModelName();
        // No name: of all models.
        absl::Status status =
            CheckModel(request.name().empty() ? name : request.name(), request.version(), name);
        if (!status.ok()) return status;
        inference::ModelStatisticsResponse response;
        *response.add_model_stats() = StatisticsOf(name, hooks_.stats());
        return response;
      });
}

grpc::ServerUnaryReactor* InferenceService::RepositoryIndex(
    grpc::CallbackServerContext* context, const inference::RepositoryIndexRequest* request,
    inference::RepositoryIndexResponse* response) {
  TakeRequestId(context);
  const bool is_ready = hooks_.ready();
  if (is_ready || !request->ready()) {
    auto& model = *response->add_models();
    model.set_name(ModelName());
    model.set_version(kModelVersion);
    model.set_state(is_ready ? "READY" : "UNAVAILABLE");
  }
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelLoad(
    grpc::CallbackServerContext* context, const inference::RepositoryModelLoadRequest*,
    inference::RepositoryModelLoadResponse*) {
  TakeRequestId(context);
  return FinishUnary(context, absl::UnimplementedError(
                                  "models are not loaded by clients: the operator says what is "
                                  "served"));
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelUnload(
    grpc::CallbackServerContext* context, const inference::RepositoryModelUnloadRequest*,
    inference::RepositoryModelUnloadResponse*) {
  TakeRequestId(context);
  return FinishUnary(context, absl::UnimplementedError(
                                  "models are not unloaded by clients: the operator says what is "
                                  "served"));
}

grpc::ServerUnaryReactor* InferenceService::ModelInfer(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return InferenceCall::Start(context, environment_, *request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* InferenceService::ModelStreamInfer(
    grpc::CallbackServerContext* context) {
  return InferenceStream::Start(context, environment_);
}

}  // namespace photon
