// SPDX-License-Identifier: Apache-2.0
//
// Computes     head_split: the merged projection taken apart by heads into their destinations, normalised (qk_norm) and rotated
//              (rope) on the way; backward: the gradients of all heads back into one merged row.
// Shapes       merged (N, W); heads of D columns; angle tables (P, R/2).
// Layout       routes travel with the launch. Runs of four elements where every pointer, stride and width allows, else of two
//              or one: 16 bytes of float32, of the angles and of wide gradients, 8 of bfloat16.
// Saved        nothing; backward with qk_norm reads the merged row again.
// Work         a few lanes per (row, head), each on runs of columns; with half-split rope a lane holds both partners of its
//              pairs. qk_norm's weight gradient: a block per (head, chunk of rows), the chunks then added in order.
// Bytes        forward: every head read and written once, N R of angles (A) read from cache; backward: gradients read in their
//              dtype, merged written (and read with qk_norm, twice; its gradients twice).
// FLOPs        3 per rotated element; qk_norm 4 forward, 10 backward.
// Precision    float32; one rounding to T at the end.
// Determinism  elementwise; row sums over the lanes of a head in one order; weight gradients by chunks fixed by N.
// Limits       384 routes; N x routes below 2^31.
// Source       Su et al., arXiv 2104.09864, section 3.4.2.
#include "heirloom/kernels/head_split.h"

#include <vector>

#include "heirloom/core/error.h"
#include "heirloom/kernels/norm.h"
#include "kernels/cuda/common/column_sums.cuh"
#include "kernels/cuda/common/reduce.cuh"

namespace heirloom::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kMaxRoutes = 384;

/// A head on either side: forward's destination, or backward's gradient.
struct Route {
  void* data;
  const void* norm_weight;
  int64_t row_stride;
  int32_t column;
  bool rotate, to_slots, is_wide;
};

struct HeadSplitParams {
  const void* merged;
  void* dmerged;
  const int32_t* positions;
  const int64_t* slots;
  const float* cosines;
  const float* sines;
  int64_t width;
  unsigned heads;  ///< rows x routes
  unsigned route_count;
  int head_dim, rotary_dim;
  RopeStyle style;
  float eps;
  Route routes[kMaxRoutes];
};

/// The columns that one lane takes at a time: a run at `a` and, where `paired`, one at `b`. With `rotated` they are turned by
/// the angles from `angle` on: pairs (a[i], b[i]), or neighbours within a.
struct Item {
  int a, b, angle;
  bool paired, rotated;
};

template <int kWidth>
__device__ __forceinline__ int item_count(const HeadSplitParams& p, bool rotate) {
  if (!rotate) return p.head_dim / kWidth;
  if (kWidth == 1 || p.style == RopeStyle::kHalf) {
    return p.rotary_dim / 2 / kWidth + (p.head_dim - p.rotary_dim) / kWidth;
  }
  return p.head_dim / kWidth;
}

template <int kWidth>
__device__ __forceinline__ Item item_at(const HeadSplitParams& p, bool rotate, int i) {
  if (!rotate) return {i * kWidth, 0, 0, false, false};
  const int half = p.rotary_dim / 2;
  if (p.style == RopeStyle::kHalf) {
    const int pairs = half / kWidth;
    if (i < pairs) return {i * kWidth, i * kWidth + half, i * kWidth, true, true};
    return {p.rotary_dim + (i - pairs) * kWidth, 0, 0, false, false};
  }
  if (kWidth == 1) {
    if (i < half) return {2 * i, 2 * i + 1, i, true, true};
    return {p.rotary_dim + (i - half), 0, 0, false, false};
  }
  return {i * kWidth, 0, i * kWidth / 2, false, i * kWidth < p.rotary_dim};
}

template <class T, int kWidth>
struct Values {
  Pack<T, kWidth> a, b;
};

