// Any bytes as a safetensors file: refused, or tensors that tile the data behind the header.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy, as long as the input to the byte for the sanitizer's sake; new[] aligns it to 8 and
  // more.
  std::vector<std::byte> file(size);
  if (size > 0) std::memcpy(file.data(), data, size);
  const absl::StatusOr<photon::TensorMap> tensors = photon::ParseSafetensors(file);
  if (!tensors.ok()) return 0;

  uint64_t header_bytes;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  size_t covered = 8 + header_bytes;
  for (const auto& [name, tensor] : *tensors) {
    const size_t bytes = static_cast<size_t>(tensor.num_elements()) * DTypeBytes(tensor.dtype);
    if (tensor.data < file.data() + 8 + header_bytes) std::abort();
    if (tensor.data + bytes > file.data() + size) std::abort();
    if (reinterpret_cast<uintptr_t>(tensor.data) % DTypeBytes(tensor.dtype) != 0) std::abort();
    if (photon::FindNonFinite(tensor) >= tensor.num_elements()) std::abort();
    if (photon::ToFloat(tensor).size() != static_cast<size_t>(tensor.num_elements())) std::abort();
    covered += bytes;
  }
  if (covered != size) std::abort();
  return 0;
}
