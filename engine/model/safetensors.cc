#include "engine/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/model/problems.h"
#include "engine/model/strict_json.h"

namespace photon {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr char kMetadata[] = "__metadata__";
constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 8;

// A tensor costs about ten values; the largest config that ParseModelConfig accepts has 2 * 10^5.
constexpr JsonLimits kHeaderLimits = {
    .max_bytes = kMaxSafetensorsHeaderBytes, .max_values = 4'000'000, .max_depth = 3};
constexpr JsonLimits kIndexLimits = {
    .max_bytes = 64 << 20, .max_values = 1'000'000, .max_depth = 4};

absl::Status TensorError(const std::string& name, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), ": ", problem));
}

absl::Status WithContext(const std::string& context, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

std::optional<DType> DTypeFromName(std::string_view name) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI32}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

std::optional<int64_t> NonNegative(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(number);
}

// A tensor's place in the data, before it is checked against the others.
struct Extent {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

absl::StatusOr<Extent> ReadEntry(const std::string& name, const json& entry) {
  if (!entry.is_object()) return TensorError(name, "must be an object");
  for (const auto& member : entry.items()) {
    if (member.key() != "dtype" && member.key() != "shape" && member.key() != "data_offsets") {
      return TensorError(name, absl::StrCat("unknown field ", Quoted(member.key())));
    }
  }
  Extent extent;
  extent.name = name;

  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string())
    return TensorError(name, "dtype: must be a string");
  const std::string& dtype_name = dtype->get_ref<const std::string&>();
  const std::optional<DType> known = DTypeFromName(dtype_name);
  if (!known) {
    return TensorError(
        name, absl::StrCat("dtype: must be F32, BF16, F16 or I32, got ", Quoted(dtype_name)));
  }
  extent.dtype = *known;

  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMaxRank) {
    return TensorError(name, absl::StrCat("shape: must be a list of at most ", kMaxRank, " sizes"));
  }
  int64_t num_bytes = static_cast<int64_t>(DTypeBytes(extent.dtype));
  for (const json& element : *shape) {
    const std::optional<int64_t> size = NonNegative(element);
    if (!size) return TensorError(name, "shape: sizes must be whole numbers from 0 to 2^63 - 1");
    if (__builtin_mul_overflow(num_bytes, *size, &num_bytes)) {
      return TensorError(name, "shape: more bytes than 64 bits can count");
    }
    extent.shape.push_back(*size);
  }

  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2) {
    return TensorError(name, "data_offsets: must be [begin, end]");
  }
  const std::optional<int64_t> begin = NonNegative((*offsets)[0]);
  const std::optional<int64_t> end = NonNegative((*offsets)[1]);
  if (!begin || !end || *begin > *end) {
    return TensorError(name, "data_offsets: must be whole numbers, begin <= end");
  }
  if (*end - *begin != num_bytes) {
    return TensorError(name, absl::StrCat("data_offsets: ", *end - *begin,
                                          " bytes, but dtype and shape need ", num_bytes));
  }
  extent.begin = *begin;
  extent.end = *end;
  return extent;
}