/// Turns by the angles of `position`; backwards when `direction` is -1.
template <class T, int kWidth>
__device__ __forceinline__ void rotate(const HeadSplitParams& p, const Item& item, int64_t position,
                                       float direction, Values<T, kWidth>& v) {
  const int64_t at = position * (p.rotary_dim / 2) + item.angle;
  if (item.paired) {
    const Pack<float, kWidth> c = load_pack<float, kWidth>(p.cosines + at);
    const Pack<float, kWidth> s = load_pack<float, kWidth>(p.sines + at);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float x = v.a.x[e], y = v.b.x[e], sine = direction * s.x[e];
      v.a.x[e] = x * c.x[e] - y * sine;
      v.b.x[e] = x * sine + y * c.x[e];
    }
  } else if constexpr (kWidth > 1) {
    const Pack<float, kWidth / 2> c = load_pack<float, kWidth / 2>(p.cosines + at);
    const Pack<float, kWidth / 2> s = load_pack<float, kWidth / 2>(p.sines + at);
#pragma unroll
    for (int e = 0; e < kWidth / 2; ++e) {
      const float x = v.a.x[2 * e], y = v.a.x[2 * e + 1], sine = direction * s.x[e];
      v.a.x[2 * e] = x * c.x[e] - y * sine;
      v.a.x[2 * e + 1] = x * sine + y * c.x[e];
    }
  }
}

/// Sum over the kLanes lanes of a head; all of the warp calls it.
template <int kLanes>
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, lanes);
  }
  return x;
}

template <class T, int kWidth, int kLanes, bool kNorm>
__global__ void __launch_bounds__(kThreads)
    head_split_forward_lanes_kernel(const __grid_constant__ HeadSplitParams p) {
  constexpr int kHeads = kThreads / kLanes;
  const unsigned head = blockIdx.x * kHeads + threadIdx.x / kLanes;
  const bool active = head < p.heads;
  if (!kNorm && !active) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t i = active ? head / p.route_count : 0;
  const Route& route = p.routes[active ? head % p.route_count : 0];
  const T* from = static_cast<const T*>(p.merged) + i * p.width + route.column;
  const int items = active ? item_count<kWidth>(p, route.rotate) : 0;

  float rstd = 1.0f;
  if constexpr (kNorm) {
    float squares = 0;
    for (int k = lane; k < items; k += kLanes) {
      const Item item = item_at<kWidth>(p, route.rotate, k);
      const Pack<T, kWidth> a = load_pack<T, kWidth>(from + item.a);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) squares += a.x[e] * a.x[e];
      if (item.paired) {
        const Pack<T, kWidth> b = load_pack<T, kWidth>(from + item.b);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) squares += b.x[e] * b.x[e];
      }
    }
    rstd = 1.0f / sqrtf(head_sum<kLanes>(squares) / static_cast<float>(p.head_dim) + p.eps);
  }
  if (!active) return;
  const T* weight = kNorm ? static_cast<const T*>(route.norm_weight) : nullptr;
  const int64_t row = route.to_slots ? p.slots[i] : i;
  T* to = static_cast<T*>(route.data) + row * route.row_stride;
  for (int k = lane; k < items; k += kLanes) {
    const Item item = item_at<kWidth>(p, route.rotate, k);
    Values<T, kWidth> v;
    v.a = load_pack<T, kWidth>(from + item.a);
    if (item.paired) v.b = load_pack<T, kWidth>(from + item.b);
    if (kNorm && weight) {
      const Pack<T, kWidth> w = load_pack<T, kWidth>(weight + item.a);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) v.a.x[e] *= rstd * w.x[e];
      if (item.paired) {
        const Pack<T, kWidth> w2 = load_pack<T, kWidth>(weight + item.b);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) v.b.x[e] *= rstd * w2.x[e];
      }
    }
    if (item.rotated) rotate<T, kWidth>(p, item, p.positions[i], 1.0f, v);
    store_pack<T, kWidth>(to + item.a, v.a);
    if (item.paired) store_pack<T, kWidth>(to + item.b, v.b);
  }
}

/// A run of a gradient; zeros where there is none.
template <class T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load_gradient(const Route& route, int64_t at) {
  Pack<T, kWidth> r;
  if (route.data == nullptr) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) r.x[e] = 0;
  } else if (route.is_wide) {
    const Pack<float, kWidth> wide =
        load_pack<float, kWidth>(static_cast<const float*>(route.data) + at);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) r.x[e] = wide.x[e];
  } else {
    r = load_pack<T, kWidth>(static_cast<const T*>(route.data) + at);
  }
  return r;
}

/// The gradient of one item before rope.
template <class T, int kWidth>
__device__ __forceinline__ Values<T, kWidth> load_item(const HeadSplitParams& p, const Route& route,
                                                       const Item& item, int64_t i) {
  Values<T, kWidth> v;
  v.a = load_gradient<T, kWidth>(route, i * route.row_stride + item.a);
  if (item.paired) v.b = load_gradient<T, kWidth>(route, i * route.row_stride + item.b);
  if (item.rotated && route.data) rotate<T, kWidth>(p, item, p.positions[i], -1.0f, v);
  return v;
}

