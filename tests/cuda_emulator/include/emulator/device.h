// SPDX-License-Identifier: Apache-2.0
//
// The device side of CUDA C++ as g++ sees it: keywords, vector types, built-in variables and
// functions. What is missing here is missing on purpose: kernels that use it do not compile.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
// One copy per host thread, which runs one block at a time; at block scope it implies static.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// clang-format off
struct alignas(8) int2 { int x, y; };
struct int3 { int x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned int x, y; };
struct uint3 { unsigned int x, y, z; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
// clang-format on
constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int3 make_int3(int x, int y, int z) { return {x, y, z}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float3 make_float3(float x, float y, float z) { return {x, y, z}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
constexpr double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
      : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Constant here, so that reading them is no access to watch; the engine defines them without const.
// A thread never sees one of them change.
extern __thread const uint3 threadIdx;
extern __thread const uint3 blockIdx;
extern __thread const uint3 blockDim;
extern __thread const uint3 gridDim;
inline constexpr int warpSize = 32;

namespace heirloom::emulator {

/// The line that calls: the meetings of threads compare it.
using Where = std::source_location;

void block_barrier(Where where);
enum class Count : uint8_t { kAll, kAny, kSum };
int block_count(bool predicate, Count count, Where where);
void warp_barrier(unsigned mask, Where where);
enum class Shuffle : uint8_t { kIndex, kXor, kUp, kDown };
uint64_t shuffle(unsigned mask, uint64_t value, int argument, int width, Shuffle kind, Where where);
unsigned vote(unsigned mask, bool predicate, Where where);
enum class Reduction : uint8_t { kAdd, kMinSigned, kMaxSigned, kMinUnsigned, kMaxUnsigned };
unsigned reduce(unsigned mask, unsigned value, Reduction reduction, Where where);
void fence(bool device);
enum class Atomic : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompareAndSwap };
template <class T>
T atomic(T* address, T value, T compare, Atomic operation);
extern template int atomic(int*, int, int, Atomic);
extern template unsigned atomic(unsigned*, unsigned, unsigned, Atomic);
extern template unsigned long long atomic(unsigned long long*, unsigned long long,
                                          unsigned long long, Atomic);
[[noreturn]] void trap();

template <class T>
__forceinline__ T shuffle_as(unsigned mask, T value, int argument, int width, Shuffle kind,
                             Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(static_cast<uint32_t>(
        shuffle(mask, std::bit_cast<uint32_t>(value), argument, width, kind, where)));
  } else {
    return std::bit_cast<T>(
        shuffle(mask, std::bit_cast<uint64_t>(value), argument, width, kind, where));
  }
}

}  // namespace heirloom::emulator

// Synchronisation and exchange. Only barriers order memory, shuffles and votes do not.

__forceinline__ void __syncthreads(
    heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  heirloom::emulator::block_barrier(where);
}
__forceinline__ int __syncthreads_and(
    int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::block_count(p != 0, heirloom::emulator::Count::kAll, where);
}
__forceinline__ int __syncthreads_or(
    int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::block_count(p != 0, heirloom::emulator::Count::kAny, where);
}
__forceinline__ int __syncthreads_count(
    int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::block_count(p != 0, heirloom::emulator::Count::kSum, where);
}
__forceinline__ void __syncwarp(
    unsigned mask = 0xffffffffu,
    heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  heirloom::emulator::warp_barrier(mask, where);
}

template <class T>
__forceinline__ T
__shfl_sync(unsigned mask, T v, int lane, int width = 32,
            heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::shuffle_as(mask, v, lane, width, heirloom::emulator::Shuffle::kIndex,
                                        where);
}
template <class T>
__forceinline__ T
__shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32,
                heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::shuffle_as(mask, v, lanes, width, heirloom::emulator::Shuffle::kXor,
                                        where);
}
template <class T>
__forceinline__ T
__shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
               heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::shuffle_as(mask, v, static_cast<int>(delta), width,
                                        heirloom::emulator::Shuffle::kUp, where);
}
template <class T>
__forceinline__ T
__shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                 heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::shuffle_as(mask, v, static_cast<int>(delta), width,
                                        heirloom::emulator::Shuffle::kDown, where);
}

__forceinline__ unsigned __ballot_sync(
    unsigned mask, int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::vote(mask, p != 0, where);
}
__forceinline__ int __any_sync(
    unsigned mask, int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::vote(mask, p != 0, where) != 0;
}
__forceinline__ int __all_sync(
    unsigned mask, int p, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::vote(mask, p != 0, where) == mask;
}

