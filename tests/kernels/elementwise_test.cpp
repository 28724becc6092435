// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/elementwise.h"

#include <gtest/gtest.h>

#include "heirloom/kernels/norm.h"
#include "kernels/reference/elementwise.hpp"
#include "support/numerics.h"

namespace heirloom {
namespace {
using namespace test;

struct AddCase {
  int64_t rows, cols, x_stride, y_stride;
  bool overwrite;
};

template <class X, class Y>
Values add(const AddCase& c, const Values& x_in, const Values& y_in, bool wide_x, bool wide_y,
           KernelTable<AddArgs>::Function f) {
  FencedBuffer<X> x(x_in);
  FencedBuffer<Y> y(y_in);
  if (c.overwrite) {
    for (int64_t i = 0; i < c.rows; ++i) {
      std::memset(static_cast<void*>(y.data() + i * c.y_stride), 0xff,
                  static_cast<size_t>(c.cols) * sizeof(Y));
    }
  }
  AddArgs args;
  args.x = x.data();
  args.y = y.data();
  args.rows = c.rows;
  args.cols = c.cols;
  args.x_stride = c.x_stride;
  args.y_stride = c.y_stride;
  args.x_is_accumulate_dtype = wide_x;
  args.y_is_accumulate_dtype = wide_y;
  args.overwrite = c.overwrite;
  f(args, {});
  return y.values();
}

template <class T, class X, class Y>
void check_add(const AddCase& c) {
  const bool wide_x = !std::is_same_v<X, T>, wide_y = !std::is_same_v<Y, T>;
  const Values x = rounded<X>(random_values(c.rows * c.x_stride, 1));
  const Values y = rounded<Y>(random_values(c.rows * c.y_stride, 2));
  const auto f = add_table().get(DeviceKind::kCpu, kDtypeOf<T>);
  // One operation and one rounding: there is only one right answer.
  EXPECT_EQ((add<X, Y>(c, x, y, wide_x, wide_y, f)),
            (add<X, Y>(c, x, y, wide_x, wide_y, reference::add<T>)));
  const Values exact = add<double, double>(c, x, y, false, false, reference::add<double>);
  EXPECT_LE(max_error(add<X, Y>(c, x, y, wide_x, wide_y, f), exact),
            1.01 * unit_roundoff<Y>() * max_magnitude(exact));
}

TEST(AddTest, MatchesTheReference) {
  register_cpu_kernels();
  for (const bool overwrite : {false, true}) {
    for (const AddCase& c : {AddCase{1, 1, 1, 1, overwrite},
                             {3, 17, 20, 17, overwrite},
                             {5, 101, 101, 333, overwrite},
                             {1, 20000, 20000, 20000, overwrite},
                             {0, 5, 5, 5, overwrite}}) {
      for_each_dtype(add_table(), [&]<class T>() {
        using A = compute_t<T>;
        check_add<T, T, T>(c);
        check_add<T, T, A>(c);
        check_add<T, A, T>(c);
        check_add<T, A, A>(c);
      });
    }
  }
}

TEST(AddTest, RoundsToNearestEvenAndKeepsNan) {
  register_cpu_kernels();
  const AddCase c{1, 6, 6, 6, true};
  // Ties at half of bfloat16's last place (2^-8 at 1), an overflow, infinity, NaN.
  const Values x = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1.8p-8, 3.4e38, -INFINITY, std::nan("")};
  const Values y = add<float, bfloat16>(c, rounded<float>(x), Values(6, 0), true, false,
                                        add_table().get(DeviceKind::kCpu, Dtype::kBFloat16));
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1 + 4 * 0x1p-8);
  EXPECT_EQ(y[2], 1 + 2 * 0x1p-8);
  EXPECT_EQ(y[3], INFINITY);
  EXPECT_EQ(y[4], -INFINITY);
  EXPECT_TRUE(std::isnan(y[5]));
}

template <class T>
Values column_sum(int64_t n, int64_t c, const Values& in, const Values& before,
                  KernelTable<ColumnSumArgs>::Function f) {
  FencedBuffer<T> dy(in);
  FencedBuffer<compute_t<T>> db(before), workspace(reduction_chunks(n) * c);
  ColumnSumArgs args;
  args.dy = dy.data();
  args.db = db.data();
  args.workspace = workspace.data();
  args.n = n;
  args.c = c;
  f(args, {});
  return db.values();
}

