// SPDX-License-Identifier: Apache-2.0
//
// N neighbouring elements at a time, in accesses of up to 16 bytes.
#pragma once

#include <initializer_list>

#include "kernels/cuda/common/dtype.cuh"

namespace heirloom::cuda {

template <class T, int N>
struct Pack {
  float x[N];
};

/// Whole accesses: p is aligned to min(16, N sizeof(T)) bytes.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  Pack<T, N> r;
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  if constexpr (N == 1) {
    r.x[0] = load(p, 0);
  } else if constexpr (kBytes % 16 == 0) {
    constexpr int kPart = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < N / kPart; ++i) {
      const uint4 v = load_16(p + i * kPart);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) {
          r.x[i * kPart + j] = __uint_as_float(words[j]);
        } else {
          r.x[i * kPart + 2 * j] = bf16_low(words[j]);
          r.x[i * kPart + 2 * j + 1] = bf16_high(words[j]);
        }
      }
    }
  } else if constexpr (kBytes == 8) {
    const uint2 v = load_8(p);
    if constexpr (sizeof(T) == 4) {
      r.x[0] = __uint_as_float(v.x);
      r.x[1] = __uint_as_float(v.y);
    } else {
      r.x[0] = bf16_low(v.x);
      r.x[1] = bf16_high(v.x);
      r.x[2] = bf16_low(v.y);
      r.x[3] = bf16_high(v.y);
    }
  } else {
    static_assert(kBytes == 4);
    const uint32_t v = load_4(p);
    r.x[0] = bf16_low(v);
    r.x[1] = bf16_high(v);
  }
  return r;
}

template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& r) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  if constexpr (N == 1) {
    store(p, 0, r.x[0]);
  } else if constexpr (kBytes % 16 == 0) {
    constexpr int kPart = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < N / kPart; ++i) {
      const float* x = r.x + i * kPart;
      if constexpr (sizeof(T) == 4) {
        store_16(p + i * kPart, make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]),
                                           __float_as_uint(x[2]), __float_as_uint(x[3])));
      } else {
        store_16(p + i * kPart, make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]),
                                           pack_bf16x2(x[4], x[5]), pack_bf16x2(x[6], x[7])));
      }
    }
  } else if constexpr (kBytes == 8) {
    if constexpr (sizeof(T) == 4) {
      store_8(p, make_uint2(__float_as_uint(r.x[0]), __float_as_uint(r.x[1])));
    } else {
      store_8(p, make_uint2(pack_bf16x2(r.x[0], r.x[1]), pack_bf16x2(r.x[2], r.x[3])));
    }
  } else {
    static_assert(kBytes == 4);
    store_4(p, pack_bf16x2(r.x[0], r.x[1]));
  }
}

/// The largest N in {16 / sizeof(T), ..., 2, 1} such that N elements are one aligned access at every pointer
/// (null ones do not count) and N divides every stride and width.
template <class T>
int vector_width(std::initializer_list<const void*> pointers,
                 std::initializer_list<int64_t> strides) {
  constexpr int64_t kSize = sizeof(T);
  int64_t n = 16 / kSize;
  for (const void* p : pointers) {
    while (n > 1 && reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(n * kSize) != 0) n /= 2;
  }
  for (const int64_t stride : strides) {
    while (n > 1 && stride % n != 0) n /= 2;
  }
  return static_cast<int>(n);
}

}  // namespace heirloom::cuda
