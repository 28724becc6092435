// SPDX-License-Identifier: Apache-2.0
#include "heirloom/core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "heirloom/core/log.h"
#include "heirloom/core/rng.h"

namespace heirloom {
namespace {

struct Owner {
  int released = 0;
  float data[12] = {};
  Buffer buffer;
  Owner() {
    for (int i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
    buffer.data = data;
    buffer.bytes = sizeof(data);
    buffer.owner = this;
    buffer.release = [](Buffer*, void* owner) { ++static_cast<Owner*>(owner)->released; };
  }
};

TEST(Shape, CountsAndText) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.rank(), 3);
  EXPECT_EQ(s.numel(), 24);
  EXPECT_EQ(s.rows(), 6);
  EXPECT_EQ(s.cols(), 4);
  EXPECT_EQ(s.str(), "(2, 3, 4)");
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ(Shape{5}.rows(), 1);
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_THROW((Shape{-1}), ArgumentError);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), ArgumentError);
}

TEST(Tensor, ViewsCountReferences) {
  Owner owner;
  {
    Tensor t(&owner.buffer, 0, {3, 4}, Dtype::kFloat32);
    EXPECT_TRUE(t.unique());
    {
      const Tensor copy = t, rows = t.rows(1, 3);
      EXPECT_FALSE(t.unique());
      EXPECT_EQ(owner.buffer.references, 3);
      EXPECT_EQ(rows.as<float>()[0], 4.0f);
    }
    EXPECT_TRUE(t.unique());
    Tensor moved = std::move(t);
    EXPECT_FALSE(t.defined());  // NOLINT: what a move leaves behind
    EXPECT_EQ(owner.buffer.references, 1);
    Tensor other;
    other = moved;
    EXPECT_EQ(owner.buffer.references, 2);
    other = other.rows(0, 1);  // assigned from a view on itself
    EXPECT_EQ(owner.buffer.references, 2);
    moved = Tensor();
    EXPECT_EQ(owner.released, 0);
    EXPECT_EQ(other.as<float>()[3], 3.0f);
  }
  EXPECT_EQ(owner.released, 1);
  EXPECT_EQ(owner.buffer.references, 0);
}

TEST(Tensor, StridedViews) {
  Owner owner;
  const Tensor t(&owner.buffer, 0, {3, 4}, Dtype::kFloat32);
  const Tensor middle = t.columns(1, 3);
  EXPECT_EQ(middle.shape(), (Shape{3, 2}));
  EXPECT_EQ(middle.row_stride(), 4);
  EXPECT_FALSE(middle.contiguous());
  EXPECT_EQ(middle.as<float>()[0], 1.0f);
  const Tensor corner = middle.rows(2, 3).columns(1, 2);
  EXPECT_EQ(corner.as<float>()[0], 10.0f);
  EXPECT_EQ(corner.row_stride(), 4);
  EXPECT_THROW(middle.reshape({6}), ArgumentError);
  EXPECT_EQ(t.reshape({2, 6}).rows(1, 2).as<float>()[0], 6.0f);
  EXPECT_THROW(t.reshape({5}), ArgumentError);
  EXPECT_THROW(t.rows(2, 4), ArgumentError);
  EXPECT_THROW(t.rows(2, 1), ArgumentError);
  EXPECT_THROW(t.rows(-1, 1), ArgumentError);
  EXPECT_THROW(t.columns(0, 5), ArgumentError);
  EXPECT_THROW(t.as<double>(), ArgumentError);
}

TEST(Tensor, MemoryOfOthersIsNotCounted) {
  double data[2] = {1, 2};
  const Tensor t(data, {2}, Dtype::kFloat64);
  EXPECT_FALSE(t.unique()) << "nothing may be written in place into memory of others";
  EXPECT_EQ(t.buffer(), nullptr);
  EXPECT_EQ(t.reshape({1, 2}).columns(1, 2).as<double>()[0], 2.0);
  const Tensor meta(nullptr, {4, 4}, Dtype::kFloat32, {DeviceKind::kMeta, 0});
  EXPECT_EQ(meta.rows(2, 3).data(), nullptr);
  EXPECT_FALSE(Tensor().defined());
}

float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(BFloat16, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    bfloat16 value{};
    value.bits = static_cast<uint16_t>(bits);
    const float wide = static_cast<float>(value);
    const uint16_t back = bfloat16(wide).bits;
    if (std::isnan(wide)) {
      EXPECT_EQ(back, bits | 0x40u) << "NaN keeps sign and payload, quiet";
    } else {
      EXPECT_EQ(back, bits);
    }
  }
}

