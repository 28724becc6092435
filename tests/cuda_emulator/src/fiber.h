// SPDX-License-Identifier: Apache-2.0
//
// Stacks to run on, and going from one to another.
#pragma once

#include <cstddef>
#include <vector>

namespace heirloom::emulator {

struct Fiber {
  void* sp = nullptr;              // where it stopped
  unsigned char* stack = nullptr;  // lowest usable byte
  void* fake_stack = nullptr;      // AddressSanitizer's
};

/// The fibers of one host thread. Each stack has an inaccessible page at the end it grows towards.
class Fibers {
 public:
  static constexpr size_t kPage = 4096;
  /// Frames of sanitized code are large; pages that nobody touches cost nothing.
  static constexpr size_t kStackBytes = 256 << 10;

  /// At most `most` at a time; each begins with `entry`, which does not return.
  Fibers(size_t most, void (*entry)());
  ~Fibers();
  Fibers(const Fibers&) = delete;

  const unsigned char* begin() const { return stacks_; }
  size_t bytes() const { return most_ * kStackBytes; }

  /// The caller is the host; no fiber is in use.
  void reset();
  /// One that has not begun.
  Fiber* take();
  /// To be taken again as soon as the caller has left it for good.
  void give_back(Fiber* fiber) { free_.push_back(fiber); }
  Fiber* current() { return current_; }

  /// Goes on with `next`; returns when somebody comes back.
  void switch_to(Fiber* next);
  /// Nobody will come back.
  [[noreturn]] void leave_for(Fiber* next);
  [[noreturn]] void leave_for_host() { leave_for(&host_); }
  /// The first thing `entry` does.
  void entered();
  /// After fibers were left in the middle of functions.
  void forget_frames();

 private:
  void before_switch(void** fake_stack, const Fiber& next);
  void after_switch(void* fake_stack);

  size_t most_;
  void (*entry_)();
  unsigned char* stacks_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> free_;
  Fiber host_;
  void* left_ = nullptr;
  Fiber* current_ = &host_;
  const void* host_bottom_ = nullptr;
  size_t host_bytes_ = 0;
};

}  // namespace heirloom::emulator
