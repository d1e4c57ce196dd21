#include "server/kserve/tensor.h"

#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace photon {
namespace {

using Json = nlohmann::json;
using Elements = std::vector<Json>;
using Contents = inference::InferTensorContents;

static_assert(std::endian::native == std::endian::little);

// Both readers: false if there are not exactly `count` elements.
struct Datatype {
  bool (*read_contents)(const Contents& contents, int64_t count, Elements& elements);
  bool (*read_raw)(std::string_view raw, int64_t count, Elements& elements);
};

template <typename Field>
bool ReadField(const Field& field, int64_t count, Elements& elements) {
  if (field.size() != count) return false;
  elements.assign(field.begin(), field.end());
  return true;
}

template <typename Value>
bool ReadRaw(std::string_view raw, int64_t count, Elements& elements) {
  if (raw.size() != count * sizeof(Value)) return false;
  for (int64_t i = 0; i < count; ++i) {
    Value value;
    std::memcpy(&value, raw.data() + i * sizeof(Value), sizeof(Value));
    elements.emplace_back(value);
  }
  return true;
}

bool ReadRawBools(std::string_view raw, int64_t count, Elements& elements) {
  if (raw.size() != static_cast<size_t>(count)) return false;
  for (const char byte : raw) elements.emplace_back(byte != 0);
  return true;
}

bool ReadRawBytes(std::string_view raw, int64_t count, Elements& elements) {
  while (!raw.empty()) {
    uint32_t length = 0;
    if (raw.size() < sizeof(length)) return false;
    std::memcpy(&length, raw.data(), sizeof(length));
    raw.remove_prefix(sizeof(length));
    if (raw.size() < length || static_cast<int64_t>(elements.size()) == count) return false;
    elements.emplace_back(std::string(raw.substr(0, length)));
    raw.remove_prefix(length);
  }
  return static_cast<int64_t>(elements.size()) == count;
}

const Datatype* FindDatatype(const std::string& name) {
  constexpr auto kInts = [](const Contents& contents, int64_t count, Elements& elements) {
    return ReadField(contents.int_contents(), count, elements);
  };
  constexpr auto kUnsigned = [](const Contents& contents, int64_t count, Elements& elements) {
    return ReadField(contents.uint_contents(), count, elements);
  };
  static const std::map<std::string, Datatype> kDatatypes = {
      {"BOOL",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.bool_contents(), count, elements);
        },
        ReadRawBools}},
      {"INT8", {kInts, ReadRaw<int8_t>}},
      {"INT16", {kInts, ReadRaw<int16_t>}},
      {"INT32", {kInts, ReadRaw<int32_t>}},
      {"INT64",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.int64_contents(), count, elements);
        },
        ReadRaw<int64_t>}},
      {"UINT8", {kUnsigned, ReadRaw<uint8_t>}},
      {"UINT16", {kUnsigned, ReadRaw<uint16_t>}},
      {"UINT32", {kUnsigned, ReadRaw<uint32_t>}},
      {"UINT64",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.uint64_contents(), count, elements);
        },
        ReadRaw<uint64_t>}},
      {"FP32",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.fp32_contents(), count, elements);
        },
        ReadRaw<float>}},
      {"FP64",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.fp64_contents(), count, elements);
        },
        ReadRaw<double>}},
      {"BYTES",
       {[](const Contents& contents, int64_t count, Elements& elements) {
          return ReadField(contents.bytes_contents(), count, elements);
        },
        ReadRawBytes}},
  };
  const auto found = kDatatypes.find(name);
  return found == kDatatypes.end() ? nullptr : &found->second;
}

constexpr size_t kMaxNameBytes = 64;

template <typename... Parts>
absl::Status Problem(const std::string& name, const Parts&... parts) {
  return absl::InvalidArgumentError(
      absl::StrCat(name.empty() ? "inputs" : name.substr(0, kMaxNameBytes), ": ", parts...));
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) absl::StrAppend(&text, text.size() > 1 ? ", " : "", size);
  return text + "]";
}

// Nothing: a size is negative, or the product is above `most`.
std::optional<int64_t> CountElements(std::span<const int64_t> shape, int64_t most) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && count > most / size)) return std::nullopt;
    count *= size;
  }
  return count;
}

