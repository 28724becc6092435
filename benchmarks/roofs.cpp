// SPDX-License-Identifier: Apache-2.0
#include "roofs.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>

namespace heirloom::bench {
namespace {

constexpr int kChains = 12;  // independent accumulators: latency 4, two per cycle, and some slack
constexpr int64_t kSteps = 1 << 20;

// The chains start apart, or the compiler would fold them into one.
#define HEIRLOOM_FMA_LOOP(Vector, step)                                             \
  Vector sums[kChains];                                                             \
  for (int c = 0; c < kChains; ++c) sums[c] = Vector{} + x * static_cast<float>(c); \
  for (int64_t i = 0; i < kSteps; ++i) {                                            \
    _Pragma("GCC unroll 12") for (int c = 0; c < kChains; ++c) step;                \
  }                                                                                 \
  for (int c = 1; c < kChains; ++c) sums[0] += sums[c];                             \
  return sums[0][0];

[[gnu::target("avx2,fma")]] float fma_avx2(float x) {
  const __m256 a = _mm256_set1_ps(x), b = _mm256_set1_ps(0.5f);
  HEIRLOOM_FMA_LOOP(__m256, sums[c] = _mm256_fmadd_ps(sums[c], b, a))
}

[[gnu::target("avx512f")]] float fma_avx512(float x) {
  const __m512 a = _mm512_set1_ps(x), b = _mm512_set1_ps(0.5f);
  HEIRLOOM_FMA_LOOP(__m512, sums[c] = _mm512_fmadd_ps(sums[c], b, a))
}

[[gnu::target("avx512f,avx512bw,avx512vl,avx512bf16")]] float dot_bf16(float x) {
  const __m512bh a = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(x));
  HEIRLOOM_FMA_LOOP(__m512, sums[c] = _mm512_dpbf16_ps(sums[c], a, a))
}
#undef HEIRLOOM_FMA_LOOP

template <class F>
double best_seconds(int repeats, const F& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

double flops(float (*loop)(float), double per_step) {
  float sink = 0;
  const double seconds = best_seconds(3, [&] {
#pragma omp parallel reduction(+ : sink)
    sink += loop(1e-30f);
  });
  volatile float keep = sink;
  static_cast<void>(keep);
  return omp_get_max_threads() * static_cast<double>(kSteps) * kChains * per_step / seconds;
}

}  // namespace

Roofs measure_roofs() {
  Roofs roofs;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    roofs.float32_flops = flops(fma_avx2, 16);
  }
  if (__builtin_cpu_supports("avx512f")) {
    roofs.float32_flops = std::max(roofs.float32_flops, flops(fma_avx512, 32));
  }
  roofs.bfloat16_flops =
      __builtin_cpu_supports("avx512bf16") ? flops(dot_bf16, 64) : roofs.float32_flops;

  const int64_t n = int64_t{1} << 25;  // 256 MiB of doubles, beyond every cache
  const std::unique_ptr<double[]> x(new double[static_cast<size_t>(n)]);
  const std::unique_ptr<double[]> y(new double[static_cast<size_t>(n)]);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = y[static_cast<size_t>(i)] = 1.0;
  double sink = 0;
  const double bytes = static_cast<double>(n) * 8;
  roofs.read_bytes = bytes / best_seconds(5, [&] {
                       const double* p = x.get();
#pragma omp parallel for simd schedule(static) reduction(+ : sink)
                       for (int64_t i = 0; i < n; ++i) sink += p[i];
                     });
  roofs.copy_bytes = 2 * bytes / best_seconds(5, [&] {
                       const double* p = x.get();
                       double* q = y.get();
                       const double add = sink * 0;
#pragma omp parallel for simd schedule(static)
                       for (int64_t i = 0; i < n; ++i) q[i] = p[i] + add;
                     });
  return roofs;
}

}  // namespace heirloom::bench
