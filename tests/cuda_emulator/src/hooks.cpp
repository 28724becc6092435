// SPDX-License-Identifier: Apache-2.0
//
// The functions that code compiled with -fsanitize=thread calls, which the sanitizer's library would
// define. Linked only where kernels are compiled so (instrument.h). This file itself is not.
#include "observer.h"

namespace {

using heirloom::emulator::Observer;
using heirloom::emulator::Touch;

inline void touched(const volatile void* address, size_t bytes, Touch touch, const void* pc) {
  static Observer& observer = Observer::instance();
  observer.hook(reinterpret_cast<uintptr_t>(address), bytes, touch, pc);
}

}  // namespace

#define HERE __builtin_return_address(0)
#define HOOK(bytes)                                                                        \
  void __tsan_read##bytes(void* a) { touched(a, bytes, Touch::kRead, HERE); }              \
  void __tsan_write##bytes(void* a) { touched(a, bytes, Touch::kWrite, HERE); }            \
  void __tsan_unaligned_read##bytes(void* a) { touched(a, bytes, Touch::kRead, HERE); }    \
  void __tsan_unaligned_write##bytes(void* a) { touched(a, bytes, Touch::kWrite, HERE); }  \
  void __tsan_volatile_read##bytes(void* a) { touched(a, bytes, Touch::kRead, HERE); }     \
  void __tsan_volatile_write##bytes(void* a) { touched(a, bytes, Touch::kWrite, HERE); }   \
  void __tsan_read##bytes##_pc(void* a, void* pc) { touched(a, bytes, Touch::kRead, pc); } \
  void __tsan_write##bytes##_pc(void* a, void* pc) { touched(a, bytes, Touch::kWrite, pc); }

#define ATOMIC_OPERATION(bits, T, name)                                       \
  T __tsan_atomic##bits##_##name(volatile void* a, T v, int) {                \
    return __atomic_##name(static_cast<volatile T*>(a), v, __ATOMIC_SEQ_CST); \
  }
#define ATOMIC_HOOKS(bits, T)                                                                     \
  T __tsan_atomic##bits##_load(const volatile void* a, int) {                                     \
    return __atomic_load_n(static_cast<const volatile T*>(a), __ATOMIC_SEQ_CST);                  \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile void* a, T v, int) {                                  \
    __atomic_store_n(static_cast<volatile T*>(a), v, __ATOMIC_SEQ_CST);                           \
  }                                                                                               \
  T __tsan_atomic##bits##_exchange(volatile void* a, T v, int) {                                  \
    return __atomic_exchange_n(static_cast<volatile T*>(a), v, __ATOMIC_SEQ_CST);                 \
  }                                                                                               \
  ATOMIC_OPERATION(bits, T, fetch_add)                                                            \
  ATOMIC_OPERATION(bits, T, fetch_sub)                                                            \
  ATOMIC_OPERATION(bits, T, fetch_and)                                                            \
  ATOMIC_OPERATION(bits, T, fetch_or)                                                             \
  ATOMIC_OPERATION(bits, T, fetch_xor)                                                            \
  ATOMIC_OPERATION(bits, T, fetch_nand)                                                           \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile void* a, void* expected, T v, int,  \
                                                     int) {                                       \
    return __atomic_compare_exchange_n(static_cast<volatile T*>(a), static_cast<T*>(expected), v, \
                                       false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                \
  }                                                                                               \
  bool __tsan_atomic##bits##_compare_exchange_weak(volatile void* a, void* expected, T v, int,    \
                                                   int) {                                         \
    return __atomic_compare_exchange_n(static_cast<volatile T*>(a), static_cast<T*>(expected), v, \
                                       true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
  }

extern "C" {

HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
void __tsan_read_range(void* a, size_t bytes) { touched(a, bytes, Touch::kRead, HERE); }
void __tsan_write_range(void* a, size_t bytes) { touched(a, bytes, Touch::kWrite, HERE); }

ATOMIC_HOOKS(8, uint8_t)
ATOMIC_HOOKS(16, uint16_t)
ATOMIC_HOOKS(32, uint32_t)
ATOMIC_HOOKS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void __tsan_init() { heirloom::emulator::instrument = &Observer::instance(); }

}  // extern "C"
