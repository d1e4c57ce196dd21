#include "engine/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/engine/model/model_fixtures.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file image on an 8-byte boundary, its header padded with spaces so that the data is aligned.
class Image {
 public:
  Image(std::string header, size_t data_bytes, bool pad = true) {
    while (pad && header.size() % 8 != 0) header.push_back(' ');
    Fill(header.size(), header + std::string(data_bytes, '\x01'));
  }
  // As it is, but with any header length.
  Image(uint64_t header_bytes, const std::string& rest) { Fill(header_bytes, rest); }

  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(words_)).first(size_); }
  std::string text() const { return {reinterpret_cast<const char*>(words_.data()), size_}; }

 private:
  void Fill(uint64_t header_bytes, const std::string& rest) {
    size_ = 8 + rest.size();
    words_.resize(size_ / 8 + 1);
    words_[0] = header_bytes;
    std::memcpy(words_.data() + 1, rest.data(), rest.size());
  }

  std::vector<uint64_t> words_;
  size_t size_ = 0;
};

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

std::string Header(const std::vector<std::string>& entries) {
  return absl::StrCat("{", absl::StrJoin(entries, ","), "}");
}

// The message that refuses an image; empty if it is accepted.
std::string Refusal(const Image& image) {
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(image.bytes());
  if (tensors.ok()) return "";
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tensors.status().message());
}

TEST(Safetensors, TensorsAreViewsIntoTheFile) {
  const Image image(
      Header({"\"__metadata__\":{\"format\":\"pt\"}", Entry("b", "BF16", "[2,3]", "[8,20]"),
              Entry("a", "F32", "[2]", "[0,8]"), Entry("empty", "F16", "[0,5]", "[8,8]"),
              Entry("scalar", "I32", "[]", "[20,24]")}),
      24);
  const absl::StatusOr<TensorMap> tensors = ParseSafetensors(image.bytes());
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 4u);
  const TensorView& b = tensors->at("b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.data, image.bytes().data() + image.bytes().size() - 16);
  EXPECT_EQ(tensors->at("empty").num_elements(), 0);
  EXPECT_EQ(tensors->at("scalar").num_elements(), 1);
}

TEST(Safetensors, AFileMayHoldNothing) {
  EXPECT_EQ(Refusal(Image("{}", 0)), "");
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole =
      Image(Header({Entry("a", "F32", "[2]", "[0,8]"), Entry("b", "F16", "[2]", "[8,12]")}), 12)
          .text();
  uint64_t header_bytes;
  std::memcpy(&header_bytes, whole.data(), 8);
  for (size_t size = 8; size < whole.size(); ++size) {
    EXPECT_NE(Refusal(Image(header_bytes, whole.substr(8, size - 8))), "") << size;
  }
  const std::vector<uint64_t> aligned(1);
  for (size_t size = 0; size < 8; ++size) {
    EXPECT_FALSE(ParseSafetensors(std::as_bytes(std::span(aligned)).first(size)).ok()) << size;
  }
}

TEST(Safetensors, HostileHeaderLengthsAreRefused) {
  EXPECT_THAT(Refusal(Image(0, "")), HasSubstr("header: must start with {"));
  EXPECT_THAT(Refusal(Image(3, "{}")), HasSubstr("header length: 3 bytes do not fit a file of 10"));
  EXPECT_THAT(Refusal(Image(100'000'001, "{}")),
              HasSubstr("header length: must be at most 100000000, got 100000001"));
  EXPECT_THAT(Refusal(Image(UINT64_MAX, "{}")), HasSubstr("got 18446744073709551615"));
  EXPECT_THAT(Refusal(Image(UINT64_MAX - 7, "{}")), HasSubstr("header length"));
}

struct Malformed {
  const char* header;
  size_t data_bytes;
  const char* message;
};

class SafetensorsRules : public ::testing::TestWithParam<Malformed> {};

TEST_P(SafetensorsRules, NameTheTensorAndTheProblem) {
  EXPECT_THAT(Refusal(Image(GetParam().header, GetParam().data_bytes)),
              HasSubstr(GetParam().message));
}

