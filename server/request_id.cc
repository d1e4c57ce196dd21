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

std::string EchoRequestId(grpc::CallbackServerContext* context) {
  std::string id;
  const auto sent = context->client_metadata().find(kKey);
  if (sent != context->client_metadata().end()) {
    id.assign(sent->second.data(), sent->second.size());
  }
  if (id.empty() || id.size() > kMaxLength) {
    id = absl::StrCat(absl::Hex(RandomBits(), absl::kZeroPad16));
  }
  context->AddInitialMetadata(kKey, id);
  CallOf(*context).SetRequestId(id);
  return id;
}

}  // namespace photon