template <class T, int kWidth, int kLanes, bool kNorm>
__global__ void __launch_bounds__(kThreads, 4)
    head_split_backward_lanes_kernel(const __grid_constant__ HeadSplitParams p) {
  constexpr int kHeads = kThreads / kLanes;
  const unsigned head = blockIdx.x * kHeads + threadIdx.x / kLanes;
  const bool active = head < p.heads;
  if (!kNorm && !active) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t i = active ? head / p.route_count : 0;
  const Route& route = p.routes[active ? head % p.route_count : 0];
  const int items = active ? item_count<kWidth>(p, route.rotate) : 0;
  T* to = static_cast<T*>(p.dmerged) + i * p.width + route.column;
  const T* x = static_cast<const T*>(p.merged) + i * p.width + route.column;
  const T* weight = kNorm ? static_cast<const T*>(route.norm_weight) : nullptr;
  const bool norm = weight != nullptr && route.data != nullptr;

  float rstd = 1.0f, mean = 0.0f;
  if constexpr (kNorm) {
    float squares = 0, along = 0;
    for (int k = lane; norm && k < items; k += kLanes) {
      const Item item = item_at<kWidth>(p, route.rotate, k);
      const Values<T, kWidth> d = load_item<T, kWidth>(p, route, item, i);
      const auto add = [&](const Pack<T, kWidth>& dy, int column) {
        const Pack<T, kWidth> v = load_pack<T, kWidth>(x + column);
        const Pack<T, kWidth> w = load_pack<T, kWidth>(weight + column);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          squares += v.x[e] * v.x[e];
          along += dy.x[e] * w.x[e] * v.x[e];
        }
      };
      add(d.a, item.a);
      if (item.paired) add(d.b, item.b);
    }
    rstd = 1.0f / sqrtf(head_sum<kLanes>(squares) / static_cast<float>(p.head_dim) + p.eps);
    mean = head_sum<kLanes>(along) * rstd / static_cast<float>(p.head_dim);
  }
  for (int k = lane; k < items; k += kLanes) {
    const Item item = item_at<kWidth>(p, route.rotate, k);
    Values<T, kWidth> d = load_item<T, kWidth>(p, route, item, i);
    const auto finish = [&](Pack<T, kWidth>& dy, int column) {
      if (kNorm && norm) {
        const Pack<T, kWidth> v = load_pack<T, kWidth>(x + column);
        const Pack<T, kWidth> w = load_pack<T, kWidth>(weight + column);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          dy.x[e] = rstd * (dy.x[e] * w.x[e] - v.x[e] * rstd * mean);
        }
      }
      store_pack<T, kWidth>(to + column, dy);
    };
    finish(d.a, item.a);
    if (item.paired) finish(d.b, item.b);
  }
}

struct NormWeightParams {
  HeadSplitParams split;
  float* partial;  ///< (chunks, routes, D)
  int64_t n, rows_per_chunk;
};

/// Partial sums of dy * x * rstd over a chunk of rows for one route: a warp per row, a lane per 32nd column.
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_split_backward_norm_weight_kernel(const __grid_constant__ NormWeightParams params) {
  DYN_SMEM(memory);
  float* sums = reinterpret_cast<float*>(memory);  // [warp][D]
  const HeadSplitParams& p = params.split;
  const Route& route = p.routes[blockIdx.x];
  if (route.norm_weight == nullptr) return;
  constexpr int kWarps = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t begin = int64_t{blockIdx.y} * params.rows_per_chunk;
  const int64_t end =
      begin + params.rows_per_chunk < params.n ? begin + params.rows_per_chunk : params.n;
  float* mine = sums + warp * p.head_dim;
  for (int j = lane; j < p.head_dim; j += kWarp) mine[j] = 0;
  __syncwarp();
  const int items = item_count<1>(p, route.rotate);
  for (int64_t i = begin + warp; route.data && i < end; i += kWarps) {
    const T* x = static_cast<const T*>(p.merged) + i * p.width + route.column;
    float squares = 0;
    for (int j = lane; j < p.head_dim; j += kWarp) squares += load(x, j) * load(x, j);
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
    for (int k = lane; k < items; k += kWarp) {
      const Item item = item_at<1>(p, route.rotate, k);
      const Values<T, 1> d = load_item<T, 1>(p, route, item, i);
      mine[item.a] += d.a.x[0] * (load(x, item.a) * rstd);
      if (item.paired) mine[item.b] += d.b.x[0] * (load(x, item.b) * rstd);
    }
  }
  __syncthreads();
  float* to = params.partial + (int64_t{blockIdx.y} * p.route_count + blockIdx.x) * p.head_dim;
  for (int j = static_cast<int>(threadIdx.x); j < p.head_dim; j += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * p.head_dim + j];
    to[j] = sum;
  }
}