constexpr Malformed kMalformed[] = {
    {"[]", 0, "header: must start with {"},
    {" {}", 0, "header: must start with {"},
    {"{\"a\":", 0, "header: not valid JSON"},
    {"{} trailing", 0, "header: not valid JSON"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[[1]]],\"data_offsets\":[0,4]}}", 4,
     "header: nested deeper than 3"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     8, "header: duplicate key \"a\""},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "header: duplicate key \"dtype\""},
    {"{\"__metadata__\":{\"n\":1}}", 0, "__metadata__: must map strings to strings"},
    {"{\"__metadata__\":[]}", 0, "__metadata__: must map strings to strings"},
    {"{\"a\":7}", 0, "tensor \"a\": must be an object"},
    {"{\"a\\u0001\":7}", 0, "tensor \"a\\x01\": must be an object"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
     "tensor \"a\": unknown field \"x\""},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor \"a\": dtype: must be a string"},
    {"{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": dtype: must be a string"},
    {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "tensor \"a\": dtype: must be F32, BF16, F16 or I32, got \"F8_E4M3\""},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": shape: must be a list"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": shape: must be a list of at most 8 sizes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": shape: sizes must be whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": shape: sizes must be whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,4]}}", 4,
     "tensor \"a\": shape: sizes must be whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "tensor \"a\": shape: more bytes than 64 bits can count"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
     "tensor \"a\": shape: more bytes than 64 bits can count"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
     "tensor \"a\": data_offsets: must be [begin, end]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
     "tensor \"a\": data_offsets: must be [begin, end]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
     "tensor \"a\": data_offsets: must be whole numbers, begin <= end"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
     "tensor \"a\": data_offsets: must be whole numbers, begin <= end"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551616]}}", 4,
     "tensor \"a\": data_offsets: must be whole numbers, begin <= end"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
     "tensor \"a\": data_offsets: 8 bytes, but dtype and shape need 12"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
     "tensor \"a\": bytes [0, 8) end beyond the file, which holds 4 bytes of data"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":"
     "[9223372036854775800,9223372036854775804]}}",
     4, "tensor \"a\": bytes [9223372036854775800, 9223372036854775804) end beyond the file"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
     12, "tensor \"b\": bytes [4, 12) overlap tensor \"a\", which ends at 8"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
     12, "tensor \"b\": bytes [8, 12) leave a hole after byte 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
     "tensor \"a\": bytes [4, 8) leave a hole after byte 0"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 6,
     "tensors cover 4 bytes of data, but 6 follow the header"},
    {"{\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
     6, "tensor \"b\": bytes [2, 6) are not aligned to F32"},
};

INSTANTIATE_TEST_SUITE_P(Table, SafetensorsRules, ::testing::ValuesIn(kMalformed));

TEST(Safetensors, DataThatStartsAtAnOddByteIsRefused) {
  const std::string header = Header({Entry("a", "F32", "[1]", "[0,4]")});
  const std::string odd = header + std::string(9 - header.size() % 8, ' ');
  EXPECT_THAT(Refusal(Image(odd, 4, /*pad=*/false)),
              HasSubstr("tensor \"a\": bytes [0, 4) are not aligned to F32: the data starts at"));
}

TEST(Safetensors, AHeaderOfMillionsOfValuesIsRefused) {
  std::string header = "{\"a\":[0";
  for (int i = 0; i < 4'000'000; ++i) header += ",0";
  EXPECT_THAT(Refusal(Image(header + "]}", 0)), HasSubstr("header: more than 4000000 values"));
}

