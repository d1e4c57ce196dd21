// A read-only tensor: element type, shape and where the bytes are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace photon {

// Parameters are floating point; kI32 is for token ids in test files.
enum class DType : uint8_t { kF32, kBF16, kF16, kI32 };

// Bytes of an element: 4 or 2.
size_t DTypeBytes(DType dtype);
// The safetensors name: "F32", "BF16", "F16", "I32".
std::string_view DTypeName(DType dtype);

// Borrows its bytes; row-major, no padding, aligned to the element.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;

  bool empty() const { return data == nullptr; }
  int64_t num_elements() const;
};

// `count` elements of `dtype` at `from` as fp32. Exact, but for kI32 beyond 2^24.
void CopyToFloat(DType dtype, const std::byte* from, int64_t count, float* to);

// All elements as CopyToFloat gives them, row-major.
std::vector<float> ToFloat(const TensorView& tensor);

}  // namespace photon
