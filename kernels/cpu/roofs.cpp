// SPDX-License-Identifier: Apache-2.0
//
// roofs.cpp: the fastest this processor multiplies and reads, as denominators for everything that
// is measured.
//
// Computes   chains of fused multiply-adds on registers; a sum over memory.
// Work       every OpenMP thread the same.
// Limits     a frequency that changes between this and what it is compared with shows in the ratio.
#include <omp.h>

#include <cstdlib>

#include "kernels/cpu/simd.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

// Latency 4 times 2 issues per cycle needs 8 chains; 12 leave slack. Named one by one: an array
// would live in memory.
constexpr int kChains = 12;
#define HEIRLOOM_EACH_CHAIN(step)                                                           \
  step(a0) step(a1) step(a2) step(a3) step(a4) step(a5) step(a6) step(a7) step(a8) step(a9) \
      step(a10) step(a11)
// The empty assembly keeps each step from being folded with the next.
#define HEIRLOOM_DEFINE(a) Vf a = set(1.0f);
#define HEIRLOOM_FMA(a) \
  a = a * b + c;        \
  asm volatile("" : "+v"(a));
#define HEIRLOOM_DOT(a)                                                          \
  a = reinterpret_cast<Vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(a), b, b)); \
  asm volatile("" : "+v"(a));
#define HEIRLOOM_KEEP(a) asm volatile("" : : "v"(a));

/// FLOPs done by `rounds` rounds on this thread.
double multiply_add(int64_t rounds) {
  const Vf b = set(0.999f), c = set(1e-3f);
  HEIRLOOM_EACH_CHAIN(HEIRLOOM_DEFINE)
  for (int64_t r = 0; r < rounds; ++r) {
    HEIRLOOM_EACH_CHAIN(HEIRLOOM_FMA)
  }
  HEIRLOOM_EACH_CHAIN(HEIRLOOM_KEEP)
  return static_cast<double>(rounds) * kChains * kLanes * 2;
}

double multiply_add_bfloat16(int64_t rounds) {
#if defined(__AVX512BF16__)
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-2f), _mm512_set1_ps(1e-2f));
  HEIRLOOM_EACH_CHAIN(HEIRLOOM_DEFINE)
  for (int64_t r = 0; r < rounds; ++r) {
    HEIRLOOM_EACH_CHAIN(HEIRLOOM_DOT)
  }
  HEIRLOOM_EACH_CHAIN(HEIRLOOM_KEEP)
  return static_cast<double>(rounds) * kChains * 32 * 2;
#else
  return multiply_add(rounds);
#endif
}

}  // namespace

double measure_flops(Dtype dtype) {
  constexpr int64_t kRounds = 400'000;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    double flops = 0;
    const double start = omp_get_wtime();
#pragma omp parallel reduction(+ : flops)
    { flops += dtype == Dtype::kBFloat16 ? multiply_add_bfloat16(kRounds) : multiply_add(kRounds); }
    const double rate = flops / (omp_get_wtime() - start);
    best = rate > best ? rate : best;
  }
  return dtype == Dtype::kFloat64 ? best / 2 : best;
}

double measure_read(const float* data, int64_t floats) {
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double start = omp_get_wtime();
#pragma omp parallel
    {
      const int64_t share = floats / omp_get_num_threads() / (4 * kLanes) * (4 * kLanes);
      const float* p = data + share * omp_get_thread_num();
      Vf s0{}, s1{}, s2{}, s3{};
      for (int64_t i = 0; i < share; i += 4 * kLanes) {
        s0 += load(p + i);
        s1 += load(p + i + kLanes);
        s2 += load(p + i + 2 * kLanes);
        s3 += load(p + i + 3 * kLanes);
      }
      const Vf sum = (s0 + s1) + (s2 + s3);
      HEIRLOOM_KEEP(sum)
    }
    const double rate = static_cast<double>(floats) * 4 / (omp_get_wtime() - start);
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
