// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/gemm.h"

#include <gtest/gtest.h>

#include "kernels/reference/gemm.hpp"
#include "support/kernels.h"

namespace heirloom {
namespace {
using namespace test;

struct Case {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false, wide = false, accumulate = false, bias = false;
  int64_t pad = 0;  ///< extra elements per row of A, B and C
};

struct Inputs {
  Values a, b, c, bias;
  int64_t lda, ldb, ldc;
};

template <class T>
Inputs make_inputs(const Case& k) {
  Inputs in;
  in.lda = (k.transpose_a ? k.m : k.k) + k.pad;
  in.ldb = (k.transpose_b ? k.k : k.n) + k.pad;
  in.ldc = k.n + k.pad;
  in.a = rounded<T>(random_values((k.transpose_a ? k.k : k.m) * in.lda, 1));
  in.b = rounded<T>(random_values((k.transpose_b ? k.n : k.k) * in.ldb, 2));
  in.c = random_values(k.m * in.ldc, 3);
  in.c = k.wide ? rounded<compute_t<T>>(in.c) : rounded<T>(in.c);
  in.bias = rounded<T>(random_values(k.n, 4));
  return in;
}

/// All of C, the padding between its rows too.
template <class T, class Out>
Values run_as(const Case& k, const Inputs& in, Kernel<GemmArgs> f) {
  const OnDevice scope(f.device);
  FencedBuffer<T> a(in.a), b(in.b), bias(in.bias);
  // Without accumulate C is write only: poison what will be written.
  FencedBuffer<Out> c(in.c);
  if (!k.accumulate) {
    for (int64_t i = 0; i < k.m; ++i) c.poison(i * in.ldc, k.n);
  }
  GemmArgs args;
  args.a = a.data();
  args.b = b.data();
  args.c = c.data();
  args.bias = k.bias ? bias.data() : nullptr;
  args.m = k.m;
  args.n = k.n;
  args.k = k.k;
  args.lda = in.lda;
  args.ldb = in.ldb;
  args.ldc = in.ldc;
  args.transpose_a = k.transpose_a;
  args.transpose_b = k.transpose_b;
  args.c_is_accumulate_dtype = k.wide;
  args.accumulate = k.accumulate;
  f(args);
  return c.values();
}

template <class T>
Values run(const Case& k, const Inputs& in, Kernel<GemmArgs> f) {
  return k.wide ? run_as<T, compute_t<T>>(k, in, f) : run_as<T, T>(k, in, f);
}

void check(const Case& k) {
  SCOPED_TRACE(fmt::format("m {} n {} k {} ta {} tb {} wide {} accumulate {} bias {} pad {}", k.m,
                           k.n, k.k, k.transpose_a, k.transpose_b, k.wide, k.accumulate, k.bias,
                           k.pad));
  for_each_entry(gemm_table(), [&]<class T>(const Device& device) {
    const Inputs in = make_inputs<T>(k);
    const Values actual = run<T>(k, in, on(gemm_table(), device, kDtypeOf<T>));
    const Values naive = run<T>(k, in, reference::gemm<T>);
    const Values exact = run<double>(k, in, reference::gemm<double>);
    if (k.wide) {
      expect_as_good_as_naive<compute_t<T>>(actual, naive, exact, "c");
    } else {
      expect_as_good_as_naive<T>(actual, naive, exact, "c");
    }
  });
}

TEST(GemmTest, MatchesTheReference) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                {3, 17, 5},
                                {17, 3, 101},
                                {101, 33, 17},
                                {64, 172, 96},
                                {1, 101, 64}}) {
    for (int bits = 0; bits < 32; ++bits) {
      Case c{m, n, k};
      c.transpose_a = bits & 1;
      c.transpose_b = bits & 2;
      c.wide = bits & 4;
      c.accumulate = bits & 8;
      c.bias = (bits & 16) && !c.accumulate;
      c.pad = bits % 3;
      check(c);
    }
  }
}

TEST(GemmTest, AddressesNeedNoAlignment) {
  for (const int64_t skew : {1, 2, 4}) {
    const Skew scope(skew);
    check({40, 64, 32, false, true, false, false, true});
    check({32, 64, 40, true, false, true, true});
  }
}

