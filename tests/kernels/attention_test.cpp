// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "heirloom/kernels/attention.h"
#include "kernels/reference/attention.hpp"
#include "tests/kernels/attention_problem.h"

namespace heirloom::cpu {
namespace avx2 {
void register_attention_forward();
void register_attention_backward();
void register_attention_decode();
}  // namespace avx2
namespace avx512 {
void register_attention_forward();
void register_attention_backward();
void register_attention_decode();
}  // namespace avx512
}  // namespace heirloom::cpu

namespace heirloom {
namespace {

using namespace testing_attention;

std::vector<Case> cases() {
  return {
      {"one", {{1, 1}}},
      {"two", {{2, 2}}, 1, 1, 10, 10},
      {"tile_less_one", {{63, 63}}, 2, 1},
      {"tile", {{64, 64}}, 3, 3, 60, 60},
      {"tile_and_one", {{65, 65}}, 2, 2, 10, 10, 0, 0, false, false, false, Slots::kAdd},
      {"ragged", {{130, 130}, {1, 1}, {77, 77}}, 2, 2, 32, 32},
      {"grouped_2", {{100, 100}}, 4, 2, 16, 16, 0, 0, false, false, false, Slots::kAdd},
      {"grouped_3", {{70, 70}, {33, 33}}, 6, 2, 20, 20, 0, 0, false, true, false, Slots::kShared},
      {"grouped_4", {{90, 90}}, 4, 1, 80, 80},
      {"wide_values", {{150, 150}}, 2, 2, 24, 40},
      {"narrow_values", {{150, 150}}, 2, 1, 128, 6},
      {"head_96", {{100, 100}, {29, 29}}, 2, 1, 96, 96, 0, 0, false, true, false, Slots::kAdd},
      {"head_128", {{130, 130}}, 2, 2, 128, 128},
      {"latent", {{70, 70}}, 2, 2, 192, 128, 0, 0, false, false, false, Slots::kAdd},
      {"largest", {{66, 66}}, 1, 1, 256, 256},
      {"long", {{520, 520}}, 1, 1, 64, 64},
      {"odd_values", {{66, 66}}, 1, 1, 14, 17},
      {"window_1", {{70, 70}}, 1, 1, 16, 16, 1},
      {"window_7", {{200, 200}}, 2, 2, 16, 16, 7},
      {"window_64", {{200, 200}}, 2, 2, 16, 16, 64},
      {"window_100", {{300, 300}}, 2, 1, 16, 16, 100, 0, false, false, false, Slots::kAdd},
      {"dropout", {{90, 90}, {65, 65}}, 4, 2, 16, 16, 0, 0.3, false, true},
      {"dropout_window", {{140, 140}}, 2, 2, 16, 16, 30, 0.1},
      {"mean", {{80, 80}}, 3, 3, 16, 20, 0, 0, false, true, false, Slots::kAdd},
      {"zero", {{80, 80}}, 4, 2, 16, 16, 0, 0, false, false, true},
      {"zero_mean_partial", {{80, 80}}, 4, 4, 16, 16, 0, 0, false, true, true, Slots::kPartial},
      {"shared", {{80, 80}, {40, 40}}, 3, 3, 16, 16, 0, 0, false, true, false, Slots::kShared},
      {"shared_window", {{80, 80}}, 8, 4, 16, 16, 20, 0, false, false, false, Slots::kShared},
      {"chunk", {{5, 100}, {70, 131}, {1, 64}}, 2, 2, 16, 16},
      {"chunk_window", {{5, 100}, {70, 231}}, 2, 2, 16, 16, 50},
      {"paged", {{128, 128}, {70, 70}, {3, 200}}, 4, 2, 32, 32, 0, 0, true},
      {"paged_window_mean", {{128, 128}, {30, 270}}, 2, 2, 32, 20, 90, 0, true, true},
  };
}

std::vector<Case> decode_cases() {
  return {
      {"one", {{1, 1}}},
      {"lengths",
       {{1, 2}, {1, 63}, {1, 64}, {1, 65}, {1, 511}, {1, 512}, {1, 513}, {1, 1100}},
       2,
       2,
       32,
       32},
      {"grouped_2", {{1, 130}}, 4, 2, 10, 10},
      {"grouped_3", {{1, 130}, {1, 600}}, 6, 2, 60, 60, 0, 0, true},
      {"grouped_4", {{1, 700}}, 8, 2, 80, 80, 0, 0, true, true},
      {"wide_values", {{1, 150}}, 2, 2, 24, 136},
      {"narrow_values", {{1, 150}}, 2, 1, 256, 6},
      {"window", {{1, 1300}, {1, 40}}, 2, 2, 64, 64, 600},
      {"window_paged", {{1, 1300}, {1, 40}}, 2, 2, 64, 64, 70, 0, true},
      {"mean_zero", {{1, 200}}, 3, 3, 16, 20, 0, 0, false, true, true},
      {"dropout", {{1, 200}}, 2, 2, 16, 16, 0, 0.5},
  };
}

const char* const kOutputNames[] = {"o",       "lse",     "dq",      "dk",          "dv",
                                    "dsecond", "dk slot", "dv slot", "dsecond slot"};

using Outputs = std::vector<std::vector<double>>;

/// NaN exactly where the oracle has NaN (nothing read or written outside), elsewhere at most twice
/// the naive error.
void expect_close(const Outputs& got, const Outputs& naive, const Outputs& want,
                  const std::string& what) {
  for (size_t t = 0; t < want.size(); ++t) {
    double error = 0, allowed = 0, largest = 0;
    ASSERT_EQ(got[t].size(), want[t].size());
    for (size_t i = 0; i < want[t].size(); ++i) {
      ASSERT_EQ(std::isnan(got[t][i]), std::isnan(want[t][i]))
          << what << " " << kOutputNames[t] << " at " << i;
      if (std::isnan(want[t][i])) continue;
      error = std::max(error, std::fabs(got[t][i] - want[t][i]));
      allowed = std::max(allowed, std::fabs(naive[t][i] - want[t][i]));
      largest = std::max(largest, std::fabs(want[t][i]));
    }
    // Inputs are standard normals: where the true value is zero (one visible key), rounding is
    // judged against 1.
    EXPECT_LE(error, 2 * allowed + 1e-6 * std::max(1.0, largest)) << what << " " << kOutputNames[t];
  }
}

void expect_same_bits(const Outputs& a, const Outputs& b, const std::string& what) {
  for (size_t t = 0; t < a.size(); ++t) {
    for (size_t i = 0; i < a[t].size(); ++i) {
      if (std::isnan(a[t][i]) && std::isnan(b[t][i])) continue;
      ASSERT_EQ(a[t][i], b[t][i]) << what << " " << kOutputNames[t] << " at " << i;
    }
  }
}

/// Whose kernels: those of one instruction set, or of CUDA; and in which dtype.
using Entry = std::tuple<std::string, std::string>;

class AttentionTest : public testing::TestWithParam<Entry> {
 protected:
  void SetUp() override {
    const std::string& whose = std::get<0>(GetParam());
    if (whose == "cuda") {
      if (!test::is_wanted(DeviceKind::kCuda)) GTEST_SKIP() << "HEIRLOOM_TEST_DEVICES";
      HEIRLOOM_SKIP_WITHOUT_CUDA();
      device_ = test::kCuda;
      return;
    }
    if (!test::is_wanted(DeviceKind::kCpu)) GTEST_SKIP() << "HEIRLOOM_TEST_DEVICES";
    if (whose == "avx512") {
      if (!__builtin_cpu_supports("avx512bf16"))
        GTEST_SKIP() << "no AVX-512 with bfloat16: its attention kernels are not tested";
      cpu::avx512::register_attention_forward();
      cpu::avx512::register_attention_backward();
      cpu::avx512::register_attention_decode();
    } else {
      if (!__builtin_cpu_supports("avx2"))
        GTEST_SKIP() << "no AVX2: its attention kernels are not tested";
      cpu::avx2::register_attention_forward();
      cpu::avx2::register_attention_backward();
      cpu::avx2::register_attention_decode();
    }
  }
  /// Calls body with a value of the dtype.
  template <class Body>
  void in_dtype(const Body& body) const {
    if (std::get<1>(GetParam()) == "bfloat16")
      body(bfloat16(0.0f));
    else
      body(0.0f);
  }
  template <class T>
  auto forward_kernel() const {
    return test::on(attention_forward_table(), device_, kDtypeOf<T>);
  }
  template <class T>
  auto backward_kernel() const {
    return test::on(attention_backward_table(), device_, kDtypeOf<T>);
  }
  template <class T>
  auto decode_kernel() const {
    return test::on(attention_decode_table(), device_, kDtypeOf<T>);
  }
  bool has_decode() const { return attention_decode_table().has(device_.kind, Dtype::kFloat32); }

