// SPDX-License-Identifier: Apache-2.0
//
// roofs.cpp: the fastest this processor multiplies and reads, as denominators for everything that is measured.
//
// Computes   chains of fused multiply-adds on registers; a sum over memory.
// Work       every OpenMP thread the same.
// Limits     a frequency that changes between this and what it is compared with shows in the ratio.
#include <omp.h>

#include <cstdlib>

#include "kernels/cpu/simd.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

// Latency 4 times 2 issues per cycle needs 8 chains; 12 leave slack.
constexpr int kChains = 12;

/// FLOPs done by `rounds` rounds on this thread; `sink` keeps the result alive.
double multiply_add(int64_t rounds, float* sink) {
  Vf a[kChains];
  for (int i = 0; i < kChains; ++i) a[i] = set(static_cast<float>(i));
  const Vf b = set(0.999f), c = set(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      a[i] = a[i] * b + c;
      asm volatile("" : "+v"(a[i]));
    }
  }
  Vf sum{};
  for (int i = 0; i < kChains; ++i) sum += a[i];
  *sink = sum[0];
  return static_cast<double>(rounds) * kChains * kLanes * 2;
}

double multiply_add_bfloat16(int64_t rounds, float* sink) {
#if defined(__AVX512BF16__)
  __m512 a[kChains];
  for (int i = 0; i < kChains; ++i) a[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-2f), _mm512_set1_ps(1e-2f));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      a[i] = _mm512_dpbf16_ps(a[i], b, b);
      asm volatile("" : "+v"(a[i]));
    }
  }
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kChains; ++i) sum = _mm512_add_ps(sum, a[i]);
  *sink = reinterpret_cast<Vf>(sum)[0];
  return static_cast<double>(rounds) * kChains * 32 * 2;
#else
  return multiply_add(rounds, sink);
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
    {
      float sink;
      flops += dtype == Dtype::kBFloat16 ? multiply_add_bfloat16(kRounds, &sink) : multiply_add(kRounds, &sink);
      asm volatile("" : : "r"(&sink) : "memory");
    }
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
      volatile float sink = ((s0 + s1) + (s2 + s3))[0];
      static_cast<void>(sink);
    }
    const double rate = static_cast<double>(floats) * 4 / (omp_get_wtime() - start);
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
