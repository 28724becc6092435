// SPDX-License-Identifier: Apache-2.0
//
// roofs.cpp: the fastest this processor multiplies and reads, as denominators for everything that
// is measured.
//
// Computes     chains of fused multiply-adds on registers; a sum over memory, the best of several
//              ways to read it.
// Work         every OpenMP thread the same.
// Limits       a frequency that changes between this and what it is compared with shows in the
//              ratio.
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

namespace {

/// Sums `floats` elements in kStreams runs side by side, asking for each line `ahead` bytes before it is due (0: leaves that to
/// the hardware).
template <int kStreams>
void read_streams(const float* data, int64_t floats, int64_t ahead) {
  constexpr int64_t kLine = 16;  // floats
  const int64_t run = floats / kStreams / kLine * kLine;
  Vf sum[kStreams] = {};
  for (int64_t i = 0; i < run; i += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const float* p = data + s * run + i;
      if (ahead > 0) __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, 2);
      for (int64_t lane = 0; lane < kLine; lane += kLanes) sum[s] += load(p + lane);
    }
  }
  for (int s = 0; s < kStreams; ++s) {
    HEIRLOOM_KEEP(sum[s])
  }
}

template <int kStreams>
double read_rate(const float* data, int64_t floats, int64_t ahead) {
  const double start = omp_get_wtime();
#pragma omp parallel
  {
    const int64_t share = floats / omp_get_num_threads();
    read_streams<kStreams>(data + share * omp_get_thread_num(), share, ahead);
  }
  return static_cast<double>(floats) * 4 / (omp_get_wtime() - start);
}

}  // namespace

double measure_read(const float* data, int64_t floats) {
  double best = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (const int64_t ahead : {0, 4096, 16384}) {
      for (const double rate :
           {read_rate<1>(data, floats, ahead), read_rate<4>(data, floats, ahead)}) {
        best = rate > best ? rate : best;
      }
    }
  }
  return best;
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