  template <class T>
  void check_values(const Case& c) const {
    SCOPED_TRACE(c.name + (c.aligned ? " aligned" : ""));
    Problem<T> tested(c, kDtypeOf<T>), naive(c, kDtypeOf<T>);
    Problem<double> oracle(c, kDtypeOf<T>);
    // Tensor cores take both sides of a product in T.
    const bool in_t = device_.kind == DeviceKind::kCuda;
    tested.forward(forward_kernel<T>());
    naive.forward(in_t ? &reference::attention_forward<T, T> : &reference::attention_forward<T>);
    oracle.forward(&reference::attention_forward<double>);
    expect_close(tested.outputs(), naive.outputs(), oracle.outputs(), "forward");
    tested.backward(backward_kernel<T>());
    naive.backward(in_t ? &reference::attention_backward<T, T> : &reference::attention_backward<T>);
    oracle.backward(&reference::attention_backward<double>);
    expect_close(tested.outputs(), naive.outputs(), oracle.outputs(), "backward");
  }

  template <class T>
  void check_decode(const Case& c) const {
    SCOPED_TRACE(c.name);
    Problem<T> tested(c, kDtypeOf<T>), naive(c, kDtypeOf<T>);
    Problem<double> oracle(c, kDtypeOf<T>);
    tested.forward(decode_kernel<T>());
    naive.forward(&reference::attention_forward<T>);
    oracle.forward(&reference::attention_forward<double>);
    expect_close(tested.outputs(), naive.outputs(), oracle.outputs(), "decode");
  }