struct NormWeightEndParams {
  const float* partial;
  float* to;
  int64_t chunks, route_count, head_dim;
  int count;  ///< of routes that share the weight
  int16_t routes[kMaxRoutes];
};

__global__ void __launch_bounds__(kColumnSumColumns* kColumnSumSlices)
    head_split_backward_norm_end_kernel(const __grid_constant__ NormWeightEndParams p) {
  add_column_sums(p.partial, p.head_dim, p.chunks * p.count, p.head_dim, p.to,
                  [&p](int64_t m) { return m / p.count * p.route_count + p.routes[m % p.count]; });
}

/// What forward and backward have in common.
template <class Args>
HeadSplitParams common_params(const Args& a) {
  if (a.route_count > kMaxRoutes || a.n * a.route_count >= int64_t{1} << 31) {
    throw_error<UnsupportedError>(
        "[head_split] expected at most {} heads and 2^31 of them in all rows on CUDA; got {} heads "
        "of {} rows",
        kMaxRoutes, a.route_count, a.n);
  }
  HeadSplitParams p{};
  p.merged = a.merged;
  p.positions = a.positions;
  p.cosines = static_cast<const float*>(a.cosines);
  p.sines = static_cast<const float*>(a.sines);
  p.width = a.width;
  p.heads = static_cast<unsigned>(a.n * a.route_count);
  p.route_count = static_cast<unsigned>(a.route_count);
  p.head_dim = static_cast<int>(a.head_dim);
  p.rotary_dim = static_cast<int>(a.rotary_dim);
  p.style = a.style;
  p.eps = static_cast<float>(a.eps);
  return p;
}

/// True iff runs of `width` elements of `size` bytes are whole accesses at this head.
bool fits(const void* data, int64_t stride, int64_t size, int width) {
  const int64_t bytes = width * size < 16 ? width * size : 16;
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
         stride * size % bytes == 0;
}

/// Runs must not straddle what is treated differently.
bool divides(const HeadSplitParams& p, int width) {
  const int rotary = p.style == RopeStyle::kHalf ? p.rotary_dim / 2 : p.rotary_dim;
  if (p.head_dim % width || rotary % width || (p.head_dim - p.rotary_dim) % width) return false;
  // Angles: rows of R/2 floats, runs of `width` (half-split) or half as many.
  const int angles = p.style == RopeStyle::kHalf ? width : width / 2;
  return p.rotary_dim == 0 || (fits(p.cosines, p.rotary_dim / 2, 4, angles) &&
                               fits(p.sines, p.rotary_dim / 2, 4, angles));
}

template <class T, int kWidth, int kLanes>
void launch_lanes(const HeadSplitParams& p, bool backward, bool norm, Stream stream) {
  constexpr unsigned kHeads = kThreads / kLanes;
  const dim3 grid((p.heads + kHeads - 1) / kHeads);
  const auto kernel = backward ? (norm ? head_split_backward_lanes_kernel<T, kWidth, kLanes, true>
                                       : head_split_backward_lanes_kernel<T, kWidth, kLanes, false>)
                               : (norm ? head_split_forward_lanes_kernel<T, kWidth, kLanes, true>
                                       : head_split_forward_lanes_kernel<T, kWidth, kLanes, false>);
  launch(kernel, grid, dim3(kThreads), 0, stream, p);
}

template <class T, int kWidth>
void launch_width(const HeadSplitParams& p, bool backward, bool norm, Stream stream) {
  // Lanes enough for the items of a head that is rotated, a power of two; others may have twice as many.
  const bool paired = p.style == RopeStyle::kHalf || kWidth == 1;
  const int runs = (p.head_dim - (paired ? p.rotary_dim / 2 : 0) + kWidth - 1) / kWidth;
  if (runs <= 8) return launch_lanes<T, kWidth, 8>(p, backward, norm, stream);
  if (runs <= 16) return launch_lanes<T, kWidth, 16>(p, backward, norm, stream);
  launch_lanes<T, kWidth, 32>(p, backward, norm, stream);
}