TEST(BFloat16, RoundsToNearestTiesToEven) {
  EXPECT_EQ(bfloat16(as_float(0x3f808000)).bits, 0x3f80);  // tie, even below
  EXPECT_EQ(bfloat16(as_float(0x3f818000)).bits, 0x3f82);  // tie, even above
  EXPECT_EQ(bfloat16(as_float(0x3f808001)).bits, 0x3f81);
  EXPECT_EQ(bfloat16(as_float(0x3f807fff)).bits, 0x3f80);
  EXPECT_EQ(bfloat16(as_float(0xbf808001)).bits, 0xbf81);
  EXPECT_EQ(bfloat16(as_float(0x3fffffff)).bits, 0x4000);  // carries into the exponent
  EXPECT_EQ(bfloat16(as_float(0x7f7fffff)).bits, 0x7f80);  // the largest float is infinite here
  EXPECT_EQ(bfloat16(as_float(0x7f7f7fff)).bits, 0x7f7f);
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_EQ(bfloat16(-std::numeric_limits<float>::infinity()).bits, 0xff80);
  EXPECT_EQ(bfloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(bfloat16(as_float(0x00000001)).bits, 0x0000);  // denormals round like the rest
  EXPECT_EQ(bfloat16(as_float(0x00008001)).bits, 0x0001);
  EXPECT_EQ(bfloat16(as_float(0x00018000)).bits, 0x0002);
  EXPECT_EQ(bfloat16(as_float(0x007fffff)).bits, 0x0080);  // up to the smallest normal
  // A NaN whose payload is in the low half would round to infinity.
  EXPECT_EQ(bfloat16(as_float(0x7f800001)).bits, 0x7fc0);
  EXPECT_EQ(bfloat16(as_float(0xffffffff)).bits, 0xffff);
}

TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  // Random123's kat_vectors, philox4x32 10.
  EXPECT_EQ(philox(0, {0, 0, 0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, {~0u, ~0u, ~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822ull, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, DerivedValues) {
  EXPECT_EQ(uniform_from_bits(0), 0.0f);
  EXPECT_EQ(uniform_from_bits(0x80000000u), 0.5f);
  EXPECT_LT(uniform_from_bits(~0u), 1.0f);
  for (const uint32_t a : {0u, 1u, ~0u}) {
    for (const double z : normals_from_bits(a, 12345)) EXPECT_TRUE(std::isfinite(z));
  }
  double sum = 0, squares = 0, fourth = 0;
  constexpr uint32_t kPairs = 50000;
  for (uint32_t i = 0; i < kPairs; ++i) {
    const auto bits = philox(3, {i, 0, 0, 0});
    for (const double z : normals_from_bits(bits[0], bits[1])) {
      sum += z, squares += z * z, fourth += z * z * z * z;
    }
  }
  EXPECT_NEAR(sum / (2 * kPairs), 0, 0.015);
  EXPECT_NEAR(squares / (2 * kPairs), 1, 0.02);
  EXPECT_NEAR(fourth / (2 * kPairs), 3, 0.2);
  // Published FNV-1a values.
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(hash_name("foobar"), 0x85944171f73967e8ull);
  EXPECT_NE(mix_key(1, 2), mix_key(2, 1));
  EXPECT_NE(mix_key(0, 0), 0u);
}

TEST(Device, ParsesAndPrints) {
  EXPECT_EQ(parse_device("cpu"), (Device{DeviceKind::kCpu, 0}));
  EXPECT_EQ(parse_device("cuda"), (Device{DeviceKind::kCuda, 0}));
  EXPECT_EQ(parse_device("cuda:12"), (Device{DeviceKind::kCuda, 12}));
  EXPECT_EQ(device_name(parse_device("cuda:3")), "cuda:3");
  EXPECT_EQ(device_name({}), "cpu");
  EXPECT_EQ(device_name({DeviceKind::kMeta, 0}), "meta");
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:99999", "CPU", "cpu:0",
                           "meta", "cuda 1", "cuda:1 "}) {
    EXPECT_THROW(parse_device(text), ConfigError) << text;
  }
}

TEST(Dtype, SizesAndNames) {
  EXPECT_EQ(dtype_size(Dtype::kBFloat16), 2);
  EXPECT_EQ(dtype_size(Dtype::kInt32), 4);
  EXPECT_STREQ(dtype_name(Dtype::kFloat64), "float64");
  EXPECT_EQ(accumulate_dtype(Dtype::kBFloat16), Dtype::kFloat32);
  EXPECT_EQ(accumulate_dtype(Dtype::kFloat64), Dtype::kFloat64);
}

template <class E, class Body>
std::string message(Body body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing thrown";
}

TEST(Errors, TextsAndClasses) {
  EXPECT_EQ(
      message<ConfigError>([] { throw_error<ConfigError>("[x] expected {}; got {}", 1, "b"); }),
      "[x] expected 1; got b");
  const int64_t k = -3;
  EXPECT_EQ(
      message<ArgumentError>([&] { HEIRLOOM_CHECK(k > 0, "[gemm] expected k > 0; got {}", k); }),
      "[gemm] expected k > 0; got -3");
  const std::string defect = message<InternalError>([&] { HEIRLOOM_ASSERT(k == 3); });
  EXPECT_NE(defect.find("k == 3 does not hold at"), std::string::npos) << defect;
  EXPECT_NE(defect.find("tensor_test.cpp"), std::string::npos) << defect;
  // Every class can be caught as the library's own, and none as another's.
  EXPECT_EQ(message<Error>([] { throw IoError("io"); }), "io");
  EXPECT_THROW(message<ConfigError>([] { throw IoError("io"); }), IoError);
  const std::string shape = message<ArgumentError>([] {
    float data[6] = {};
    Tensor(data, {2, 3}, Dtype::kFloat32).reshape({7});
  });
  EXPECT_EQ(shape,
            "[reshape] expected a contiguous tensor of 7 elements; got (2, 3) with row stride 3");
}

TEST(Log, GoesToTheSinkOnly) {
  std::vector<std::string> seen;
  set_log_sink([&](LogLevel level, const std::string& text) {
    seen.push_back((level == LogLevel::kWarning ? "W " : "I ") + text);
  });
  log(LogLevel::kInfo, "one");
  log(LogLevel::kWarning, "two");
  set_log_sink(nullptr);
  log(LogLevel::kInfo, "three");
  EXPECT_EQ(seen, (std::vector<std::string>{"I one", "W two"}));
}

}  // namespace
}  // namespace heirloom
