// Any bytes as the body of a completion request: refused with a message that is UTF-8 and short, or
// a request whose queries are, or whose error names a field.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "server/http/api_error.h"
#include "server/http/completion_request.h"
#include "server/http/completion_response.h"
#include "tests/server/test_model.h"

namespace {

void CheckError(const absl::Status& error) {
  const std::string json = photon::ApiErrorJson(error);
  if (json.size() > 8192 || !nlohmann::json::accept(json)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const photon::ModelFacts model = photon::TestModel();
  photon::RequestLimits limits;
  limits.max_samples = limits.max_prompts = limits.max_sequences = 64;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  auto request = photon::ParseCompletionRequest(body, model.name, limits);
  if (!request.ok()) {
    CheckError(request.status());
    return 0;
  }
  if (request->n < 1 || request->generation.parameters().n() < request->n) std::abort();
  const auto queries = photon::CompletionQueries(*request, model, limits, 1);
  if (!queries.ok()) {
    CheckError(queries.status());
    return 0;
  }
  size_t sequences = 0;
  for (const auto& query : *queries) sequences += query->n;
  if (sequences < 1 || sequences > 64) std::abort();
  photon::CompletionResponse response(*std::move(request), photon::Borrowed(&model), "cmpl-1");
  if (!nlohmann::json::accept(response.Body())) std::abort();
  return 0;
}