template <class T>
void launch_split(const HeadSplitParams& p, bool backward, Stream stream) {
  // Not eight of bfloat16: eight angles are two accesses, each of which would use half of its sectors.
  constexpr int kSize = sizeof(T), kWidest = 4;
  const auto all_fit = [&](int width) {
    if (!divides(p, width) || !fits(p.merged, p.width, kSize, width) ||
        !fits(p.dmerged, p.width, kSize, width)) {
      return false;
    }
    for (unsigned r = 0; r < p.route_count; ++r) {
      const Route& route = p.routes[r];
      if (route.column % width || !fits(route.norm_weight, 0, kSize, width) ||
          !fits(route.data, route.row_stride, route.is_wide ? 4 : kSize, width)) {
        return false;
      }
    }
    return true;
  };
  bool norm = false;
  for (unsigned r = 0; r < p.route_count; ++r) norm |= p.routes[r].norm_weight != nullptr;
  if (all_fit(kWidest)) return launch_width<T, kWidest>(p, backward, norm, stream);
  if (all_fit(2)) return launch_width<T, 2>(p, backward, norm, stream);
  launch_width<T, 1>(p, backward, norm, stream);
}

template <class T>
void head_split_forward(const HeadSplitForwardArgs& a, Stream stream) {
  if (a.n == 0 || a.route_count == 0) return;
  HeadSplitParams p = common_params(a);
  p.slots = a.slots;
  for (int64_t r = 0; r < a.route_count; ++r) {
    const HeadRoute& from = a.routes[r];
    p.routes[r] = {from.data,
                   from.norm_weight,
                   from.row_stride,
                   static_cast<int32_t>(from.column),
                   from.rotate,
                   from.to_slots,
                   false};
  }
  launch_split<T>(p, false, stream);
}

template <class T>
void head_split_backward(const HeadSplitBackwardArgs& a, Stream stream) {
  if (a.n == 0 || a.route_count == 0) return;
  HeadSplitParams p = common_params(a);
  p.dmerged = a.dmerged;
  std::vector<float*> weights;  // gradients of qk_norm, each once
  for (int64_t r = 0; r < a.route_count; ++r) {
    const HeadGradRoute& from = a.routes[r];
    p.routes[r] = {const_cast<void*>(from.data),
                   from.norm_weight,
                   from.row_stride,
                   static_cast<int32_t>(from.column),
                   from.rotate,
                   false,
                   from.is_accumulate_dtype && sizeof(T) < 4};
    float* weight = static_cast<float*>(from.dnorm_weight);
    if (!from.norm_weight || !weight) continue;
    bool known = false;
    for (const float* w : weights) known |= w == weight;
    if (!known) weights.push_back(weight);
  }
  if (!weights.empty()) {  // before merged is written over
    const int64_t chunks = reduction_chunks(a.n, DeviceKind::kCuda);
    NormWeightParams w{p, static_cast<float*>(a.workspace), a.n, (a.n + chunks - 1) / chunks};
    launch(head_split_backward_norm_weight_kernel<T>,
           dim3(p.route_count, static_cast<unsigned>(chunks)), dim3(kThreads),
           static_cast<size_t>(kThreads / kWarp * p.head_dim) * sizeof(float), stream, w);
    for (float* weight : weights) {
      NormWeightEndParams end{};
      end.partial = w.partial;
      end.to = weight;
      end.chunks = chunks;
      end.route_count = a.route_count;
      end.head_dim = a.head_dim;
      for (int64_t r = 0; r < a.route_count; ++r) {
        if (a.routes[r].norm_weight && a.routes[r].dnorm_weight == weight) {
          end.routes[end.count++] = static_cast<int16_t>(r);
        }
      }
      launch(head_split_backward_norm_end_kernel, dim3(column_sum_blocks(a.head_dim)),
             column_sum_block(), kColumnSumSharedBytes, stream, end);
    }
  }
  launch_split<T>(p, true, stream);
}

}  // namespace

void register_head_split() {
  constexpr DeviceKind kDevice = DeviceKind::kCuda;
  head_split_forward_table().set(kDevice, Dtype::kFloat32, head_split_forward<float>);
  head_split_forward_table().set(kDevice, Dtype::kBFloat16, head_split_forward<bfloat16>);
  head_split_backward_table().set(kDevice, Dtype::kFloat32, head_split_backward<float>);
  head_split_backward_table().set(kDevice, Dtype::kBFloat16, head_split_backward<bfloat16>);
}

}  // namespace heirloom::cuda
