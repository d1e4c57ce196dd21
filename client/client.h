// Calls to a photon server from C++: blocking, one channel, safe to use from several threads.
//
// Errors carry the server's code and message. kUnavailable: no server answers at the address, or it
// is draining. kDeadlineExceeded: ClientOptions::deadline passed. kCancelled: `stop` was requested.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "photon/v1/document.grpc.pb.h"
#include "photon/v1/generation.grpc.pb.h"
#include "photon/v1/model.grpc.pb.h"

namespace photon {

// Texts in PEM.
struct ClientTls {
  std::string authorities;  // whose servers are trusted; empty: those of the system
  // What the client shows to servers that ask who it is. Both or neither.
  std::string certificate;
  std::string key;
};

struct ClientOptions {
  // host:port, or any target that gRPC knows ("unix:/run/photon.sock").
  std::string server = "127.0.0.1:50051";
  // Most time that one call may take. Empty: as long as it needs.
  std::optional<std::chrono::milliseconds> deadline;
  // Identifies the tenant: the bearer token of the metadata `authorization`. Empty: none.
  std::string api_key;
  // Absent: plaintext.
  std::optional<ClientTls> tls;
};

class Client {
 public:
  // Connects with the first call.
  explicit Client(const ClientOptions& options);

  // --- Streams: each message is handed to `on_response` as it arrives. A request to stop cancels
  // the call; messages that came before were handed over. ---

  // Of one sample; returns the result that its last message carries.
  absl::StatusOr<v1::GenerationResult> Generate(
      const v1::GenerateRequest& request,
      const std::function<void(const v1::GenerateResponse&)>& on_response,
      std::stop_token stop = {});

  // Of any number of samples.
  absl::Status GenerateSamples(const v1::GenerateRequest& request,
                               const std::function<void(const v1::GenerateResponse&)>& on_response,
                               std::stop_token stop = {});

  // OK says nothing of the prompts: each has results or an error of its own.
  absl::Status GenerateBatch(
      const v1::GenerateBatchRequest& request,
      const std::function<void(const v1::GenerateBatchResponse&)>& on_response,
      std::stop_token stop = {});

  // OK says nothing of the questions: each has results or an error of its own.
  absl::Status Ask(const v1::AskRequest& request,
                   const std::function<void(const v1::AskResponse&)>& on_response,
                   std::stop_token stop = {});

  // --- Documents ---

  // Sends `text`, which is UTF-8, in pieces.
  absl::StatusOr<v1::Document> CreateDocument(const v1::DocumentSettings& settings,
                                              std::string_view text, std::stop_token stop = {});
  absl::StatusOr<v1::Document> GetDocument(const std::string& id);
  absl::StatusOr<std::vector<v1::Document>> ListDocuments();
  absl::StatusOr<v1::Document> UpdateDocument(const std::string& id, std::chrono::seconds ttl);
  absl::Status DeleteDocument(const std::string& id);

  // --- The model ---

  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo();
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request);
  absl::StatusOr<v1::EstimateCostResponse> EstimateCost(const v1::EstimateCostRequest& request);

  // --- Health ---

  // The health of a service ("photon.v1.GenerationService"), or of the whole server with an empty
  // name.
  absl::StatusOr<grpc::health::v1::HealthCheckResponse::ServingStatus> CheckHealth(
      const std::string& service);

  // Returns once the service is SERVING, connecting as often as it takes. Under a deadline this is
  // how to wait for a server to start.
  absl::Status WaitUntilServing(const std::string& service, std::stop_token stop = {});

 private:
  // Gives a call its deadline and its key.
  void Prepare(grpc::ClientContext& context) const;

  const std::optional<std::chrono::milliseconds> deadline_;
  const std::string api_key_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::DocumentService::Stub> documents_;
  std::unique_ptr<v1::ModelService::Stub> model_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace photon
