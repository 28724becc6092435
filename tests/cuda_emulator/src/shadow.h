// SPDX-License-Identifier: Apache-2.0
//
// Which accesses are ordered, and what was done to each byte: pure data structures behind the
// observer (observer.cpp). See instrument.h for the rules as a user meets them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace heirloom::emulator {

enum class Touch : uint8_t { kRead, kWrite, kAtomic };

/// When an access happened: enough to decide what it is ordered before.
struct Stamp {
  uint32_t epoch = 0;   ///< of its block: one number per barrier phase, unique in the process
  uint32_t clock = 0;   ///< of its warp: __syncwarp events so far
  uint16_t thread = 0;  ///< linear in its block
  uint16_t fences = 0;  ///< __threadfence calls of the thread before it
};

/// The order of events of one launch. Blocks run one after another, so that "earlier" is plain
/// time, and an earlier access is ordered before the current one iff synchronisation says so:
///   same block      a __syncthreads between, or a __syncwarp that both threads took part in;
///   two blocks      writer (barrier) __threadfence (barrier) atomic on X, then the reader's atomic
///                   on X, then (barrier in any place) its __threadfence: the ticket pattern;
///   two launches    always (streams and events are the runtime's business).
class Order {
 public:
  static constexpr unsigned kMaxThreads = 1024;

  void begin_launch();
  void begin_block(uint32_t block, unsigned threads);
  /// All living threads of the block met at a __syncthreads.
  void block_barrier();
  void warp_barrier(unsigned warp, uint32_t mask);
  void fence(unsigned thread);
  /// An atomic read-modify-write at device scope.
  void atomic(unsigned thread, uintptr_t address);

  Stamp now(unsigned thread) const {
    return {epoch_, clocks_[thread / 32], static_cast<uint16_t>(thread), fences_[thread]};
  }
  uint32_t epoch() const { return epoch_; }
  uint32_t launch_epoch() const { return launch_epoch_; }
  uint32_t block() const { return block_; }
  uint32_t block_of(uint32_t epoch) const { return epochs_[epoch - launch_epoch_].block; }

  bool ordered(const Stamp& earlier, unsigned thread) const;
  /// All reads of a set of lanes of one warp.
  bool reads_ordered(uint32_t epoch, uint32_t clock, unsigned warp, uint32_t lanes,
                     unsigned thread) const;
  /// Whether this thread saw every block that ran before it pass its ticket.
  bool all_blocks_ordered(unsigned thread) const;
  /// Whether this thread knows of an atomic on `address` that came after those of `block`.
  bool saw_atomics(uintptr_t address, uint32_t block, unsigned thread) const;
  /// The part of `lanes` that `thread` has not synchronised with since `clock`.
  uint32_t unordered_lanes(unsigned thread, uint32_t lanes, uint32_t clock) const;

 private:
  struct Epoch {
    uint32_t block, phase;
  };
  // What an atomic publishes: everything of phases before `phase`, of `thread` what precedes its
  // fence number `fences`, of every thread what precedes the fences in `earlier`.
  struct Release {
    uint32_t position, phase;
    uint16_t thread, fences;
    std::shared_ptr<const std::vector<uint16_t>> earlier;
  };
  struct AtomicLog {
    uint32_t length = 0;
    struct Block {
      uint32_t last = 0;
      std::vector<Release> releases;
    };
    std::unordered_map<uint32_t, Block> by_block;
    uint32_t releasing_blocks = 0;
  };
  struct Acquisition {
    uintptr_t address;
    const AtomicLog* log;
    uint32_t length;
  };
  struct Acquired {
    std::vector<Acquisition> pending;  // atomic done, fence to come
    std::vector<Acquisition> visible;
  };

  bool covers(const Acquired& acquired, uint32_t block, uint32_t phase, const Stamp* stamp) const;