__forceinline__ unsigned __reduce_add_sync(
    unsigned mask, unsigned v,
    heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::reduce(mask, v, heirloom::emulator::Reduction::kAdd, where);
}
__forceinline__ int __reduce_add_sync(
    unsigned mask, int v, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return static_cast<int>(heirloom::emulator::reduce(mask, static_cast<unsigned>(v),
                                                     heirloom::emulator::Reduction::kAdd, where));
}
__forceinline__ unsigned __reduce_min_sync(
    unsigned mask, unsigned v,
    heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::reduce(mask, v, heirloom::emulator::Reduction::kMinUnsigned, where);
}
__forceinline__ unsigned __reduce_max_sync(
    unsigned mask, unsigned v,
    heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return heirloom::emulator::reduce(mask, v, heirloom::emulator::Reduction::kMaxUnsigned, where);
}
__forceinline__ int __reduce_min_sync(
    unsigned mask, int v, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return static_cast<int>(heirloom::emulator::reduce(
      mask, static_cast<unsigned>(v), heirloom::emulator::Reduction::kMinSigned, where));
}
__forceinline__ int __reduce_max_sync(
    unsigned mask, int v, heirloom::emulator::Where where = heirloom::emulator::Where::current()) {
  return static_cast<int>(heirloom::emulator::reduce(
      mask, static_cast<unsigned>(v), heirloom::emulator::Reduction::kMaxSigned, where));
}

__forceinline__ void __threadfence() { heirloom::emulator::fence(true); }
__forceinline__ void __threadfence_block() { heirloom::emulator::fence(false); }
[[noreturn]] __forceinline__ void __trap() { heirloom::emulator::trap(); }

// Atomics on integers; there are none on floats, whose sums would depend on the order.
#define HEIRLOOM_EMULATOR_ATOMIC(name, operation, T)                             \
  __forceinline__ T name(T* address, T value) {                                  \
    return heirloom::emulator::atomic<T>(address, value, static_cast<T>(0),      \
                                         heirloom::emulator::Atomic::operation); \
  }
#define HEIRLOOM_EMULATOR_ATOMICS(name, operation)        \
  HEIRLOOM_EMULATOR_ATOMIC(name, operation, int)          \
  HEIRLOOM_EMULATOR_ATOMIC(name, operation, unsigned int) \
  HEIRLOOM_EMULATOR_ATOMIC(name, operation, unsigned long long)
HEIRLOOM_EMULATOR_ATOMICS(atomicAdd, kAdd)
HEIRLOOM_EMULATOR_ATOMICS(atomicMin, kMin)
HEIRLOOM_EMULATOR_ATOMICS(atomicMax, kMax)
HEIRLOOM_EMULATOR_ATOMICS(atomicAnd, kAnd)
HEIRLOOM_EMULATOR_ATOMICS(atomicOr, kOr)
HEIRLOOM_EMULATOR_ATOMICS(atomicXor, kXor)
HEIRLOOM_EMULATOR_ATOMICS(atomicExch, kExchange)
#undef HEIRLOOM_EMULATOR_ATOMICS
#undef HEIRLOOM_EMULATOR_ATOMIC
template <class T>
__forceinline__ T atomicCAS(T* address, T compare, T value) {
  return heirloom::emulator::atomic<T>(address, value, compare,
                                       heirloom::emulator::Atomic::kCompareAndSwap);
}

// Bits and numbers.

template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
constexpr unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
constexpr float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
constexpr int __float_as_int(float x) { return std::bit_cast<int>(x); }
constexpr float __int_as_float(int x) { return std::bit_cast<float>(x); }
constexpr long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
constexpr double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
constexpr unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
constexpr int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<long long>(a) * b) >> 32);
}
constexpr unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
constexpr int __popc(unsigned x) { return std::popcount(x); }
constexpr int __popcll(unsigned long long x) { return std::popcount(x); }
constexpr int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
constexpr int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
constexpr int __ffs(int x) { return __builtin_ffs(x); }
constexpr int __ffsll(long long x) { return __builtin_ffsll(x); }
constexpr unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
constexpr unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>(
      (((static_cast<unsigned long long>(high) << 32 | low) << (by % 32)) >> 32));
}
constexpr unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (by % 32));
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// Not to be fused with what stands around them.
inline float __fmul_rn(float a, float b) { return __builtin_assoc_barrier(a * b); }
inline float __fadd_rn(float a, float b) { return __builtin_assoc_barrier(a + b); }
inline float __fsub_rn(float a, float b) { return __builtin_assoc_barrier(a - b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
constexpr int __float2int_rz(float x) { return static_cast<int>(x); }
constexpr float __int2float_rn(int x) { return static_cast<float>(x); }
constexpr float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
// The approximate functions; glibc has declared the names for its own use.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
#define __tanhf(x) tanhf(x)

#define HEIRLOOM_EMULATOR_MIN_MAX(T)                  \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
HEIRLOOM_EMULATOR_MIN_MAX(int)
HEIRLOOM_EMULATOR_MIN_MAX(unsigned int)
HEIRLOOM_EMULATOR_MIN_MAX(long)
HEIRLOOM_EMULATOR_MIN_MAX(unsigned long)
HEIRLOOM_EMULATOR_MIN_MAX(long long)
HEIRLOOM_EMULATOR_MIN_MAX(unsigned long long)
#undef HEIRLOOM_EMULATOR_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