// The extents must tile the data exactly, each aligned to its element in the file.
absl::Status CheckLayout(std::vector<Extent>& extents, uint64_t data_start, int64_t data_bytes) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  const Extent* previous = nullptr;
  for (const Extent& extent : extents) {
    const std::string range = absl::StrCat("bytes [", extent.begin, ", ", extent.end, ")");
    if (extent.end > data_bytes) {
      return TensorError(extent.name, absl::StrCat(range, " end beyond the file, which holds ",
                                                   data_bytes, " bytes of data"));
    }
    if (extent.begin < covered) {
      return TensorError(extent.name,
                         absl::StrCat(range, " overlap tensor ", Quoted(previous->name),
                                      ", which ends at ", covered));
    }
    if (extent.begin > covered) {
      return TensorError(extent.name, absl::StrCat(range, " leave a hole after byte ", covered));
    }
    if ((data_start + static_cast<uint64_t>(extent.begin)) % DTypeBytes(extent.dtype) != 0) {
      return TensorError(
          extent.name,
          absl::StrCat(range, " are not aligned to ", std::string(DTypeName(extent.dtype)),
                       ": the data starts at byte ", data_start, " of the file"));
    }
    covered = extent.end;
    previous = &extent;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensors cover ", covered, " bytes of data, but ", data_bytes, " follow the header"));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const json& metadata) {
  if (metadata.is_object()) {
    bool strings = true;
    for (const json& value : metadata) strings = strings && value.is_string();
    if (strings) return absl::OkStatus();
  }
  return absl::InvalidArgumentError("__metadata__: must map strings to strings");
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name.front() != '.' &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace

absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file of ", file.size(), " bytes has no room for the header's length"));
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header length: must be at most ", kMaxSafetensorsHeaderBytes, ", got ", header_bytes));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header length: ", header_bytes, " bytes do not fit a file of ", file.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                              header_bytes);
  if (text.empty() || text.front() != '{') {
    return absl::InvalidArgumentError("header: must start with {");
  }
  const absl::StatusOr<json> header = ParseStrictJson(text, kHeaderLimits);
  if (!header.ok()) return WithContext("header", header.status());

  std::vector<Extent> extents;
  for (const auto& member : header->items()) {
    if (member.key() == kMetadata) {
      if (absl::Status status = CheckMetadata(member.value()); !status.ok()) return status;
      continue;
    }
    absl::StatusOr<Extent> extent = ReadEntry(member.key(), member.value());
    if (!extent.ok()) return extent.status();
    extents.push_back(*std::move(extent));
  }
  const uint64_t data_start = kLengthBytes + header_bytes;
  const absl::Status layout =
      CheckLayout(extents, data_start, static_cast<int64_t>(file.size() - data_start));
  if (!layout.ok()) return layout;

  TensorMap tensors;
  for (Extent& extent : extents) {
    tensors[extent.name] = {.dtype = extent.dtype,
                            .shape = std::move(extent.shape),
                            .data = file.data() + data_start + extent.begin};
  }
  return tensors;
}

absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text) {
  const absl::StatusOr<json> index = ParseStrictJson(text, kIndexLimits);
  if (!index.ok()) return index.status();
  if (!index->is_object()) return absl::InvalidArgumentError("must be an object");
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError("weight_map: must be an object");
  }
  std::map<std::string, std::string> shards;
  for (const auto& member : weight_map->items()) {
    if (!member.value().is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map: ", Quoted(member.key()), " must name a file"));
    }
    const std::string& shard = member.value().get_ref<const std::string&>();
    if (!IsPlainFileName(shard)) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map: ", Quoted(member.key()),
                       " must name a file in the same directory, got ", Quoted(shard)));
    }
    shards[member.key()] = shard;
  }
  return shards;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<TensorMap> tensors = ParseSafetensors((*file)->bytes());
  if (!tensors.ok()) return WithContext(path, tensors.status());
  return std::unique_ptr<SafetensorsFile>(
      new SafetensorsFile(*std::move(file), *std::move(tensors)));
}

