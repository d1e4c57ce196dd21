#include "engine/model/tensor.h"

#include <cstring>

#include "engine/model/float_bits.h"

namespace photon {
namespace {

template <typename Stored, typename Convert>
void ConvertAll(const std::byte* from, int64_t count, Convert convert, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
    to[i] = convert(stored);
  }
}

}  // namespace

size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
  }
  return 0;
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI32:
      return "I32";
  }
  return "";
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

void CopyToFloat(DType dtype, const std::byte* from, int64_t count, float* to) {
  switch (dtype) {
    case DType::kF32:
      ConvertAll<float>(from, count, [](float value) { return value; }, to);
      break;
    case DType::kBF16:
      ConvertAll<uint16_t>(from, count, BF16ToFloat, to);
      break;
    case DType::kF16:
      ConvertAll<uint16_t>(from, count, F16ToFloat, to);
      break;
    case DType::kI32:
      ConvertAll<int32_t>(from, count, [](int32_t value) { return static_cast<float>(value); }, to);
      break;
  }
}

std::vector<float> ToFloat(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  CopyToFloat(tensor.dtype, tensor.data, tensor.num_elements(), values.data());
  return values;
}

}  // namespace photon
