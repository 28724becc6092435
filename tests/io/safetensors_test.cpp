// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "heirloom/core/error.h"
#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

std::string image(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), 8);
  return out + header + data;
}

/// The message of the FormatError that this image causes, or "" when it is accepted.
std::string problem(const std::string& bytes) {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  try {
    parse_safetensors(std::as_bytes(std::span(bytes)), "x.safetensors", tensors, metadata);
  } catch (const FormatError& e) {
    return e.what();
  }
  return "";
}

TensorToWrite floats(const std::string& name, std::vector<int64_t> shape,
                     std::vector<float> values) {
  return {name, "F32", std::move(shape), [values](const auto& out) {
            for (const float& v : values) out(&v, sizeof v);
          }};
}

TEST(Safetensors, RoundTrip) {
  const TemporaryDirectory dir;
  const std::string hash =
      write_safetensors(dir / "m",
                        {floats("b", {2, 2}, {1, 2, 3, 4}),
                         floats("scalar", {}, {5}),
                         floats("none", {0, 3}, {}),
                         {"a", "BF16", {3}, [](const auto& out) { out("abcdef", 6); }}},
                        {{"step", "7"}});
  const SafetensorsFile file(dir / "m");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"step", "7"}}));
  const StoredTensor& b = file.tensors().at("b");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(b.numel(), 4);
  float values[4];
  ASSERT_EQ(b.data.size(), sizeof values);
  std::memcpy(values, b.data.data(), sizeof values);
  EXPECT_EQ(values[3], 4.0f);
  EXPECT_EQ(file.tensors().at("scalar").numel(), 1);
  EXPECT_EQ(file.tensors().at("none").numel(), 0);
  EXPECT_EQ(file.tensors().at("a").data.size(), 6u);

  const std::string bytes = read_file(dir / "m");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ((8 + header) % 64, 0u);
  EXPECT_EQ(bytes[8], '{');
  ContentHash expected;
  expected.update(bytes.data(), bytes.size());
  EXPECT_EQ(hash, expected.hex());
}

TEST(Safetensors, WriterRefusesBadTensorsAndLeavesNothing) {
  const TemporaryDirectory dir;
  const auto write = [&](std::vector<TensorToWrite> tensors) {
    write_safetensors(dir / "m", tensors);
  };
  EXPECT_THROW(write({floats("a", {1}, {1}), floats("a", {1}, {1})}), ArgumentError);
  EXPECT_THROW(write({floats("__metadata__", {1}, {1})}), ArgumentError);
  EXPECT_THROW(write({floats("a", {2}, {1})}), ArgumentError);
  EXPECT_THROW(write({floats("a", {-1}, {1})}), ArgumentError);
  EXPECT_THROW(write({{"a", "F31", {1}, {}}}), ArgumentError);
  EXPECT_TRUE(dir.names().empty());
  if (fs::exists("/dev/full")) {
    EXPECT_THROW(write_safetensors("/dev/full", {floats("a", {1}, {1})}), WriteError);
  }
}

TEST(Safetensors, AcceptsEveryDtype) {
  for (const auto& [dtype, size] : std::map<std::string, int>{{"F64", 8},
                                                              {"F32", 4},
                                                              {"F16", 2},
                                                              {"BF16", 2},
                                                              {"I64", 8},
                                                              {"I32", 4},
                                                              {"I16", 2},
                                                              {"I8", 1},
                                                              {"U64", 8},
                                                              {"U32", 4},
                                                              {"U16", 2},
                                                              {"U8", 1},
                                                              {"BOOL", 1},
                                                              {"F8_E4M3", 1},
                                                              {"F8_E5M2", 1}}) {
    EXPECT_EQ(
        problem(image(fmt::format(R"({{"t":{{"dtype":"{}","shape":[3],"data_offsets":[0,{}]}}}})",
                                  dtype, 3 * size),
                      std::string(static_cast<size_t>(3 * size), 'x'))),
        "");
  }
}