absl::StatusOr<std::unique_ptr<SafetensorsDirectory>> SafetensorsDirectory::Open(
    const std::string& directory) {
  const std::string single = absl::StrCat(directory, "/", kSingleFile);
  const std::string index_path = absl::StrCat(directory, "/", kIndexFile);
  std::error_code ignored;  // what exists but cannot be read fails below, with the system's words
  const bool has_single = std::filesystem::exists(single, ignored);
  const bool has_index = std::filesystem::exists(index_path, ignored);
  if (has_single && has_index) {
    return absl::InvalidArgumentError(absl::StrCat(directory, ": has both ", kSingleFile, " and ",
                                                   kIndexFile, "; remove the stale one"));
  }
  if (!has_single && !has_index) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": has neither ", kSingleFile, " nor ", kIndexFile));
  }
  std::unique_ptr<SafetensorsDirectory> opened(new SafetensorsDirectory);
  if (has_single) {
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(single);
    if (!file.ok()) return file.status();
    opened->tensors_ = (*file)->tensors();
    opened->files_.push_back(*std::move(file));
    return opened;
  }

  absl::StatusOr<std::string> text = ReadSmallFile(index_path, kIndexLimits.max_bytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<std::map<std::string, std::string>> index = ParseSafetensorsIndex(*text);
  if (!index.ok()) return WithContext(index_path, index.status());
  std::set<std::string> shards;
  for (const auto& [name, shard] : *index) shards.insert(shard);
  for (const std::string& shard : shards) {
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file =
        SafetensorsFile::Open(absl::StrCat(directory, "/", shard));
    if (!file.ok()) return WithContext(index_path, file.status());
    for (const auto& [name, view] : (*file)->tensors()) {
      const auto listed = index->find(name);
      if (listed == index->end() || listed->second != shard) {
        return WithContext(index_path,
                           TensorError(name, absl::StrCat("is in ", Quoted(shard), " but listed ",
                                                          listed == index->end()
                                                              ? std::string("nowhere")
                                                              : "in " + Quoted(listed->second))));
      }
      opened->tensors_[name] = view;
    }
    opened->files_.push_back(*std::move(file));
  }
  for (const auto& [name, shard] : *index) {
    if (!opened->tensors_.contains(name)) {
      return WithContext(index_path, TensorError(name, absl::StrCat("is not in ", Quoted(shard))));
    }
  }
  return opened;
}

int64_t SafetensorsDirectory::file_bytes() const {
  int64_t total = 0;
  for (const std::unique_ptr<SafetensorsFile>& file : files_) total += file->file_bytes();
  return total;
}

int64_t TensorHeader::num_bytes() const {
  int64_t bytes = static_cast<int64_t>(DTypeBytes(dtype));
  for (int64_t extent : shape) bytes *= extent;
  return bytes;
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<TensorHeader>& tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::set<std::string> names;
  int64_t data_bytes = 0;
  for (const TensorHeader& tensor : tensors) {
    if (tensor.name == kMetadata || !names.insert(tensor.name).second) {
      return TensorError(tensor.name, "duplicate or reserved name");
    }
    if (data_bytes % static_cast<int64_t>(DTypeBytes(tensor.dtype)) != 0) {
      return TensorError(tensor.name, "unaligned in this order; put 4-byte dtypes first");
    }
    const int64_t end = data_bytes + tensor.num_bytes();
    header.emplace(tensor.name, nlohmann::ordered_json{{"dtype", DTypeName(tensor.dtype)},
                                                       {"shape", tensor.shape},
                                                       {"data_offsets", {data_bytes, end}}});
    data_bytes = end;
  }
  std::string text = header.dump();
  while (text.size() % 8 != 0) text.push_back(' ');
  const uint64_t header_bytes = text.size();

  FilePtr file(std::fopen(path.c_str(), "wb"));
  if (file == nullptr) return absl::ErrnoToStatus(errno, path);
  if (std::fwrite(&header_bytes, kLengthBytes, 1, file.get()) != 1 ||
      std::fwrite(text.data(), text.size(), 1, file.get()) != 1) {
    return absl::ErrnoToStatus(errno, path);
  }
  return std::unique_ptr<SafetensorsWriter>(
      new SafetensorsWriter(path, std::move(file), data_bytes));
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  if (static_cast<int64_t>(bytes.size()) > bytes_left_) {
    return absl::OutOfRangeError(
        absl::StrCat(path_, ": ", bytes.size(), " bytes where ", bytes_left_, " are left"));
  }
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) {
    return absl::ErrnoToStatus(errno, path_);
  }
  bytes_left_ -= static_cast<int64_t>(bytes.size());
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (bytes_left_ != 0) {
    return absl::FailedPreconditionError(absl::StrCat(path_, ": ", bytes_left_, " bytes missing"));
  }
  if (std::fclose(file_.release()) != 0) return absl::ErrnoToStatus(errno, path_);
  return absl::OkStatus();
}

}  // namespace photon
