// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <string>
#include <vector>

#include "heirloom/core/rng.h"
#include "kernels/reference/linear_rows.hpp"

namespace heirloom::cpu {
namespace avx2 {
void register_linear_rows();
}
namespace avx512 {
void register_linear_rows();
}
}  // namespace heirloom::cpu

namespace heirloom {
namespace {

struct Shape {
  int64_t rows, in, out;
};

template <class T>
double value_of(T x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return static_cast<double>(static_cast<float>(x));
  else
    return static_cast<double>(x);
}

template <class T>
class Problem {
 public:
  Problem(Shape shape, bool wide, bool with_bias, Dtype rounding) : wide_(wide) {
    const int64_t x_stride = shape.in + 3, y_stride = shape.out + 2;
    x.assign(static_cast<size_t>(shape.rows * x_stride), make(NAN));
    for (int64_t r = 0; r < shape.rows; ++r) fill(x, r * x_stride, shape.in, 1, rounding);
    weight.resize(static_cast<size_t>(shape.out * shape.in));
    fill(weight, 0, shape.out * shape.in, 2, rounding);
    bias.resize(static_cast<size_t>(shape.out));
    fill(bias, 0, shape.out, 3, rounding);
    y.assign(static_cast<size_t>(shape.rows * y_stride), make(NAN));
    y_wide.assign(y.size(), static_cast<compute_t<T>>(NAN));
    args = {x.data(),
            weight.data(),
            with_bias ? bias.data() : nullptr,
            wide ? static_cast<void*>(y_wide.data()) : y.data(),
            shape.rows,
            shape.in,
            shape.out,
            x_stride,
            y_stride,
            wide};
  }
  Problem(const Problem&) = delete;

  std::vector<double> output() const {
    std::vector<double> out;
    if (wide_)
      for (const auto v : y_wide) out.push_back(value_of(v));
    else
      for (const auto v : y) out.push_back(value_of(v));
    return out;
  }

  std::vector<T> x, weight, bias, y;
  std::vector<compute_t<T>> y_wide;
  LinearRowsArgs args;

 private:
  static T make(double v) {
    if constexpr (std::is_same_v<T, bfloat16>)
      return bfloat16(static_cast<float>(v));
    else
      return static_cast<T>(v);
  }
  static void fill(std::vector<T>& to, int64_t from, int64_t count, uint64_t tensor,
                   Dtype rounding) {
    for (int64_t i = from; i < from + count; ++i) {
      const auto words = philox(tensor, {static_cast<uint32_t>(i), 0, 0, 0});
      const float v = static_cast<float>(normals_from_bits(words[0], words[1])[0]);
      to[static_cast<size_t>(i)] =
          make(rounding == Dtype::kBFloat16 ? value_of(bfloat16(v)) : value_of(v));
    }
  }
  bool wide_;
};

class LinearRowsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "avx512") {
      if (!__builtin_cpu_supports("avx512bf16"))
        GTEST_SKIP() << "no AVX-512 with bfloat16: its linear_rows is not tested";
      cpu::avx512::register_linear_rows();
    } else {
      if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2: its linear_rows is not tested";
      cpu::avx2::register_linear_rows();
    }
  }
  template <class T>
  static void run(Problem<T>& p) {
    linear_rows_table().get(DeviceKind::kCpu, kDtypeOf<T>)(p.args, {});
  }

  template <class T>
  static void check_values(Shape shape, bool wide, bool bias) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.in << " x " << shape.out << " "
                                    << dtype_name(kDtypeOf<T>) << (wide ? " wide" : ""));
    Problem<T> tested(shape, wide, bias, kDtypeOf<T>), naive(shape, wide, bias, kDtypeOf<T>);
    Problem<double> oracle(shape, wide, bias, kDtypeOf<T>);
    run(tested);
    reference::linear_rows<T>(naive.args, {});
    reference::linear_rows<double>(oracle.args, {});
    const auto got = tested.output(), same = naive.output(), want = oracle.output();
    double error = 0, allowed = 0, largest = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << i;
      if (std::isnan(want[i])) continue;
      error = std::max(error, std::fabs(got[i] - want[i]));
      allowed = std::max(allowed, std::fabs(same[i] - want[i]));
      largest = std::max(largest, std::fabs(want[i]));
    }
    EXPECT_LE(error, 2 * allowed + 5e-7 * largest);
  }

  /// The bits of row 0 .. rows-1 computed together equal those of each computed alone, for any
  /// number of threads.
  template <class T>
  static void check_rows(Shape shape) {
    SCOPED_TRACE(testing::Message() << shape.rows << " rows " << dtype_name(kDtypeOf<T>));
    Problem<T> together(shape, true, true, kDtypeOf<T>), apart(shape, true, true, kDtypeOf<T>);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    run(together);
    omp_set_num_threads(1);
    for (int64_t r = 0; r < shape.rows; ++r) {
      LinearRowsArgs one = apart.args;
      one.rows = 1;
      one.x = static_cast<const T*>(one.x) + r * one.x_stride;
      one.y = static_cast<float*>(one.y) + r * one.y_stride;
      linear_rows_table().get(DeviceKind::kCpu, kDtypeOf<T>)(one, {});
    }
    omp_set_num_threads(threads);
    const auto a = together.output(), b = apart.output();
    for (size_t i = 0; i < a.size(); ++i) {
      if (std::isnan(a[i]) && std::isnan(b[i])) continue;
      ASSERT_EQ(a[i], b[i]) << i;
    }
  }
};

TEST_P(LinearRowsTest, Values) {
  for (const Shape shape : {Shape{1, 1, 1},
                            {1, 16, 4},
                            {2, 31, 5},
                            {3, 33, 7},
                            {4, 64, 8},
                            {5, 100, 3},
                            {6, 17, 6},
                            {7, 512, 130},
                            {8, 1376, 33},
                            {13, 2100, 9},
                            {32, 48, 21},
                            {33, 200, 40}}) {
    for (const bool wide : {false, true}) {
      check_values<float>(shape, wide, wide);
      check_values<bfloat16>(shape, wide, !wide);
    }
  }
}

TEST_P(LinearRowsTest, BitsDoNotDependOnRowsOrThreads) {
  for (const int64_t rows : {2, 3, 5, 6, 7, 8, 20, 32}) {
    check_rows<float>({rows, 300, 101});
    check_rows<bfloat16>({rows, 300, 101});
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, LinearRowsTest, testing::Values("avx2", "avx512"),
                         [](const auto& isa) { return std::string(isa.param); });

TEST(LinearRowsCost, ByHand) {
  const float x = 0;
  LinearRowsArgs a{&x, &x, &x, nullptr, 3, 100, 40, 100, 40, true};
  const KernelCost cost = linear_rows_cost(a, Dtype::kBFloat16);
  EXPECT_EQ(cost.bytes_read, 2 * (4000 + 300 + 40));
  EXPECT_EQ(cost.bytes_written, 4 * 120);
  EXPECT_EQ(cost.flops, 2 * 3 * 4000);
}

}  // namespace
}  // namespace heirloom
