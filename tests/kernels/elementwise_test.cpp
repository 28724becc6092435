// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/elementwise.h"

#include <gtest/gtest.h>

#include "heirloom/kernels/norm.h"
#include "kernels/reference/elementwise.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

struct AddCase {
  int64_t rows, cols, x_stride, y_stride;
  bool overwrite;
};

template <class X, class Y>
Values add(const AddCase& c, const Values& x_in, const Values& y_in, bool wide_x, bool wide_y,
           Kernel<AddArgs> f) {
  const OnDevice scope(f.device);
  FencedBuffer<X> x(x_in);
  FencedBuffer<Y> y(y_in);
  if (c.overwrite) {
    for (int64_t i = 0; i < c.rows; ++i) y.poison(i * c.y_stride, c.cols);
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
  f(args);
  return y.values();
}

template <class T, class X, class Y>
void check_add(const AddCase& c, const Device& device) {
  const bool wide_x = !std::is_same_v<X, T>, wide_y = !std::is_same_v<Y, T>;
  const Values x = rounded<X>(random_values(c.rows * c.x_stride, 1));
  const Values y = rounded<Y>(random_values(c.rows * c.y_stride, 2));
  const auto f = on(add_table(), device, kDtypeOf<T>);
  // One operation and one rounding: there is only one right answer.
  EXPECT_EQ((add<X, Y>(c, x, y, wide_x, wide_y, f)),
            (add<X, Y>(c, x, y, wide_x, wide_y, reference::add<T>)));
  const Values exact = add<double, double>(c, x, y, false, false, reference::add<double>);
  EXPECT_LE(max_error(add<X, Y>(c, x, y, wide_x, wide_y, f), exact),
            1.01 * unit_roundoff<Y>() * max_magnitude(exact));
}

void check_add(const AddCase& c) {
  SCOPED_TRACE(fmt::format("rows {} cols {} x_stride {} y_stride {} overwrite {}", c.rows, c.cols,
                           c.x_stride, c.y_stride, c.overwrite));
  for_each_entry(add_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    check_add<T, T, T>(c, device);
    check_add<T, T, A>(c, device);
    check_add<T, A, T>(c, device);
    check_add<T, A, A>(c, device);
  });
}

TEST(AddTest, MatchesTheReference) {
  for (const bool overwrite : {false, true}) {
    for (const AddCase& c : {AddCase{1, 1, 1, 1, overwrite},
                             {3, 10, 14, 10, overwrite},
                             {4, 12, 20, 16, overwrite},
                             {3, 17, 20, 17, overwrite},
                             {4, 24, 32, 40, overwrite},
                             {5, 64, 64, 64, overwrite},
                             {5, 101, 101, 333, overwrite},
                             {1, 20000, 20000, 20000, overwrite},
                             {0, 5, 5, 5, overwrite}}) {
      check_add(c);
    }
  }
}

TEST(AddTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    for (const bool overwrite : {false, true}) check_add({3, 64, 64, 72, overwrite});
  }
}

TEST(AddTest, RoundsToNearestEvenAndKeepsNan) {
  const AddCase c{1, 6, 6, 6, true};
  // Ties at half of bfloat16's last place (2^-8 at 1), an overflow, infinity, NaN.
  const Values x = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1.8p-8, 3.4e38, -INFINITY, std::nan("")};
  for_each_device([&](const Device& device) {
    const Values y = add<float, bfloat16>(c, rounded<float>(x), Values(6, 0), true, false,
                                          on(add_table(), device, Dtype::kBFloat16));
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 1 + 4 * 0x1p-8);
    EXPECT_EQ(y[2], 1 + 2 * 0x1p-8);
    EXPECT_EQ(y[3], INFINITY);
    EXPECT_EQ(y[4], -INFINITY);
    EXPECT_TRUE(std::isnan(y[5]));
  });
}

template <class T>
Values column_sum(int64_t n, int64_t c, const Values& in, const Values& before,
                  Kernel<ColumnSumArgs> f) {
  const OnDevice scope(f.device);
  FencedBuffer<T> dy(in);
  FencedBuffer<compute_t<T>> db(before), workspace(reduction_chunks(n, f.device.kind) * c);
  ColumnSumArgs args;
  args.dy = dy.data();
  args.db = db.data();
  args.workspace = workspace.data();
  args.n = n;
  args.c = c;
  f(args);
  return db.values();
}

