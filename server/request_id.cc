#include "server/request_id.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "server/auth/call_guard.h"

namespace photon {
namespace {

constexpr char kKey[] = "x-request-id";
constexpr size_t kMaxLength = 128;

}  // namespace

uint64_t RandomBits() {
  static thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

std::string RequestIdOr(std::optional<std::string_view> sent) {
  if (sent.has_value() && !sent->empty() && sent->size() <= kMaxLength) return std::string(*sent);
  return absl::StrCat(absl::Hex(RandomBits(), absl::kZeroPad16));
}

std::string TakeRequestId(grpc::CallbackServerContext* context) {
  std::optional<std::string_view> sent;
  const auto found = context->client_metadata().find(kKey);
  if (found != context->client_metadata().end()) {
    sent.emplace(found->second.data(), found->second.size());
  }
  std::string id = RequestIdOr(sent);
  CallOf(*context).SetRequestId(id);
  return id;
}

RequestName NameCall(grpc::CallbackServerContext* context, std::string_view service,
                     std::string_view method) {
  RequestName name = {.service = service, .method = method, .id = TakeRequestId(context)};
  const auto found = context->client_metadata().find("traceparent");
  if (found != context->client_metadata().end()) {
    name.trace = TraceContext::From(std::string_view(found->second.data(), found->second.size()));
  }
  return name;
}

void ReturnRequestId(grpc::CallbackServerContext* context, Answer answer) {
  const std::string& id = CallOf(*context).request_id();
  if (id.empty()) return;
  if (answer == Answer::kResponse) {
    context->AddInitialMetadata(kKey, id);
  } else {
    context->AddTrailingMetadata(kKey, id);
  }
}

}  // namespace photon