constexpr size_t kMaxDimensions = 8;

// `raw` is null where the request has no raw contents.
absl::StatusOr<InputTensor> ReadInput(const inference::ModelInferRequest::InferInputTensor& input,
                                      const std::string* raw, int64_t max_elements) {
  const std::string& name = input.name();
  if (input.parameters().contains("shared_memory_region")) {
    return Problem(name, "shared memory is not supported");
  }
  const Datatype* datatype = FindDatatype(input.datatype());
  if (datatype == nullptr) {
    return Problem(name,
                   "expected a datatype of BOOL, BYTES, FP32, FP64, or INT or UINT with 8 to ",
                   "64 bits, got \"", input.datatype().substr(0, kMaxNameBytes), "\"");
  }
  InputTensor tensor = {.name = name};
  if (input.shape_size() > static_cast<int>(kMaxDimensions)) {
    return Problem(name, "expected a shape of at most ", kMaxDimensions, " dimensions, got ",
                   input.shape_size());
  }
  tensor.shape.assign(input.shape().begin(), input.shape().end());
  const std::optional<int64_t> count = CountElements(tensor.shape, max_elements);
  if (!count.has_value()) {
    return Problem(name, "expected a shape of at most ", max_elements, " elements, got ",
                   ShapeText(tensor.shape));
  }
  const bool complete = raw != nullptr
                            ? datatype->read_raw(*raw, *count, tensor.elements)
                            : datatype->read_contents(input.contents(), *count, tensor.elements);
  if (!complete) {
    return Problem(name, "expected contents of ", *count, " elements of ", input.datatype(),
                   ", as its shape ", ShapeText(tensor.shape), " says");
  }
  return tensor;
}

void AddOutput(std::string_view name, const char* datatype, std::span<const int64_t> shape,
               std::string raw, inference::ModelInferResponse& response) {
  auto& output = *response.add_outputs();
  output.set_name(std::string(name));
  output.set_datatype(datatype);
  output.mutable_shape()->Add(shape.begin(), shape.end());
  *response.add_raw_output_contents() = std::move(raw);
}

template <typename Value>
std::string RawOf(std::span<const Value> elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size_bytes());
}

}  // namespace

absl::StatusOr<std::vector<InputTensor>> ReadInputs(const inference::ModelInferRequest& request,
                                                    int64_t max_elements) {
  const bool is_raw = request.raw_input_contents_size() > 0;
  if (is_raw && request.raw_input_contents_size() != request.inputs_size()) {
    return Problem("raw_input_contents", "expected none, or one for each of ",
                   request.inputs_size(), " inputs, got ", request.raw_input_contents_size());
  }
  std::vector<InputTensor> tensors;
  for (int i = 0; i < request.inputs_size(); ++i) {
    if (is_raw && request.inputs(i).has_contents()) {
      return Problem(request.inputs(i).name(), "expected contents or raw_input_contents, got both");
    }
    auto tensor = ReadInput(request.inputs(i), is_raw ? &request.raw_input_contents(i) : nullptr,
                            max_elements);
    if (!tensor.ok()) return tensor.status();
    tensors.push_back(*std::move(tensor));
  }
  return tensors;
}

void AddBytesOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const std::string> elements,
                    inference::ModelInferResponse& response) {
  std::string raw;
  for (const std::string& element : elements) {
    const auto length = static_cast<uint32_t>(element.size());
    raw.append(reinterpret_cast<const char*>(&length), sizeof(length));
    raw += element;
  }
  AddOutput(name, "BYTES", shape, std::move(raw), response);
}

void AddInt32Output(std::string_view name, std::span<const int64_t> shape,
                    std::span<const int32_t> elements, inference::ModelInferResponse& response) {
  AddOutput(name, "INT32", shape, RawOf(elements), response);
}

void AddFp32Output(std::string_view name, std::span<const int64_t> shape,
                   std::span<const float> elements, inference::ModelInferResponse& response) {
  AddOutput(name, "FP32", shape, RawOf(elements), response);
}

}  // namespace photon
