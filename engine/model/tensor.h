// A read-only tensor: element type, shape and where the bytes are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace photon {

enum class DType : uint8_t { kF32, kBF16, kF16 };

// 4 for kF32, else 2.
size_t DTypeBytes(DType dtype);
// The safetensors name: "F32", "BF16", "F16".
std::string_view DTypeName(DType dtype);

// Borrows its bytes; row-major, no padding, aligned to the element.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;

  bool empty() const { return data == nullptr; }
  int64_t num_elements() const;
};

// Appends nothing, allocates once: all elements as fp32, row-major. Exact for every DType.
std::vector<float> ToFloat(const TensorView& tensor);

}  // namespace photon