TEST(SafetensorsFile, SystemErrorsNameThePath) {
  const TempDir dir;
  const auto missing = SafetensorsFile::Open(dir.File("none"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(dir.File("none")));

  EXPECT_THAT(std::string(SafetensorsFile::Open(dir.path()).status().message()),
              HasSubstr("not a regular file"));

  WriteFile(dir.File("empty"), "");
  EXPECT_THAT(std::string(SafetensorsFile::Open(dir.File("empty")).status().message()),
              HasSubstr(dir.File("empty") + ": a file of 0 bytes"));
}

TEST(SafetensorsWriter, WhatItWritesIsRead) {
  const TempDir dir;
  const float first[] = {1.0f, -2.0f, 3.5f};
  const uint16_t second[] = {0x3f80, 0x4000};
  auto writer = SafetensorsWriter::Create(
      dir.File("x"), {{"first", DType::kF32, {3, 1}}, {"second", DType::kBF16, {2}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const auto bytes = std::as_bytes(std::span(first));
  ASSERT_TRUE((*writer)->Append(bytes.first(5)).ok());
  ASSERT_TRUE((*writer)->Append(bytes.subspan(5)).ok());
  ASSERT_TRUE((*writer)->Append(std::as_bytes(std::span(second))).ok());
  ASSERT_TRUE((*writer)->Finish().ok());

  const auto file = SafetensorsFile::Open(dir.File("x"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->tensors().at("first").shape, ElementsAre(3, 1));
  EXPECT_THAT(ToFloat((*file)->tensors().at("first")), ElementsAre(1.0f, -2.0f, 3.5f));
  EXPECT_THAT(ToFloat((*file)->tensors().at("second")), ElementsAre(1.0f, 2.0f));
  EXPECT_EQ((*file)->file_bytes(), static_cast<int64_t>(ReadFile(dir.File("x")).size()));
}

TEST(SafetensorsWriter, RefusesWhatItCannotWrite) {
  const TempDir dir;
  const std::string path = dir.File("x");
  EXPECT_FALSE(
      SafetensorsWriter::Create(path, {{"a", DType::kF32, {1}}, {"a", DType::kF32, {1}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"__metadata__", DType::kF32, {1}}}).ok());
  EXPECT_THAT(std::string(SafetensorsWriter::Create(
                              path, {{"a", DType::kF16, {1}}, {"b", DType::kF32, {1}}})
                              .status()
                              .message()),
              HasSubstr("tensor \"b\": unaligned in this order"));
  EXPECT_EQ(SafetensorsWriter::Create(dir.File("no/such"), {}).status().code(),
            absl::StatusCode::kNotFound);

  auto writer = SafetensorsWriter::Create(path, {{"a", DType::kF32, {1}}});
  ASSERT_TRUE(writer.ok());
  const std::byte bytes[5] = {};
  EXPECT_EQ((*writer)->Append(bytes).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->Finish().code(), absl::StatusCode::kFailedPrecondition);
}

// A directory of shards: file name -> tensors of one fp32 element each.
class Shards {
 public:
  void Write(const std::string& file, const std::vector<std::string>& names) {
    std::vector<TensorHeader> headers;
    for (const std::string& name : names) headers.push_back({name, DType::kF32, {1}});
    auto writer = SafetensorsWriter::Create(dir_.File(file), headers);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (size_t i = 0; i < names.size(); ++i) {
      const float value = static_cast<float>(i);
      ASSERT_TRUE((*writer)->Append(std::as_bytes(std::span(&value, 1))).ok());
    }
    ASSERT_TRUE((*writer)->Finish().ok());
  }

  void WriteIndex(const std::string& text) {
    WriteFile(dir_.File("model.safetensors.index.json"), text);
  }

  absl::StatusOr<std::unique_ptr<SafetensorsDirectory>> Open() const {
    return SafetensorsDirectory::Open(dir_.path());
  }
  std::string Refusal() const { return std::string(Open().status().message()); }

 private:
  TempDir dir_;
};

TEST(SafetensorsDirectory, ReadsOneFile) {
  Shards shards;
  shards.Write("model.safetensors", {"a", "b"});
  const auto opened = shards.Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), 2u);
}

TEST(SafetensorsDirectory, ReadsShards) {
  Shards shards;
  shards.Write("one.safetensors", {"a", "c"});
  shards.Write("two.safetensors", {"b"});
  shards.WriteIndex(R"({"metadata": {"total_size": 12}, "weight_map":
      {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}})");
  const auto opened = shards.Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), 3u);
  EXPECT_THAT(ToFloat((*opened)->tensors().at("c")), ElementsAre(1.0f));
}

TEST(SafetensorsDirectory, IndexAndShardsMustAgree) {
  Shards shards;
  EXPECT_EQ(shards.Open().status().code(), absl::StatusCode::kNotFound);
  shards.Write("one.safetensors", {"a"});
  shards.Write("two.safetensors", {"b"});

  shards.WriteIndex(R"({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}})");
  EXPECT_THAT(shards.Refusal(), HasSubstr("tensor \"b\": is not in \"one.safetensors\""));

  shards.WriteIndex(R"({"weight_map": {"a": "two.safetensors"}})");
  EXPECT_THAT(shards.Refusal(),
              HasSubstr("tensor \"b\": is in \"two.safetensors\" but listed nowhere"));

  shards.WriteIndex(R"({"weight_map": {"a": "one.safetensors", "b": "three.safetensors"}})");
  EXPECT_EQ(shards.Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(shards.Refusal(), HasSubstr("three.safetensors"));

  shards.Write("two.safetensors", {"b", "a"});
  shards.WriteIndex(R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  EXPECT_THAT(shards.Refusal(), HasSubstr("tensor \"a\": is in \"two.safetensors\" but listed in "
                                          "\"one.safetensors\""));

  shards.Write("model.safetensors", {"a", "b"});
  EXPECT_THAT(shards.Refusal(), HasSubstr("has both model.safetensors and"));
}

TEST(SafetensorsIndex, ShardsArePlainFileNames) {
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b"}) {
    const nlohmann::json index = {{"weight_map", {{"a", name}}}};
    EXPECT_THAT(std::string(ParseSafetensorsIndex(index.dump()).status().message()),
                HasSubstr("weight_map: \"a\" must name a file in the same directory, got "))
        << name;
  }
  EXPECT_FALSE(ParseSafetensorsIndex(R"({"weight_map": {"a": "x\u0000y"}})").ok());
  EXPECT_TRUE(
      ParseSafetensorsIndex(R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})").ok());
}

TEST(SafetensorsIndex, MalformedOnesAreRefused) {
  for (const char* text :
       {"", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "x", "a": "y"}})", R"({"weight_map": {"a": "x"})"}) {
    EXPECT_FALSE(ParseSafetensorsIndex(text).ok()) << text;
  }
}

}  // namespace
}  // namespace photon