TEST(Safetensors, HostileFilesAreRefused) {
  const std::string good =
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})";
  EXPECT_EQ(problem(image(good, "012345")), "");
  EXPECT_EQ(problem(image(good + "   ", "012345")), "");
  struct Case {
    const char* what;
    std::string bytes, expected;
  };
  const auto one = [](const std::string& entry, const std::string& data = "0123") {
    return image("{\"a\":" + entry + "}", data);
  };
  std::string huge_length = image(good, "012345");
  std::memset(huge_length.data(), 0xff, 8);
  const std::vector<Case> cases = {
      {"empty", "", "8 bytes"},
      {"short", "1234567", "8 bytes"},
      {"length past the end", image(good, "").substr(0, 40), "truncated"},
      {"length 2^64 - 1", huge_length, "truncated"},
      {"no header", image("", ""), "JSON"},
      {"an array", image("[]", ""), "object"},
      {"leading space", image(" {}", ""), "object"},
      {"trailing text", image("{}x", ""), "JSON"},
      {"invalid UTF-8", image("{\"\xff\":1}", ""), "UTF-8"},
      {"short data", image(good, "01234"), "offsets"},
      {"long data", image(good, "0123456"), "6 bytes of data"},
      {"duplicate name",
       image(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
           "0123"),
       "twice"},
      {"overlap",
       image(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
           "01234"),
       "overlap"},
      {"hole",
       image(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
           "01234"),
       "hole"},
      {"hole at the start", one(R"({"dtype":"U8","shape":[3],"data_offsets":[1,4]})"), "hole"},
      {"same bytes twice",
       image(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           "0123"),
       "overlap"},
      {"reversed offsets", one(R"({"dtype":"U8","shape":[4],"data_offsets":[4,0]})"), "offsets"},
      {"offset past the end", one(R"({"dtype":"U8","shape":[5],"data_offsets":[0,5]})"), "offsets"},
      {"negative offset", one(R"({"dtype":"U8","shape":[5],"data_offsets":[-1,4]})"),
       "whole number"},
      {"offset 2^64", one(R"({"dtype":"U8","shape":[5],"data_offsets":[0,18446744073709551616]})"),
       "whole number"},
      {"offset 2^63", one(R"({"dtype":"U8","shape":[5],"data_offsets":[0,9223372036854775808]})"),
       "whole number"},
      {"size differs", one(R"({"dtype":"U16","shape":[4],"data_offsets":[0,4]})"), "8 bytes"},
      {"overflowing shape",
       one(R"({"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]})"),
       "2^63"},
      {"overflow hidden by a zero",
       one(R"({"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]})", ""), "2^63"},
      {"fractional dimension", one(R"({"dtype":"U8","shape":[4.0],"data_offsets":[0,4]})"),
       "whole number"},
      {"negative dimension", one(R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})"),
       "whole number"},
      {"unknown dtype", one(R"({"dtype":"Q4","shape":[4],"data_offsets":[0,4]})"), "known dtype"},
      {"dtype a number", one(R"({"dtype":4,"shape":[4],"data_offsets":[0,4]})"), "known dtype"},
      {"missing field", one(R"({"dtype":"U8","data_offsets":[0,4]})"), "dtype, shape"},
      {"extra field", one(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1})"),
       "dtype, shape"},
      {"three offsets", one(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4,4]})"),
       "data_offsets"},
      {"entry a list", one("[]"), "dtype, shape"},
      {"metadata a list", image(R"({"__metadata__":[]})", ""), "__metadata__"},
      {"metadata of numbers", image(R"({"__metadata__":{"a":1}})", ""), "__metadata__"},
  };
  for (const Case& c : cases) {
    const std::string message = problem(c.bytes);
    EXPECT_NE(message.find(c.expected), std::string::npos) << c.what << ": " << message;
    EXPECT_NE(message.find("x.safetensors"), std::string::npos) << c.what << ": " << message;
  }
}

TEST(SafetensorsModel, OneFileOrShards) {
  const TemporaryDirectory dir;
  EXPECT_THROW(SafetensorsModel{dir.path()}, IoError);
  const auto index = [&](const std::string& map) {
    write_file_atomically(dir / "model.safetensors.index.json",
                          "{\"metadata\": {\"total_size\": 8}, \"weight_map\": " + map + "}");
  };
  const auto refused = [&](const std::string& part) {
    try {
      SafetensorsModel{dir.path()};
    } catch (const FormatError& e) {
      return std::string(e.what()).find(part) != std::string::npos;
    }
    return false;
  };
  write_safetensors(dir / "s1", {floats("a", {1}, {1})});
  write_safetensors(dir / "s2", {floats("b", {1}, {2})});
  index(R"({"a": "s1", "b": "s2"})");
  {
    SafetensorsModel model(dir.path());
    SafetensorsModel moved = std::move(model);
    float b = 0;
    std::memcpy(&b, moved.tensors().at("b").data.data(), 4);
    EXPECT_EQ(b, 2.0f);
    EXPECT_EQ(moved.tensors().size(), 2u);
  }
  index(R"({"a": "s1", "b": "s3"})");
  EXPECT_TRUE(refused("no such file"));
  index(R"({"a": "s1", "b": "s1"})");
  EXPECT_TRUE(refused("without it"));
  index(R"({"a": "s2", "b": "s2"})");
  EXPECT_TRUE(refused("without it"));
  index(R"({"a": "../s1"})");
  EXPECT_TRUE(refused("plain file name"));
  index(R"({"a": "s1", "b": 3})");
  EXPECT_TRUE(refused("plain file name"));
  index(R"(["a"])");
  EXPECT_TRUE(refused("weight_map"));
  write_safetensors(dir / "s2", {floats("a", {1}, {1}), floats("b", {1}, {2})});
  index(R"({"a": "s1", "b": "s2"})");
  EXPECT_TRUE(refused("only tensors that the index places"));
  write_safetensors(dir / "model.safetensors", {floats("c", {1}, {1})});
  EXPECT_TRUE(SafetensorsModel(dir.path()).tensors().contains("c"));
}

}  // namespace
}  // namespace heirloom