TEST(ColumnSumTest, MatchesTheReference) {
  register_cpu_kernels();
  for (const auto& [n, c] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {33, 101}, {2100, 48}, {0, 7}}) {
    for_each_dtype(column_sum_table(), [&, n = n, c = c]<class T>() {
      using A = compute_t<T>;
      const Values dy = rounded<T>(random_values(n * c, 1));
      const Values db = rounded<A>(random_values(c, 2));
      const auto f = column_sum_table().get(DeviceKind::kCpu, kDtypeOf<T>);
      expect_as_good_as_naive<A>(
          column_sum<T>(n, c, dy, db, f), column_sum<T>(n, c, dy, db, reference::column_sum<T>),
          column_sum<double>(n, c, dy, db, reference::column_sum<double>), "db");
      expect_same_for_any_threads([&] { return column_sum<T>(n, c, dy, db, f); });
    });
  }
}

template <class T>
Values dropout(DropoutArgs args, const Values& in, KernelTable<DropoutArgs>::Function f) {
  FencedBuffer<T> x(in);  // in place
  args.x = x.data();
  args.y = x.data();
  f(args, {});
  return x.values();
}

DropoutArgs dropout_args(int64_t n, int64_t c, int64_t sequence_length, double rate) {
  DropoutArgs args;
  args.n = n;
  args.c = c;
  args.sequence_length = sequence_length;
  args.first_sequence = 5;
  args.rate = rate;
  args.key = 0x123456789abcdefull;
  return args;
}

TEST(DropoutTest, DropsTheReferencesElements) {
  register_cpu_kernels();
  for (const auto& [n, c] :
       {std::pair<int64_t, int64_t>{1, 1}, {6, 3}, {7, 17}, {9, 101}, {12, 1376}, {0, 4}}) {
    for (const double rate : {0.0, 0.1, 0.5, 0.999}) {
      for_each_dtype(dropout_table(), [&, n = n, c = c]<class T>() {
        const DropoutArgs args = dropout_args(n, c, 3, rate);
        const Values x = rounded<T>(random_values(n * c, 1));
        const auto f = dropout_table().get(DeviceKind::kCpu, kDtypeOf<T>);
        const Values actual = dropout<T>(args, x, f);
        const Values exact = dropout<double>(args, x, reference::dropout<double>);
        expect_as_good_as_naive<T>(actual, dropout<T>(args, x, reference::dropout<T>), exact, "y");
        for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(actual[i] == 0, exact[i] == 0) << i;
        expect_same_for_any_threads([&] { return dropout<T>(args, x, f); });
      });
    }
  }
}

TEST(DropoutTest, RateAndKey) {
  register_cpu_kernels();
  const Values ones(64 * 1024, 1.0);
  DropoutArgs args = dropout_args(64, 1024, 64, 0.25);
  const auto f = dropout_table().get(DeviceKind::kCpu, Dtype::kFloat32);
  const Values y = dropout<float>(args, ones, f);
  const auto dropped = static_cast<double>(std::count(y.begin(), y.end(), 0.0));
  EXPECT_NEAR(dropped / 65536, 0.25, 5 * std::sqrt(0.25 * 0.75 / 65536));
  args.key += 1;
  EXPECT_NE(dropout<float>(args, ones, f), y);
  // Two calls of one sequence each equal one call of two.
  args.sequence_length = 32;
  const Values both = dropout<float>(args, ones, f);
  args.n = 32;
  args.first_sequence += 1;
  const Values second = dropout<float>(args, Values(32 * 1024, 1.0), f);
  EXPECT_TRUE(std::equal(second.begin(), second.end(), both.begin() + 32 * 1024));
}

TEST(ElementwiseTest, CostByHand) {
  AddArgs a;
  a.rows = 3;
  a.cols = 5;
  a.y_is_accumulate_dtype = true;
  EXPECT_EQ(add_cost(a, Dtype::kBFloat16).bytes_read, 15 * (2 + 4));
  EXPECT_EQ(add_cost(a, Dtype::kBFloat16).bytes_written, 15 * 4);
  EXPECT_EQ(add_cost(a, Dtype::kBFloat16).flops, 15);
  a.overwrite = true;
  EXPECT_EQ(add_cost(a, Dtype::kBFloat16).bytes_read, 15 * 2);
  ColumnSumArgs s;
  s.n = 10;
  s.c = 4;
  EXPECT_EQ(column_sum_cost(s, Dtype::kBFloat16).bytes(), 40 * 2 + 2 * 4 * 4);
  DropoutArgs d;
  d.n = 10;
  d.c = 4;
  EXPECT_EQ(dropout_cost(d, Dtype::kFloat32).bytes(), 2 * 40 * 4);
}

}  // namespace
}  // namespace heirloom
