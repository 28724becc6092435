// SPDX-License-Identifier: Apache-2.0
//
// How kernel tests judge values: against the float64 reference on inputs rounded to the tested
// dtype, allowing twice the error of naive code of the same dtype and one rounding of the output.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "heirloom/core/rng.h"
#include "heirloom/kernels/kernel_table.h"
#include "support/buffers.h"

namespace heirloom::test {

using Values = std::vector<double>;

/// Uniform in [-scale, scale], a function of the seed.
inline Values random_values(int64_t count, uint64_t seed, double scale = 1.0) {
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = philox(seed, {static_cast<uint32_t>(i), 0, 0, 7})[0];
    values[i] = scale * (2.0 * (static_cast<double>(bits) + 0.5) * 0x1p-32 - 1.0);
  }
  return values;
}

/// The values that survive storage in T.
template <class T>
Values rounded(Values values) {
  for (double& value : values) value = to_double(from_double<T>(value));
  return values;
}

/// Relative error of one rounding to T.
template <class T>
constexpr double unit_roundoff() {
  if (std::is_same_v<T, bfloat16>) return 0x1p-8;
  return std::is_same_v<T, double> ? 0x1p-53 : 0x1p-24;
}

inline double max_magnitude(const Values& x) {
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  return largest;
}

/// Infinity where one is NaN and the other is not, or where sizes differ.
inline double max_error(const Values& x, const Values& exact) {
  if (x.size() != exact.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = std::abs(x[i] - exact[i]);
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error);
  }
  return worst;
}

/// `Out` is the dtype that the values were stored in. `roundings` of the largest value are allowed
/// beside twice the naive error: on a few elements the naive code may be lucky.
template <class Out>
void expect_as_good_as_naive(const Values& actual, const Values& naive, const Values& exact,
                             const std::string& what, double roundings = 2) {
  constexpr double kTiny = 1e-30;  // below it float32 exponentials saturate
  const double bound =
      2 * max_error(naive, exact) + roundings * unit_roundoff<Out>() * max_magnitude(exact) + kTiny;
  ASSERT_TRUE(std::isfinite(bound)) << what << ": the naive code failed";
  EXPECT_LE(max_error(actual, exact), bound) << what;
}

/// `gradient` against central differences of `loss` at x, element by element.
inline void expect_gradient(const std::function<double(const Values&)>& loss, Values x,
                            const Values& gradient, const std::string& what) {
  ASSERT_EQ(x.size(), gradient.size()) << what;
  constexpr double kStep = 1e-5;
  const double tolerance = 1e-7 * (1 + max_magnitude(gradient));
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + kStep;
    const double above = loss(x);
    x[i] = at - kStep;
    const double below = loss(x);
    x[i] = at;
    EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), tolerance) << what << "[" << i << "]";
  }
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Sets the number of OpenMP threads for a scope.
class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// `run` returns all that a kernel wrote; the same bits are expected from 1, 2 and 3 threads.
inline void expect_same_for_any_threads(const std::function<Values()>& run) {
  Values one;
  {
    const ThreadCount threads(1);
    one = run();
  }
  for (const int count : {2, 3}) {
    const ThreadCount threads(count);
    EXPECT_TRUE(run() == one) << count << " threads";
  }
}

inline Values concatenated(std::initializer_list<Values> parts) {
  Values all;
  for (const Values& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace heirloom::test