void check_column_sum(int64_t n, int64_t c) {
  SCOPED_TRACE(fmt::format("n {} c {}", n, c));
  for_each_entry(column_sum_table(), [&]<class T>(const Device& device) {
    using A = compute_t<T>;
    const Values dy = rounded<T>(random_values(n * c, 1));
    const Values db = rounded<A>(random_values(c, 2));
    const auto f = on(column_sum_table(), device, kDtypeOf<T>);
    expect_as_good_as_naive<A>(
        column_sum<T>(n, c, dy, db, f), column_sum<T>(n, c, dy, db, reference::column_sum<T>),
        column_sum<double>(n, c, dy, db, reference::column_sum<double>), "db");
    expect_reproducible(device, [&] { return column_sum<T>(n, c, dy, db, f); });
  });
}

TEST(ColumnSumTest, MatchesTheReference) {
  for (const auto& [n, c] : {std::pair<int64_t, int64_t>{1, 1},
                             {3, 17},
                             {40, 10},
                             {40, 12},
                             {33, 101},
                             {65, 520},
                             {2100, 48},
                             {0, 7}}) {
    check_column_sum(n, c);
  }
}

TEST(ColumnSumTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    check_column_sum(70, 64);
  }
}

template <class T>
Values dropout(DropoutArgs args, const Values& in, Kernel<DropoutArgs> f) {
  const OnDevice scope(f.device);
  FencedBuffer<T> x(in);  // in place
  args.x = x.data();
  args.y = x.data();
  f(args);
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

void check_dropout(int64_t n, int64_t c, double rate) {
  SCOPED_TRACE(fmt::format("n {} c {} rate {}", n, c, rate));
  for_each_entry(dropout_table(), [&]<class T>(const Device& device) {
    const DropoutArgs args = dropout_args(n, c, 3, rate);
    const Values x = rounded<T>(random_values(n * c, 1));
    const auto f = on(dropout_table(), device, kDtypeOf<T>);
    const Values actual = dropout<T>(args, x, f);
    const Values exact = dropout<double>(args, x, reference::dropout<double>);
    expect_as_good_as_naive<T>(actual, dropout<T>(args, x, reference::dropout<T>), exact, "y");
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(actual[i] == 0, exact[i] == 0) << i;
    expect_reproducible(device, [&] { return dropout<T>(args, x, f); });
  });
}

TEST(DropoutTest, DropsTheReferencesElements) {
  for (const auto& [n, c] : {std::pair<int64_t, int64_t>{1, 1},
                             {6, 3},
                             {6, 10},
                             {6, 12},
                             {7, 17},
                             {5, 24},
                             {9, 101},
                             {12, 1376},
                             {0, 4}}) {
    for (const double rate : {0.0, 0.1, 0.5, 0.999}) check_dropout(n, c, rate);
  }
}

TEST(DropoutTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    check_dropout(5, 64, 0.5);
  }
}

TEST(DropoutTest, RateAndKey) {
  for_each_device([](const Device& device) {
    const Values ones(64 * 1024, 1.0);
    DropoutArgs args = dropout_args(64, 1024, 64, 0.25);
    const auto f = on(dropout_table(), device, Dtype::kFloat32);
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
  });
}

// A replayed step has the arguments of the captured one: what differs is read from memory.
TEST(DropoutTest, TheStepsKeyAndFirstSequenceComeFromMemory) {
  const uint64_t step_key = 0xfedcba9876543210ull;
  const uint32_t sequences = 41;
  for_each_entry(dropout_table(), [&]<class T>(const Device& device) {
    const auto f = on(dropout_table(), device, kDtypeOf<T>);
    const Values x = rounded<T>(random_values(12 * 50, 1));
    DropoutArgs args = dropout_args(12, 50, 4, 0.4);
    DropoutArgs plain = args;
    plain.key = mix_key(step_key, args.key);
    plain.first_sequence = args.first_sequence + sequences;
    const OnDevice scope(device);
    FencedBuffer<uint64_t> step(std::vector<uint64_t>{step_key, sequences});
    args.step_key = step.data();
    const Values y = dropout<T>(args, x, f);
    EXPECT_EQ(y, dropout<T>(plain, x, f));
    step.assign({step_key + 1, sequences});
    EXPECT_NE(y, dropout<T>(args, x, f));
    step.assign({step_key, sequences + 1});
    EXPECT_NE(y, dropout<T>(args, x, f));
  });
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
