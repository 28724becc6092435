// SPDX-License-Identifier: Apache-2.0
//
// Computes     add: y += x or y = x between T and A; column_sum: db += sum of rows; dropout by
//              counters.
// Shapes       add (rows, cols) strided; column_sum dy (N, C), db (C); dropout (N, C).
// Layout       dropout may run in place.
// Saved        nothing; dropout's backward draws the same numbers again.
// Work         rows in static partitions; column_sum in reduction_chunks(n) chunks of rows, added up
//              in order.
// Bytes        add read x (+ y unless overwriting), write y; column_sum read NC (T) + C (A), write
//              C; dropout read and write NC
// FLOPs        add 1 per element (0 overwriting); column_sum NC; dropout NC
// Precision    sums in float32.
// Determinism  same bits for any number of threads.
// Limits       none.
// Source       Salmon et al., SC 2011 (Philox4x32-10).
#include "heirloom/kernels/elementwise.h"

#include "heirloom/kernels/norm.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/vector_math.h"

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

template <class X, class Y>
void add_rows(const AddArgs& a) {
  // A single long row is dealt out by blocks of columns.
  constexpr int64_t kBlock = 8192;
  const int64_t blocks = (a.cols + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (a.rows * a.cols > kParallelElements)
  for (int64_t index = 0; index < a.rows * blocks; ++index) {
    const int64_t i = index / blocks, j0 = index % blocks * kBlock;
    const int64_t j1 = j0 + kBlock < a.cols ? j0 + kBlock : a.cols;
    const X* x = ptr<X>(a.x) + i * a.x_stride;
    Y* y = ptr<Y>(a.y) + i * a.y_stride;
    if (a.overwrite) {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) y[j] = from_float<Y>(to_float(x[j]));
    } else {
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) y[j] = from_float<Y>(to_float(y[j]) + to_float(x[j]));
    }
  }
}

template <class T>
void add(const AddArgs& a, Stream) {
  if (a.x_is_accumulate_dtype) {
    a.y_is_accumulate_dtype ? add_rows<float, float>(a) : add_rows<float, T>(a);
  } else {
    a.y_is_accumulate_dtype ? add_rows<T, float>(a) : add_rows<T, T>(a);
  }
}

template <class T>
void column_sum(const ColumnSumArgs& a, Stream) {
  const int64_t c = a.c, chunks = reduction_chunks(a.n), rows = (a.n + chunks - 1) / chunks;
  float* partial = ptr<float>(a.workspace);
#pragma omp parallel for schedule(static) if (a.n * c > kParallelElements)
  for (int64_t k = 0; k < chunks; ++k) {
    float* to = partial + k * c;
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) to[j] = 0.0f;
    const int64_t end = (k + 1) * rows < a.n ? (k + 1) * rows : a.n;
    for (int64_t i = k * rows; i < end; ++i) {
      const T* dy = ptr<T>(a.dy) + i * c;
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) to[j] += to_float(dy[j]);
    }
  }
  float* db = ptr<float>(a.db);
  for (int64_t k = 0; k < chunks; ++k) {
    const float* from = partial + k * c;
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) db[j] += from[j];
  }
}

constexpr int64_t kGroups = kPhiloxGroup;

template <class T>
void dropout(const DropoutArgs& a, Stream) {
  const int64_t c = a.c, groups = (c + 3) / 4;
  // (bits >> 8) 2^-24 < rate  <=>  bits >> 8 < ceil(rate 2^24)
  const double scaled = a.rate * 16777216.0;
  const auto floor = static_cast<uint32_t>(scaled);
  const uint32_t threshold = floor + (static_cast<double>(floor) < scaled ? 1u : 0u);
  const float factor = static_cast<float>(1.0 / (1.0 - a.rate));
  const uint64_t key = a.philox_key();
  const uint32_t first_sequence = a.step_first_sequence();
#pragma omp parallel for schedule(static) if (a.n * c > kParallelElements / 8)
  for (int64_t i = 0; i < a.n; ++i) {
    const T* x = ptr<T>(a.x) + i * c;
    T* y = ptr<T>(a.y) + i * c;
    const uint32_t sequence = first_sequence + static_cast<uint32_t>(i / a.sequence_length);
    const auto first = static_cast<uint64_t>(i % a.sequence_length * groups);
    for (int64_t g0 = 0; g0 < groups; g0 += kGroups) {
      uint32_t words[4][kGroups];
      float kept[4 * kGroups];
      philox_group(key, first + static_cast<uint64_t>(g0), sequence, words);
#pragma omp simd
      for (int64_t g = 0; g < kGroups; ++g) {
        kept[4 * g] = words[0][g] >> 8 < threshold ? 0.0f : factor;
        kept[4 * g + 1] = words[1][g] >> 8 < threshold ? 0.0f : factor;
        kept[4 * g + 2] = words[2][g] >> 8 < threshold ? 0.0f : factor;
        kept[4 * g + 3] = words[3][g] >> 8 < threshold ? 0.0f : factor;
      }
      const int64_t j0 = 4 * g0, j1 = j0 + 4 * kGroups < c ? j0 + 4 * kGroups : c;
#pragma omp simd
      for (int64_t j = j0; j < j1; ++j) {
        // A dropped element is 0 whatever x holds.
        y[j] = from_float<T>(kept[j - j0] == 0.0f ? 0.0f : to_float(x[j]) * kept[j - j0]);
      }
    }
  }
}

}  // namespace

void register_elementwise() {
  add_table().set(DeviceKind::kCpu, Dtype::kFloat32, add<float>);
  add_table().set(DeviceKind::kCpu, Dtype::kBFloat16, add<bfloat16>);
  column_sum_table().set(DeviceKind::kCpu, Dtype::kFloat32, column_sum<float>);
  column_sum_table().set(DeviceKind::kCpu, Dtype::kBFloat16, column_sum<bfloat16>);
  dropout_table().set(DeviceKind::kCpu, Dtype::kFloat32, dropout<float>);
  dropout_table().set(DeviceKind::kCpu, Dtype::kBFloat16, dropout<bfloat16>);
}

}  // namespace heirloom::cpu::HEIRLOOM_ISA
