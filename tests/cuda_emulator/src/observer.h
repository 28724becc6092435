// SPDX-License-Identifier: Apache-2.0
//
// Between the engine's callbacks and the compiler's hooks on one side, the shadow and the traffic
// model on the other.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "engine.h"
#include "instrument.h"
#include "shadow.h"
#include "traffic.h"

namespace heirloom::emulator {

/// A kind of access at one place of the program.
struct Place {
  uintptr_t pc = 0;
  Space space = Space::kGlobal;
  Touch touch = Touch::kRead;
  bool matrix = false;
};

/// A finding before its lines are looked up.
struct RawFinding {
  Finding::Kind kind;
  std::string kernel, what, other;  ///< sentences around the two lines
  uint32_t place = 0, other_place = 0;
  uint64_t count = 0;
};

class Observer final : public Instrument {
 public:
  static Observer& instance();

  void kernel_begin() override;
  void kernel_end() override;
  void block_begin() override;
  void block_end() override;
  void block_barrier(const void* pc) override;
  void warp_barrier(uint32_t warp, uint32_t mask, const void* pc) override;
  void fence(bool device, const void* pc) override;
  void access(const void* address, size_t bytes, AccessKind kind, const void* pc) override;
  void matrix_row(const void* row, int matrix, const void* pc) override;
  void atomic(const void* address, size_t bytes, const void* pc) override;
  void copy_begin(void* shared, const void* global, size_t bytes, const void* pc) override;
  void copy_end(void* shared, const void* global, size_t bytes, const void* pc) override;
  void memory_written(const void* data, size_t bytes) override;

  /// From the compiler's hooks: most are accesses to the thread's own stack.
  void hook(uintptr_t address, size_t bytes, Touch touch, const void* pc) {
    if (!inside_ || address - stack_.begin < stack_bytes_) return;
    const Deaf deaf(inside_);
    observe(address, bytes, touch, pc, false);
  }

  void watch_traffic(bool on) { traffic_ = on; }
  std::vector<Finding> take_report();
  std::vector<KernelTraffic> take_traffic();

 private:
  struct Memory;  // the shadow of an allocation
  // What the emulator itself calls may be compiled with hooks: they must not come back.
  struct Deaf {
    explicit Deaf(bool& f) : flag(f), was(f) { flag = false; }
    ~Deaf() { flag = was; }
    Deaf(const Deaf&) = delete;
    bool& flag;
    bool was;
  };
  struct Stat {
    uint64_t accesses = 0;
    uint32_t bytes = 0;
    Units units;
  };
  struct Kernel {
    KernelTraffic totals;
    std::vector<Stat> stats;  // by place
  };

  void observe(uintptr_t address, size_t bytes, Touch touch, const void* pc, bool matrix,
               bool copy = false);
  uint32_t place(const void* pc, Space space, Touch touch, bool matrix);
  Memory* memory_of(uintptr_t address, size_t bytes);
  void check(Shadow& shadow, uintptr_t address, size_t bytes, Touch touch, uint32_t place,
             unsigned thread, bool copy);
  void count_sectors(Memory& memory, uintptr_t address, size_t bytes, Touch touch);
  void count(uint32_t place, const WarpAccess& access);
  [[noreturn]] void out_of_bounds(const std::string& where, uint32_t place, size_t bytes,
                                  const void* pc);
  void report(Finding::Kind kind, uint32_t place, uint32_t other_place, std::string what,
              std::string other);
  std::string describe(uintptr_t address) const;
  std::string thread_text(uint64_t block, int thread) const;

  bool inside_ = false;
  bool traffic_ = false;
  ByteRange stack_, arguments_, shared_, static_shared_;
  uintptr_t stack_bytes_ = 0;
  unsigned threads_ = 0;

  Order order_;
  std::unique_ptr<Shadow> shared_shadow_, static_shadow_;
  std::vector<std::unique_ptr<Memory>> memories_;  // by allocation
  Memory* last_memory_ = nullptr;

  std::vector<Place> places_;
  std::vector<uint64_t> place_keys_;  // hash table
  std::vector<uint32_t> place_ids_;

  std::vector<WarpRecorder> recorders_;
  std::map<std::string, Kernel> kernels_;
  Kernel* kernel_ = nullptr;
  uint32_t launch_ = 0;
  uint64_t dram_read_ = 0, dram_written_ = 0;

  std::map<std::tuple<Finding::Kind, uint32_t, uint32_t>, RawFinding> findings_;
};

}  // namespace heirloom::emulator
