// SPDX-License-Identifier: Apache-2.0
//
// Computes     x[i] = table[token[i]] (+ position_table[position[i]]); backward adds dx rows into
//              the float32 gradients.
// Shapes       tokens, positions (N); tables (V, C), (P, C); x, dx (N, C).
// Layout       contiguous rows.
// Saved        tokens, positions.
// Work         forward: rows in static partitions. Backward: each thread owns a range of columns and
//              walks all rows.
// Bytes        forward read NC (+ NC) + 4 N, write NC; backward read NC (T) + NC (A) + 4 N, write NC
//              (A); twice with positions
// FLOPs        forward NC with positions, else 0; backward NC (2 NC with positions)
// Precision    sums in float32.
// Determinism  rows are added in token order for any number of threads.
// Limits       tokens and positions are trusted.
// Source       -
#include "heirloom/kernels/embedding.h"

#include <omp.h>

#include <cstring>

#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

template <class T>
void embedding_forward(const EmbeddingForwardArgs& a, Stream) {
  const int64_t c = a.c;
#pragma omp parallel for schedule(static) if (a.n * c > kParallelElements)
  for (int64_t i = 0; i < a.n; ++i) {
    const T* row = ptr<T>(a.table) + a.tokens[i] * c;
    T* x = ptr<T>(a.x) + i * c;
    if (!a.position_table) {
      std::memcpy(x, row, static_cast<size_t>(c) * sizeof(T));
      continue;
    }
    const T* position = ptr<T>(a.position_table) + a.positions[i] * c;
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) x[j] = from_float<T>(to_float(row[j]) + to_float(position[j]));
  }
}

template <class T>
void embedding_backward(const EmbeddingBackwardArgs& a, Stream) {
  constexpr int64_t kLine = 16;  // columns are dealt out in cache lines of float32
  const int64_t c = a.c, lines = (c + kLine - 1) / kLine;
#pragma omp parallel if (a.n * c > kParallelElements)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t j0 = lines * thread / threads * kLine;
    const int64_t last = lines * (thread + 1) / threads * kLine;
    const int64_t j1 = last < c ? last : c;
    for (int64_t i = 0; i < a.n; ++i) {
      const T* dx = ptr<T>(a.dx) + i * c;
      float* to = ptr<float>(a.dtable) + a.tokens[i] * c;
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) to[j] += to_float(dx[j]);
      if (!a.dposition_table) continue;
      float* position = ptr<float>(a.dposition_table) + a.positions[i] * c;
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) position[j] += to_float(dx[j]);
    }
  }
}

}  // namespace

void register_embedding() {
  embedding_forward_table().set(DeviceKind::kCpu, Dtype::kFloat32, embedding_forward<float>);
  embedding_forward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, embedding_forward<bfloat16>);
  embedding_backward_table().set(DeviceKind::kCpu, Dtype::kFloat32, embedding_backward<float>);
  embedding_backward_table().set(DeviceKind::kCpu, Dtype::kBFloat16, embedding_backward<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
