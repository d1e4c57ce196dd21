#include "engine/cuda/device_memory.h"

#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace photon::cuda {
namespace {

absl::string_view Absl(std::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace

absl::Status ToStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(Absl(what), ": ", cudaGetErrorString(error), " (",
                                          static_cast<int>(error), ")"));
}

std::string GibText(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
  return text;
}

void* DeviceAllocator::AllocateBytes(int64_t bytes, std::string_view what) {
  if (!status_.ok() || bytes == 0) return nullptr;
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
    cudaGetLastError();  // it is reported here, not by the next launch
    size_t free = 0, total = 0;
    if (error != cudaErrorMemoryAllocation || cudaMemGetInfo(&free, &total) != cudaSuccess) {
      status_ = ToStatus(error, what);
      return nullptr;
    }
    status_ = absl::ResourceExhaustedError(absl::StrCat(
        Absl(what), ": ", GibText(bytes), " needed, ", GibText(static_cast<int64_t>(free)),
        " free of ", GibText(static_cast<int64_t>(total)), ", ", GibText(bytes_taken_),
        " taken before"));
    return nullptr;
  }
  bytes_taken_ += bytes;
  status_.Update(ToStatus(cudaMemset(data, 0, bytes), what));
  return data;
}

void* DeviceAllocator::AllocateHostBytes(int64_t bytes, std::string_view what) {
  if (!status_.ok() || bytes == 0) return nullptr;
  void* data = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
      error != cudaSuccess) {
    cudaGetLastError();  // as above
    status_ = absl::ResourceExhaustedError(absl::StrCat(
        Absl(what), ": ", bytes, " bytes of page-locked host memory: ", cudaGetErrorString(error)));
    return nullptr;
  }
  std::memset(data, 0, bytes);
  return data;
}

}  // namespace photon::cuda
