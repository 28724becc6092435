// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the emulator's switch between fibers is written for x86-64"
#endif

// Saves what a function must preserve on the stack in use, that stack's pointer at *from, and goes
// on where `to` was saved.
extern "C" void heirloom_fiber_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl heirloom_fiber_switch
.type heirloom_fiber_switch, @function
heirloom_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size heirloom_fiber_switch, .-heirloom_fiber_switch
)");

namespace heirloom::emulator {

Fibers::Fibers(size_t most, void (*entry)()) : most_(most), entry_(entry) {
  void* stacks =
      mmap(nullptr, bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  stacks_ = static_cast<unsigned char*>(stacks);
  fibers_.reserve(most);
  free_.reserve(most);
}

Fibers::~Fibers() { munmap(stacks_, bytes()); }

void Fibers::reset() {
  current_ = &host_;
  free_.clear();
  for (size_t i = fibers_.size(); i-- > 0;) free_.push_back(&fibers_[i]);
}

Fiber* Fibers::take() {
  if (free_.empty()) {
    Fiber f;
    f.stack = stacks_ + fibers_.size() * kStackBytes + kPage;
    if (mprotect(f.stack, kStackBytes - kPage, PROT_READ | PROT_WRITE) != 0) std::abort();
    fibers_.push_back(f);
    free_.push_back(&fibers_.back());
  }
  Fiber* f = free_.back();
  free_.pop_back();
  unsigned char* end = f->stack + (kStackBytes - kPage);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(end - 4 * kPage, 4 * kPage);  // who had it before never returned
#endif
  // Beginnings are spread over the lines of a page: else all would share a few sets of the cache.
  const size_t colour = static_cast<size_t>(f - fibers_.data()) % 16 * 192;
  void** top = reinterpret_cast<void**>(end - 64 - colour);
  *--top = nullptr;  // where the entry would return to
  *--top = reinterpret_cast<void*>(entry_);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f->sp = top;
  return f;
}

void Fibers::switch_to(Fiber* next) {
  Fiber* self = current_;
  current_ = next;
  before_switch(&self->fake_stack, *next);
  heirloom_fiber_switch(&self->sp, next->sp);
  after_switch(self->fake_stack);
}

void Fibers::leave_for(Fiber* next) {
  current_ = next;
  before_switch(nullptr, *next);
  heirloom_fiber_switch(&left_, next->sp);
  std::abort();
}

#if defined(__SANITIZE_ADDRESS__)
void Fibers::before_switch(void** fake_stack, const Fiber& next) {
  if (&next == &host_) {
    __sanitizer_start_switch_fiber(fake_stack, host_bottom_, host_bytes_);
  } else {
    __sanitizer_start_switch_fiber(fake_stack, next.stack, kStackBytes - kPage);
  }
}
void Fibers::after_switch(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
void Fibers::entered() {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (host_bottom_ != nullptr) return;
  host_bottom_ = bottom;  // the first to come is the host
  host_bytes_ = bytes;
}
void Fibers::forget_frames() {
  for (const Fiber& f : fibers_) __asan_unpoison_memory_region(f.stack, kStackBytes - kPage);
}
#else
void Fibers::before_switch(void**, const Fiber&) {}
void Fibers::after_switch(void*) {}
void Fibers::entered() {}
void Fibers::forget_frames() {}
#endif

}  // namespace heirloom::emulator