  /// On the CPU with other numbers of threads.
  template <class T>
  void check_repetition(const Case& c) const {
    SCOPED_TRACE(c.name);
    Problem<T> first(c, kDtypeOf<T>), second(c, kDtypeOf<T>);
    {
      const test::ThreadCount threads(1);
      first.forward(forward_kernel<T>());
      first.backward(backward_kernel<T>());
    }
    const test::ThreadCount threads(3);
    second.forward(forward_kernel<T>());
    second.backward(backward_kernel<T>());
    expect_same_bits(first.outputs(), second.outputs(), "two runs");
  }

  /// o and lse of the first sequence, `chunk` queries per call, each call seeing only the keys it
  /// needs.
  template <class T>
  Outputs in_chunks(const Case& c, int64_t chunk) const {
    Problem<T> p(c, kDtypeOf<T>);
    AttentionForwardArgs call = p.args.forward;
    call.sequence_count = 1;
    const AttentionSequence whole = call.sequences[0];
    std::vector<AttentionSequence> parts;
    for (int64_t from = 0; from < whole.queries; from += chunk) {
      AttentionSequence& s = parts.emplace_back(whole);
      s.query_row += from;
      s.queries = std::min(chunk, whole.queries - from);
      s.keys = whole.keys - whole.queries + from + s.queries;
    }
    std::vector<AttentionForwardArgs> calls;
    for (const AttentionSequence& part : parts) {
      call.sequences = &part;
      calls.push_back(call);
    }
    p.forward(forward_kernel<T>(), calls);
    return p.outputs();
  }