TEST(GemmTest, EmptyDimensions) {
  for_each_entry(gemm_table(), [&]<class T>(const Device& device) {
    const auto f = on(gemm_table(), device, kDtypeOf<T>);
    for (const bool wide : {false, true}) {
      Case k{3, 5, 0};
      k.wide = wide;
      EXPECT_EQ(run<T>(k, make_inputs<T>(k), f), Values(15, 0.0));
      k.bias = true;
      const Inputs with_bias = make_inputs<T>(k);
      const Values c = run<T>(k, with_bias, f);
      for (size_t i = 0; i < c.size(); ++i) EXPECT_EQ(c[i], with_bias.bias[i % 5]);
      k.bias = false;
      k.accumulate = true;
      const Inputs kept = make_inputs<T>(k);
      EXPECT_EQ(run<T>(k, kept, f), kept.c);
    }
    run<T>(Case{0, 5, 4}, make_inputs<T>(Case{0, 5, 4}), f);
    run<T>(Case{5, 0, 4}, make_inputs<T>(Case{5, 0, 4}), f);
  });
}

TEST(GemmTest, SameBitsEveryTime) {
  // Shapes of a small LLaMA: forward, dX, dW.
  const Case cases[] = {
      {256, 1376, 512, false, true}, {256, 512, 1376}, {512, 344, 512, true, false, true, true}};
  for_each_entry(gemm_table(), [&]<class T>(const Device& device) {
    if (std::is_same_v<T, double>) return;
    for (Case k : cases) {
      if (is_emulated(device)) k.m /= 8;
      const Inputs in = make_inputs<T>(k);
      expect_reproducible(device,
                          [&] { return run<T>(k, in, on(gemm_table(), device, kDtypeOf<T>)); });
    }
  });
}

// Inference pads its batches to fixed chunks: a row must not depend on where in the chunk it stands
// or on its neighbours.
TEST(GemmTest, ARowsBitsDoNotDependOnItsPositionInTheCall) {
  for_each_entry(gemm_table(), [&]<class T>(const Device& device) {
    for (const int64_t chunk : {32, 128}) {
      Case k{chunk, is_emulated(device) ? 64 : 512, 320, false, true};
      Inputs in = make_inputs<T>(k);
      const auto f = on(gemm_table(), device, kDtypeOf<T>);
      const Values before = run<T>(k, in, f);
      // Rotate the rows by 5, and replace the last one.
      Inputs moved = in;
      std::rotate(moved.a.begin(), moved.a.begin() + 5 * in.lda, moved.a.end());
      std::fill(moved.a.end() - in.lda, moved.a.end(), 0.0);
      const Values after = run<T>(k, moved, f);
      for (int64_t i = 0; i + 1 < k.m; ++i) {
        const int64_t was = (i + 5) % k.m;
        for (int64_t j = 0; j < k.n; ++j) {
          ASSERT_EQ(after[static_cast<size_t>(i * k.n + j)],
                    before[static_cast<size_t>(was * k.n + j)])
              << "row " << was << " moved to " << i << " of " << chunk;
        }
      }
    }
  });
}

TEST(GemmTest, ManyShapesDoNotGrowTheCacheForever) {
  // More shapes than a cache holds; the first one is then built again.
  for_each_device([](const Device& device) {
    for (int64_t m = 1; m <= 600; ++m) {
      const Case k{m, 2, 3};
      const Inputs in = make_inputs<float>(k);
      const Values c = run<float>(k, in, on(gemm_table(), device, Dtype::kFloat32));
      ASSERT_LT(max_error(c, run<double>(k, in, reference::gemm<double>)), 1e-6);
    }
  });
}

TEST(GemmTest, CostByHand) {
  GemmArgs args;
  args.m = 2;
  args.n = 3;
  args.k = 5;
  args.c_is_accumulate_dtype = args.accumulate = true;
  EXPECT_EQ(gemm_cost(args, Dtype::kBFloat16).bytes_read, (10 + 15) * 2 + 6 * 4);
  EXPECT_EQ(gemm_cost(args, Dtype::kBFloat16).bytes_written, 6 * 4);
  EXPECT_EQ(gemm_cost(args, Dtype::kBFloat16).flops, 60);
  EXPECT_EQ(gemm_cost(args, Dtype::kFloat64).bytes(), (10 + 15 + 12) * 8);
}

}  // namespace
}  // namespace heirloom
