// SPDX-License-Identifier: Apache-2.0
//
// Every PTX instruction that kernels use, and nothing else that depends on who compiles: nvcc sees inline assembly, g++ the
// emulator's functions of the same meaning. Operands travel by value, so that register arrays stay in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "heirloom/core/dtype.h"

#if defined(__CUDACC__)

// Dynamic shared memory, 128-byte aligned.
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]

#else
#include <emulator/ptx.h>

#define DYN_SMEM(name) unsigned char* const name = ::heirloom::emulator::dynamic_shared()

#endif

namespace heirloom::cuda {

/// 32-bit registers of two bfloat16 each; float32 accumulators. Layouts: PTX ISA, mma.m16n8k16.
struct Fragment2 {
  uint32_t x[2];
};
struct Fragment4 {
  uint32_t x[4];
};
struct Accumulator {
  float x[4];
};

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Copies kBytes from global to shared memory without registers; zeros where !valid.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(read), "n"(kBytes)
                 : "memory");
  }
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Until at most kPending of the newest groups are on their way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ Fragment4 ldmatrix_x4(const void* row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment4 ldmatrix_x4_trans(const void* row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment2 ldmatrix_x2(const void* row) {
  Fragment2 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(f.x[0]), "=r"(f.x[1])
               : "r"(shared_address(row))
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment2 ldmatrix_x2_trans(const void* row) {
  Fragment2 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(f.x[0]), "=r"(f.x[1])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

/// c + a b: a 16x16 row-major, b 16x8 column-major, both bfloat16.
__device__ __forceinline__ Accumulator mma_m16n8k16(Fragment4 a, Fragment2 b, Accumulator c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
  return c;
}

/// Rounds to nearest even; `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ bfloat16 to_bf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(bits) : "f"(x));
  bfloat16 result;
  result.bits = bits;
  return result;
}
/// 2^x within 2 units in the last place; subnormal results are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint4 load_16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ uint2 load_8(const void* p) { return *static_cast<const uint2*>(p); }
__device__ __forceinline__ uint32_t load_4(const void* p) {
  return *static_cast<const uint32_t*>(p);
}
__device__ __forceinline__ void store_16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }
__device__ __forceinline__ void store_8(void* p, uint2 v) { *static_cast<uint2*>(p) = v; }
__device__ __forceinline__ void store_4(void* p, uint32_t v) { *static_cast<uint32_t*>(p) = v; }
/// Read or written once: first to leave the caches.
__device__ __forceinline__ uint4 load_16_streaming(const void* p) {
  return __ldcs(static_cast<const uint4*>(p));
}
__device__ __forceinline__ void store_16_streaming(void* p, uint4 v) {
  __stcs(static_cast<uint4*>(p), v);
}

#else

using emulator::Where;

template <int kBytes>
__forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid);
}
__forceinline__ void cp_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
__forceinline__ void cp_async_wait() {
  emulator::copy_async_wait(kPending);
}
__forceinline__ Fragment4 ldmatrix_x4(const void* row, Where where = Where::current()) {
  const uint4 r = emulator::load_matrices(row, 4, false, where);
  return {{r.x, r.y, r.z, r.w}};
}
__forceinline__ Fragment4 ldmatrix_x4_trans(const void* row, Where where = Where::current()) {
  const uint4 r = emulator::load_matrices(row, 4, true, where);
  return {{r.x, r.y, r.z, r.w}};
}
__forceinline__ Fragment2 ldmatrix_x2(const void* row, Where where = Where::current()) {
  const uint4 r = emulator::load_matrices(row, 2, false, where);
  return {{r.x, r.y}};
}
__forceinline__ Fragment2 ldmatrix_x2_trans(const void* row, Where where = Where::current()) {
  const uint4 r = emulator::load_matrices(row, 2, true, where);
  return {{r.x, r.y}};
}
__forceinline__ Accumulator mma_m16n8k16(Fragment4 a, Fragment2 b, Accumulator c,
                                         Where where = Where::current()) {
  const float4 d = emulator::multiply_m16n8k16({a.x[0], a.x[1], a.x[2], a.x[3]}, {b.x[0], b.x[1]},
                                               {c.x[0], c.x[1], c.x[2], c.x[3]}, where);
  return {{d.x, d.y, d.z, d.w}};
}
__forceinline__ bfloat16 to_bf16(float x) { return bfloat16(x); }
__forceinline__ uint32_t pack_bf16x2(float low, float high) {
  return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}
__forceinline__ float exp2_approx(float x) {
  const float y = ::exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}
__forceinline__ uint4 load_16(const void* p) { return emulator::load_four_words(p); }
__forceinline__ uint2 load_8(const void* p) { return emulator::load_two_words(p); }
__forceinline__ uint32_t load_4(const void* p) { return emulator::load_word(p); }
__forceinline__ void store_16(void* p, uint4 v) { emulator::store_four_words(p, v); }
__forceinline__ void store_8(void* p, uint2 v) { emulator::store_two_words(p, v); }
__forceinline__ void store_4(void* p, uint32_t v) { emulator::store_word(p, v); }
__forceinline__ uint4 load_16_streaming(const void* p) { return emulator::load_four_words(p); }
__forceinline__ void store_16_streaming(void* p, uint4 v) { emulator::store_four_words(p, v); }

#endif

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ float to_float(bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(float x) { return x; }

}  // namespace heirloom::cuda