  template <class T>
  void check_chunks(const Case& c) const {
    SCOPED_TRACE(c.name);
    const int64_t all = c.sequences[0][0];
    const Outputs whole = in_chunks<T>(c, all);
    for (const int64_t chunk : {1, 7, 16, 64, 100}) {
      expect_same_bits(whole, in_chunks<T>(c, chunk), "chunks of " + std::to_string(chunk));
    }
  }

 private:
  Device device_;
};

TEST_P(AttentionTest, ValuesAndGradients) {
  for (Case c : cases()) {
    for (const bool aligned : {false, true}) {
      c.aligned = aligned;
      in_dtype([&]<class T>(T) { check_values<T>(c); });
    }
  }
}

TEST_P(AttentionTest, Decode) {
  if (!has_decode()) GTEST_SKIP() << "no kernel of this device";
  std::vector<Case> list = decode_cases();
  // More than one query per sequence has the same meaning.
  list.push_back({"several", {{3, 70}}, 2, 1, 16, 16});
  for (const Case& c : list) in_dtype([&]<class T>(T) { check_decode<T>(c); });
}

TEST_P(AttentionTest, SameBitsEveryTime) {
  for (const Case& c : cases()) in_dtype([&]<class T>(T) { check_repetition<T>(c); });
}

// A replayed step has the arguments of the captured one: its key is read from memory.
TEST_P(AttentionTest, TheStepsDropoutKeyComesFromMemory) {
  const Case c{"dropout", {{70, 70}, {65, 65}}, 2, 1, 16, 16, 0, 0.4};
  const uint64_t step_key = 0xfedcba9876543210ull;
  in_dtype([&]<class T>(T) {
    Problem<T> plain(c, kDtypeOf<T>), replayed(c, kDtypeOf<T>);
    plain.args.forward.dropout.key = mix_key(step_key, 77);
    replayed.args.forward.dropout.key = 77;
    replayed.args.forward.dropout.step_key = &step_key;
    for (Problem<T>* p : {&plain, &replayed}) {
      p->forward(forward_kernel<T>());
      p->backward(backward_kernel<T>());
    }
    expect_same_bits(plain.outputs(), replayed.outputs(), "key");
  });
}

TEST_P(AttentionTest, ResultsDoNotDependOnChunks) {
  const std::vector<Case> list = {
      {"plain", {{200, 200}}, 2, 1, 60, 40},
      {"long_prefix", {{150, 333}}, 1, 1, 16, 16},
      {"window", {{260, 260}}, 2, 2, 16, 16, 70},
      {"dropout", {{130, 130}}, 2, 2, 16, 16, 0, 0.2},
      {"paged", {{200, 200}}, 2, 2, 32, 32, 0, 0, true},
  };
  for (const Case& c : list) {
    in_dtype([&]<class T>(T) { check_chunks<T>(c); });
  }
}

/// Rows of one query of sequence `n` in two problems.
template <class T>
void expect_same_rows(const Problem<T>& a, size_t na, const Problem<T>& b, size_t nb,
                      const std::string& what) {
  const AttentionForwardArgs &fa = a.args.forward, &fb = b.args.forward;
  const AttentionSequence &sa = fa.sequences[na], &sb = fb.sequences[nb];
  ASSERT_EQ(sa.queries, sb.queries);
  for (int64_t i = 0; i < sa.queries; ++i) {
    for (int64_t x = 0; x < fa.heads * fa.v_dim; ++x) {
      ASSERT_EQ(to_double(a.o[static_cast<size_t>((sa.query_row + i) * fa.o_stride + x)]),
                to_double(b.o[static_cast<size_t>((sb.query_row + i) * fb.o_stride + x)]))
          << what << ", query " << i << ", column " << x;
    }
  }
}

/// The same sequence, copied from `from` into sequence n of `to`, whatever its layout.
template <class T>
void copy_sequence(const Problem<T>& from, size_t n, Problem<T>& to, size_t m) {
  const AttentionForwardArgs &a = from.args.forward, &b = to.args.forward;
  const AttentionSequence &sa = a.sequences[n], &sb = b.sequences[m];
  const auto copy = [](const std::vector<T>& x, int64_t x_at, std::vector<T>& y, int64_t y_at,
                       int64_t count) { std::copy_n(x.begin() + x_at, count, y.begin() + y_at); };
  for (int64_t i = 0; i < sa.queries; ++i) {
    copy(from.q, (sa.query_row + i) * a.q_stride, to.q, (sb.query_row + i) * b.q_stride,
         a.heads * a.qk_dim);
  }
  for (int64_t j = 0; j < sa.keys; ++j) {
    const int64_t x = reference::attention_detail::stream_row(sa, j),
                  y = reference::attention_detail::stream_row(sb, j);
    copy(from.k, x * a.k[0].row_stride, to.k, y * b.k[0].row_stride, a.kv_heads * a.qk_dim);
    copy(from.v, x * a.v[0].row_stride, to.v, y * b.v[0].row_stride, a.kv_heads * a.v_dim);
  }
}

TEST_P(AttentionTest, ResultsDoNotDependOnPagesOrNeighbours) {
  Case alone{"alone", {{150, 210}}, 4, 2, 32, 20};
  Case company{"company", {{65, 65}, {150, 210}, {1, 700}}, 4, 2, 32, 20};
  company.paged = true;
  in_dtype([&]<class T>(T) {
    Problem<T> a(alone, kDtypeOf<T>), b(company, kDtypeOf<T>);
    copy_sequence(a, 0, b, 1);
    a.forward(forward_kernel<T>());
    b.forward(forward_kernel<T>());
    expect_same_rows(a, 0, b, 1, "forward");
  });

  if (!has_decode()) return;
  alone.sequences = {{1, 1210}};
  company.sequences = {{1, 65}, {1, 600}, {1, 1210}, {1, 3}};
  in_dtype([&]<class T>(T) {
    Problem<T> a(alone, kDtypeOf<T>), b(company, kDtypeOf<T>);
    copy_sequence(a, 0, b, 2);
    {
      const test::ThreadCount threads(1);
      a.forward(decode_kernel<T>());
    }
    const test::ThreadCount threads(3);
    b.forward(decode_kernel<T>());
    expect_same_rows(a, 0, b, 2, "decode");
  });
}

TEST_P(AttentionTest, ExtremeScoresStayFinite) {
  in_dtype([&]<class T>(T) {
    Problem<T> p({"extreme", {{100, 100}}, 1, 1, 16, 16}, kDtypeOf<T>);
    for (T& x : p.q) x = from_double<T>(1e4 * to_double(x));
    for (T& x : p.k) x = from_double<T>(1e4 * to_double(x));
    p.forward(forward_kernel<T>());
    for (int64_t i = 0; i < 100; ++i) {
      for (int64_t e = 0; e < 16; ++e) {
        const auto at = static_cast<size_t>((1 + i) * p.args.forward.o_stride + e);
        ASSERT_TRUE(std::isfinite(to_double(p.o[at]))) << i << " " << e;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionTest,
                         testing::Combine(testing::Values("avx2", "avx512", "cuda"),
                                          testing::Values("float32", "bfloat16")),
                         [](const auto& entry) {
                           return std::get<0>(entry.param) + "_" + std::get<1>(entry.param);
                         });

/// sum of dout * o over a call, in float64.
double objective(Problem<double>& p) {
  p.forward(&reference::attention_forward<double>);
  double sum = 0;
  for (size_t i = 0; i < p.o.size(); ++i) {
    if (!std::isnan(p.o[i])) sum += p.o[i] * p.dout[i];
  }
  return sum;
}

/// Directional derivative along a random direction of one input against the gradient.
void check_direction(Problem<double>& p, std::vector<double>& input,
                     const std::vector<double>& gradient, uint64_t tensor,
                     const std::string& what) {
  const std::vector<double> at = input;
  double want = 0;
  std::vector<double> direction(at.size(), 0.0);
  for (size_t i = 0; i < at.size(); ++i) {
    if (std::isnan(at[i]) || std::isnan(gradient[i])) continue;
    direction[i] = random_value(tensor, static_cast<int64_t>(i), Dtype::kFloat64);
    want += direction[i] * gradient[i];
  }
  const double step = 1e-5;
  const auto moved = [&](double by) {
    for (size_t i = 0; i < at.size(); ++i) input[i] = at[i] + by * direction[i];
    return objective(p);
  };
  const double got = (moved(step) - moved(-step)) / (2 * step);
  input = at;
  EXPECT_NEAR(got, want, 1e-6 * (1 + std::fabs(want))) << what;
}

TEST(AttentionReference, GradientsAgreeWithCentralDifferences) {
  for (Case c : cases()) {
    if (c.sequences[0][0] > 100 || c.slots == Slots::kShared || c.slots == Slots::kPartial)
      continue;
    c.slots = Slots::kWrite;
    SCOPED_TRACE(c.name);
    Problem<double> p(c, Dtype::kFloat64);
    p.forward(&reference::attention_forward<double>);
    p.backward(&reference::attention_backward<double>);
    check_direction(p, p.q, p.dq, 11, "q");
    check_direction(p, p.k, p.dk, 12, "k");
    check_direction(p, p.v, p.dv, 13, "v");
    if (c.mean) check_direction(p, p.second, p.dsecond, 14, "second");
  }
}

/// What the slots of shared heads hold is the sum of what each head would have written.
TEST(AttentionReference, SharedSlotsHoldSums) {
  Case c{"shared", {{20, 20}}, 3, 3, 8, 8};
  c.mean = true;
  Problem<double> apart(c, Dtype::kFloat64);
  c.slots = Slots::kShared;
  Problem<double> shared(c, Dtype::kFloat64);
  for (Problem<double>* p : {&apart, &shared}) {
    p->forward(&reference::attention_forward<double>);
    p->backward(&reference::attention_backward<double>);
  }
  const int64_t stride = apart.args.dk[0].row_stride, v_stride = apart.args.dv[0].row_stride;
  for (int64_t row = 2; row < 22; ++row) {
    for (int64_t x = 0; x < 8; ++x) {
      const auto k_at = static_cast<size_t>(row * stride + x),
                 v_at = static_cast<size_t>(row * v_stride + x);
      EXPECT_NEAR(shared.dk_slot[k_at], apart.dk[k_at] + apart.dk[k_at + 8], 1e-12);
      EXPECT_NEAR(shared.dv_slot[v_at], apart.dv[v_at] + apart.dv[v_at + 8], 1e-12);
      EXPECT_NEAR(shared.dv_slot[v_at + 16], apart.dsecond[v_at] + apart.dv[v_at + 16], 1e-12);
      EXPECT_NEAR(apart.dsecond[v_at], apart.dv[v_at], 1e-12) << "a mean's halves get the same";
    }
  }
}

TEST(AttentionReference, WindowAndPositionByHand) {
  // One head, D = E = 1, scale 1 and q = 0: o is the plain mean of the visible values.
  const double q[2] = {0, 0}, k[4] = {1, 2, 3, 4}, v[4] = {1, 10, 100, 1000};
  double o[2], lse[2];
  const KvHead key{k, nullptr, 1}, value{v, nullptr, 1};
  const AttentionSequence s{0, 2, 4, 0, nullptr, 0};
  AttentionForwardArgs a{q, o, lse, &key, &value, &s, 1, 1, 1, 1, 1, 1, 1, 1.0, 2, {}};
  reference::attention_forward<double>(a, {});
  EXPECT_DOUBLE_EQ(o[0], 55);
  EXPECT_DOUBLE_EQ(o[1], 550);
  EXPECT_DOUBLE_EQ(lse[0], std::log(2.0));
  a.window = 0;
  reference::attention_forward<double>(a, {});
  EXPECT_DOUBLE_EQ(o[0], 37);
  EXPECT_DOUBLE_EQ(o[1], 277.75);
}

TEST(AttentionReference, DropoutKeepsTheExpectedShare) {
  int64_t dropped = 0;
  const AttentionDropout dropout{0.25, 99};
  for (int64_t i = 0; i < 200; ++i) {
    for (int64_t j = 0; j < 200; ++j) {
      const double keep = reference::attention_detail::dropout_factor<double>(dropout, 1, 2, i, j);
      if (keep == 0)
        ++dropped;
      else
        EXPECT_DOUBLE_EQ(keep, 4.0 / 3.0);
    }
  }
  EXPECT_NEAR(static_cast<double>(dropped), 10000, 400);  // four standard deviations: 346
}

TEST(AttentionCost, ByHand) {
  // Two sequences: 3 of 3 and 2 of 5 positions; H = 4, G = 2, D = 6, E = 10; value head 0 a mean,
  // head 1 zero.
  const float x = 0;
  float y = 0;
  const KvHead k[2] = {{&x, nullptr, 12}, {&x, nullptr, 12}},
               v[2] = {{&x, &x, 20}, {nullptr, nullptr, 0}};
  const AttentionSequence s[2] = {{0, 3, 3, 0, nullptr, 0}, {3, 2, 5, 3, nullptr, 0}};
  AttentionForwardArgs a{&x, &y, &y, k, v, s, 2, 4, 2, 6, 10, 24, 40, 1.0, 0, {}};
  KernelCost cost = attention_forward_cost(a, Dtype::kBFloat16);
  const double pairs = 6 + 9;
  EXPECT_EQ(cost.flops, 2 * pairs * 2 * (6 + 10) + 2 * pairs * 2 * 6);
  EXPECT_EQ(cost.bytes_read, 2 * (5 * 24 + 8 * (6 + 20) + 8 * 6));
  EXPECT_EQ(cost.bytes_written, 5 * (40 * 2 + 4 * 4));

  const KvHeadGrad dk[2] = {{&y, nullptr, 12, true, true, false}, {}},
                   dv[2] = {{&y, &y, 20, false, false, true}, {}};
  const AttentionBackwardArgs b{a, &x, &y, dk, dv};
  cost = attention_backward_cost(b, Dtype::kBFloat16);
  EXPECT_EQ(cost.flops, 2 * pairs * 2 * (18 + 20));
  EXPECT_EQ(cost.bytes_read,
            2 * (5 * (24 + 80) + 8 * 26 + 8 * 6) + 5 * 4 * 4 + 8 * 6 * 4 + 8 * 10 * 2);
  EXPECT_EQ(cost.bytes_written, 2 * 5 * 24 + 8 * 6 * 4 + 2 * 8 * 10 * 2);

  a.window = 2;  // pairs: 1 + 2 + 2 and 2 + 2; keys: 3 and, from position 3 on with one before, 3
  cost = attention_forward_cost(a, Dtype::kFloat32);
  EXPECT_EQ(cost.flops, 2 * 9 * 2 * (6 + 10) + 2 * 9 * 2 * 6);
  EXPECT_EQ(cost.bytes_read, 4 * (5 * 24 + 6 * (6 + 20) + 6 * 6));
}

}  // namespace
}  // namespace heirloom