  uint32_t next_epoch_ = 1, epoch_ = 0, launch_epoch_ = 1, block_ = 0, phase_ = 0;
  uint32_t blocks_begun_ = 0;
  unsigned threads_ = 0;
  std::vector<Epoch> epochs_;  // of this launch
  std::array<uint32_t, kMaxThreads / 32> clocks_{};
  std::vector<std::array<uint32_t, 32>> seen_;  // [thread][lane of its warp]
  std::array<uint16_t, kMaxThreads> fences_{};
  std::array<uint32_t, kMaxThreads> fenced_phase_{};  // phases below it are fenced by the thread
  uint32_t block_fenced_phase_ = 0;                   // by any thread, in an earlier phase
  bool any_fence_ = false;
  std::shared_ptr<const std::vector<uint16_t>> earlier_fences_;
  std::vector<Acquired> acquired_;
  Acquired block_acquired_;
  bool any_acquired_ = false;
  std::unordered_map<uintptr_t, AtomicLog> atomics_;
};

/// The last write and the last reads of a word of memory.
struct Cell {
  uint32_t write_epoch = 0, write_clock = 0;
  uint16_t write_thread = 0, write_fences = 0;
  uint32_t write_pc : 24;
  uint32_t flags : 8;
  uint32_t read_epoch = 0, read_clock = 0, read_lanes = 0;
  uint32_t read_pc : 24;
  uint32_t read_warp : 8;

  Cell() : write_pc(0), flags(0), read_pc(0), read_warp(0) {}
  void drop(uint32_t some) { flags &= ~some & 0xffu; }
};
constexpr uint32_t kPcMask = 0xffffffu;  ///< of the bits that a cell keeps
static_assert(sizeof(Cell) == 32);

struct Conflict {
  enum class With : uint8_t { kNothing, kWrite, kRead, kAtomic, kAsyncCopy };
  With with = With::kNothing;
  uint32_t pc = 0;
  uint32_t block = 0;
  int thread = -1;  ///< -1: several
  uintptr_t address = 0;
  explicit operator bool() const { return with != With::kNothing; }
};

/// The shadow of one range of memory: an allocation, or a block's shared memory. A cell stands for
/// four bytes until something narrower touches them, then for one.
class Shadow {
 public:
  Shadow(uintptr_t base, size_t bytes, bool shared);
  ~Shadow();
  Shadow(const Shadow&) = delete;

  bool contains(uintptr_t address, size_t bytes) const {
    return address >= base_ && address + bytes <= base_ + bytes_;
  }

  /// Records an access of `thread` and says what it conflicts with. [address, address + bytes) lies
  /// inside.
  Conflict access(const Order& order, unsigned thread, uintptr_t address, size_t bytes, Touch kind,
                  uint32_t pc);
  /// A copy that runs beside the thread: until it is completed nobody may touch its destination.
  Conflict begin_async_write(const Order& order, unsigned thread, uintptr_t address, size_t bytes,
                             uint32_t pc);
  void complete_async_write(const Order& order, unsigned thread, uintptr_t address, size_t bytes,
                            uint32_t pc);

  /// How many of the bytes were ever written (for shared memory: by this block).
  size_t written_bytes(uintptr_t address, size_t bytes) const;
  void mark_written(uintptr_t address, size_t bytes);
  /// A new block's shared memory: nothing is written there.
  void forget_contents(uintptr_t address, size_t bytes);

 private:
  static constexpr unsigned kAtomicWrite = 1, kManyWarps = 2, kManyBlocks = 4, kInFlight = 8,
                            kSplit = 16;
  using Quad = std::array<Cell, 4>;

  template <class F>
  void for_cells(uintptr_t address, size_t bytes, F f);
  bool write_ordered(const Order& order, unsigned thread, const Cell& cell, Touch kind,
                     uintptr_t access) const;
  Conflict touch(const Order& order, unsigned thread, Cell& cell, Touch kind, uint32_t pc,
                 uintptr_t access, uintptr_t address) const;
  bool reads_conflict(const Order& order, unsigned thread, const Cell& cell) const;
  Conflict describe(const Order& order, const Cell& cell, bool reads, uintptr_t address) const;

  uintptr_t base_;
  size_t bytes_;
  bool shared_;
  size_t cells_bytes_ = 0;
  Cell* cells_ = nullptr;
  std::vector<Quad> quads_;
  std::vector<size_t> split_;     // whose cells they are
  std::vector<uint8_t> written_;  // one bit per byte
};

}  // namespace heirloom::emulator
