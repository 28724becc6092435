// SPDX-License-Identifier: Apache-2.0
#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace heirloom::emulator {

void Order::begin_launch() {
  launch_epoch_ = next_epoch_;
  epochs_.clear();
  atomics_.clear();
  blocks_begun_ = 0;
}

void Order::begin_block(uint32_t block, unsigned threads) {
  block_ = block;
  phase_ = 0;
  ++blocks_begun_;
  threads_ = threads;
  epoch_ = next_epoch_++;
  epochs_.push_back({block, 0});
  clocks_.fill(0);
  if (seen_.size() < threads) seen_.resize(threads);
  std::fill_n(seen_.begin(), threads, std::array<uint32_t, 32>{});
  std::fill_n(fences_.begin(), threads, uint16_t{0});
  std::fill_n(fenced_phase_.begin(), threads, 0u);
  block_fenced_phase_ = 0;
  any_fence_ = false;
  earlier_fences_.reset();
  acquired_.resize(std::max<size_t>(acquired_.size(), threads));
  if (any_acquired_) {
    for (Acquired& a : acquired_) a = {};
  }
  block_acquired_ = {};
  any_acquired_ = false;
}

void Order::block_barrier() {
  ++phase_;
  epoch_ = next_epoch_++;
  epochs_.push_back({block_, phase_});
  if (any_fence_) {
    for (unsigned t = 0; t < threads_; ++t) {
      block_fenced_phase_ = std::max(block_fenced_phase_, fenced_phase_[t]);
    }
    earlier_fences_ =
        std::make_shared<const std::vector<uint16_t>>(fences_.begin(), fences_.begin() + threads_);
  }
  if (any_acquired_) {
    for (Acquired& a : acquired_) {
      auto& b = block_acquired_;
      b.pending.insert(b.pending.end(), a.pending.begin(), a.pending.end());
      b.visible.insert(b.visible.end(), a.visible.begin(), a.visible.end());
      a = {};
    }
  }
}

void Order::warp_barrier(unsigned warp, uint32_t mask) {
  std::array<uint32_t, 32> merged{};
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1) || warp * 32 + l >= threads_) continue;
    for (unsigned i = 0; i < 32; ++i) {
      merged[i] = std::max(merged[i], seen_[warp * 32 + l][i]);
    }
  }
  const uint32_t clock = ++clocks_[warp];
  for (unsigned l = 0; l < 32; ++l) {
    if (mask >> l & 1) merged[l] = clock;
  }
  for (unsigned l = 0; l < 32; ++l) {
    if (mask >> l & 1 && warp * 32 + l < threads_) seen_[warp * 32 + l] = merged;
  }
}

void Order::fence(unsigned thread) {
  any_fence_ = true;
  ++fences_[thread];
  fenced_phase_[thread] = phase_;
  if (any_acquired_) {
    Acquired& own = acquired_[thread];
    own.visible.insert(own.visible.end(), own.pending.begin(), own.pending.end());
    own.pending.clear();
    own.visible.insert(own.visible.end(), block_acquired_.pending.begin(),
                       block_acquired_.pending.end());
  }
}

void Order::atomic(unsigned thread, uintptr_t address) {
  AtomicLog& log = atomics_[address];
  const uint32_t position = log.length++;
  acquired_[thread].pending.push_back({address, &log, position});
  any_acquired_ = true;
  AtomicLog::Block& mine = log.by_block[block_];
  mine.last = position;
  if (!any_fence_ || (fences_[thread] == 0 && !earlier_fences_)) return;
  if (mine.releases.empty()) ++log.releasing_blocks;
  mine.releases.push_back({position, std::max(fenced_phase_[thread], block_fenced_phase_),
                           static_cast<uint16_t>(thread), fences_[thread], earlier_fences_});
}

bool Order::covers(const Acquired& acquired, uint32_t block, uint32_t phase,
                   const Stamp* stamp) const {
  for (const Acquisition& a : acquired.visible) {
    const auto found = a.log->by_block.find(block);
    if (found == a.log->by_block.end()) continue;
    for (const Release& r : found->second.releases) {
      if (r.position >= a.length) break;
      if (phase < r.phase) return true;
      if (stamp == nullptr) continue;
      if (stamp->thread == r.thread && stamp->fences < r.fences) return true;
      if (r.earlier && stamp->fences < (*r.earlier)[stamp->thread]) return true;
    }
  }
  return false;
}

bool Order::ordered(const Stamp& earlier, unsigned thread) const {
  if (earlier.epoch < launch_epoch_) return true;
  const Epoch& e = epochs_[earlier.epoch - launch_epoch_];
  if (e.block != block_) {
    return any_acquired_ && (covers(acquired_[thread], e.block, e.phase, &earlier) ||
                             covers(block_acquired_, e.block, e.phase, &earlier));
  }
  if (earlier.epoch != epoch_ || earlier.thread == thread) return true;
  if (earlier.thread / 32 != thread / 32) return false;
  return seen_[thread][earlier.thread % 32] > earlier.clock;
}

uint32_t Order::unordered_lanes(unsigned thread, uint32_t lanes, uint32_t clock) const {
  uint32_t result = 0;
  const auto& seen = seen_[thread];
  for (uint32_t rest = lanes & ~(1u << thread % 32); rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (seen[lane] <= clock) result |= 1u << lane;
  }
  return result;
}

bool Order::reads_ordered(uint32_t epoch, uint32_t clock, unsigned warp, uint32_t lanes,
                          unsigned thread) const {
  if (epoch < launch_epoch_) return true;
  const Epoch& e = epochs_[epoch - launch_epoch_];
  if (e.block != block_) {
    if (!any_acquired_) return false;
    // Fences of single readers are not kept: a lone reader that fences and takes the ticket itself
    // counts as thread `lane` without fences.
    const Stamp stamp{epoch, clock, static_cast<uint16_t>(warp * 32 + std::countr_zero(lanes)), 0};
    const Stamp* lone = std::has_single_bit(lanes) ? &stamp : nullptr;
    return covers(acquired_[thread], e.block, e.phase, lone) ||
           covers(block_acquired_, e.block, e.phase, lone);
  }
  if (epoch != epoch_) return true;
  if (warp != thread / 32) return false;
  return unordered_lanes(thread, lanes, clock) == 0;
}

bool Order::all_blocks_ordered(unsigned thread) const {
  if (!any_acquired_) return false;
  const auto in = [&](const std::vector<Acquisition>& list) {
    return std::any_of(list.begin(), list.end(), [&](const Acquisition& a) {
      return a.log->releasing_blocks >= blocks_begun_ && a.length + 1 >= blocks_begun_;
    });
  };
  return in(acquired_[thread].visible) || in(block_acquired_.visible);
}

bool Order::saw_atomics(uintptr_t address, uint32_t block, unsigned thread) const {
  if (!any_acquired_) return false;
  const auto in = [&](const std::vector<Acquisition>& list) {
    return std::any_of(list.begin(), list.end(), [&](const Acquisition& a) {
      if (a.address != address) return false;
      const auto found = a.log->by_block.find(block);
      return found != a.log->by_block.end() && found->second.last < a.length;
    });
  };
  return in(acquired_[thread].pending) || in(acquired_[thread].visible) ||
         in(block_acquired_.pending) || in(block_acquired_.visible);
}

Shadow::Shadow(uintptr_t base, size_t bytes, bool shared)
    : base_(base & ~uintptr_t{3}), bytes_(bytes + (base & 3)), shared_(shared) {
  cells_bytes_ = (bytes_ / 4 + 1) * sizeof(Cell);
  // Zeroed by the system where it is touched, nowhere else.
  void* cells = mmap(nullptr, cells_bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (cells == MAP_FAILED) {
    std::perror("CUDA emulator: shadow memory");
    std::abort();
  }
  cells_ = static_cast<Cell*>(cells);
  written_.resize(bytes_ / 8 + 1);
}

Shadow::~Shadow() { munmap(cells_, cells_bytes_); }

// f(Cell&, address) for every cell of the range, which are split where the range cuts through them.
template <class F>
void Shadow::for_cells(uintptr_t address, size_t bytes, F f) {
  const uintptr_t end = address + bytes;
  while (address < end) {
    Cell& cell = cells_[(address - base_) / 4];
    const uintptr_t word_end = (address & ~uintptr_t{3}) + 4;
    if (word_end - address == 4 && word_end <= end && !(cell.flags & kSplit)) {
      f(cell, address);
      address = word_end;
      continue;
    }
    if (!(cell.flags & kSplit)) {
      Quad quad;
      quad.fill(cell);
      quads_.push_back(quad);
      split_.push_back((address - base_) / 4);
      cell = {};
      cell.flags = kSplit;
      cell.write_epoch = static_cast<uint32_t>(quads_.size() - 1);
    }
    Quad& quad = quads_[cell.write_epoch];
    for (; address < end && address < word_end; ++address) f(quad[address & 3], address);
  }
}

Conflict Shadow::describe(const Order& order, const Cell& cell, bool reads,
                          uintptr_t address) const {
  Conflict c;
  c.address = address;
  if (reads) {
    c.with = Conflict::With::kRead;
    c.pc = cell.read_pc;
    c.block = order.block_of(cell.read_epoch);
    if (!(cell.flags & (kManyWarps | kManyBlocks)) && std::has_single_bit(cell.read_lanes)) {
      c.thread = static_cast<int>(cell.read_warp * 32 + std::countr_zero(cell.read_lanes));
    }
    return c;
  }
  c.with = cell.flags & kInFlight      ? Conflict::With::kAsyncCopy
           : cell.flags & kAtomicWrite ? Conflict::With::kAtomic
                                       : Conflict::With::kWrite;
  c.pc = cell.write_pc;
  c.block = cell.write_epoch >= order.launch_epoch() ? order.block_of(cell.write_epoch) : 0;
  c.thread = cell.write_thread;
  return c;
}

bool Shadow::reads_conflict(const Order& order, unsigned thread, const Cell& cell) const {
  if (cell.read_epoch < order.launch_epoch() || cell.read_lanes == 0) return false;
  if (shared_ && order.block_of(cell.read_epoch) != order.block()) return false;
  if (cell.flags & kManyBlocks) return !order.all_blocks_ordered(thread);
  if (cell.flags & kManyWarps && cell.read_epoch == order.epoch()) return true;
  // Several warps of a block that has ended: only what orders the whole phase will do.
  const uint32_t lanes = cell.flags & kManyWarps ? 0xffffffffu : cell.read_lanes;
  return !order.reads_ordered(cell.read_epoch, cell.read_clock, cell.read_warp, lanes, thread);
}

bool Shadow::write_ordered(const Order& order, unsigned thread, const Cell& cell, Touch kind,
                           uintptr_t access) const {
  if (cell.write_epoch < order.launch_epoch()) return true;
  const uint32_t block = order.block_of(cell.write_epoch);
  if (shared_ && block != order.block()) return true;
  if (cell.flags & kInFlight) return false;
  if (cell.flags & kAtomicWrite) {
    if (kind == Touch::kAtomic) return true;
    if (block != order.block() && order.saw_atomics(access, block, thread)) return true;
  }
  return order.ordered({cell.write_epoch, cell.write_clock, cell.write_thread, cell.write_fences},
                       thread);
}

Conflict Shadow::touch(const Order& order, unsigned thread, Cell& cell, Touch kind, uint32_t pc,
                       uintptr_t access, uintptr_t address) const {
  Conflict conflict;
  const uint32_t launch = order.launch_epoch();
  if (!write_ordered(order, thread, cell, kind, access)) {
    conflict = describe(order, cell, false, address);
  }
  if (kind != Touch::kRead) {
    if (!conflict && reads_conflict(order, thread, cell)) {
      conflict = describe(order, cell, true, address);
    }
    const Stamp now = order.now(thread);
    cell.write_epoch = now.epoch;
    cell.write_clock = now.clock;
    cell.write_thread = now.thread;
    cell.write_fences = now.fences;
    cell.write_pc = pc & kPcMask;
    cell.flags = kind == Touch::kAtomic ? kAtomicWrite : 0;
    cell.read_epoch = cell.read_clock = cell.read_lanes = 0;
    return conflict;
  }

  const uint32_t lane = 1u << thread % 32;
  const uint32_t warp = thread / 32;
  const uint32_t clock = order.now(thread).clock;
  bool fresh = cell.read_epoch < launch || cell.read_lanes == 0;
  if (!fresh && order.block_of(cell.read_epoch) != order.block()) {
    if (!shared_ && reads_conflict(order, thread, cell)) {
      cell.flags |= kManyBlocks;
      cell.drop(kManyWarps);
    } else {
      cell.drop(kManyBlocks | kManyWarps);
    }
    cell.read_epoch = 0;
  } else if (fresh) {
    cell.drop(kManyBlocks | kManyWarps);
  }
  if (fresh || cell.read_epoch != order.epoch()) {
    if (cell.read_epoch != order.epoch()) cell.drop(kManyWarps);
    cell.read_lanes = lane;
  } else if (cell.read_warp != warp) {
    cell.flags |= kManyWarps;
    cell.read_lanes = lane;
  } else if (cell.read_clock != clock) {
    cell.read_lanes = order.unordered_lanes(thread, cell.read_lanes, cell.read_clock) | lane;
  } else {
    cell.read_lanes |= lane;
  }
  cell.read_epoch = order.epoch();
  cell.read_clock = clock;
  cell.read_warp = warp & 0xffu;
  cell.read_pc = pc & kPcMask;
  return conflict;
}

Conflict Shadow::access(const Order& order, unsigned thread, uintptr_t address, size_t bytes,
                        Touch kind, uint32_t pc) {
  Conflict conflict;
  for_cells(address, bytes, [&](Cell& cell, uintptr_t at) {
    const Conflict c = touch(order, thread, cell, kind, pc, address, at);
    if (c && !conflict) conflict = c;
  });
  if (kind != Touch::kRead) mark_written(address, bytes);
  return conflict;
}

Conflict Shadow::begin_async_write(const Order& order, unsigned thread, uintptr_t address,
                                   size_t bytes, uint32_t pc) {
  const Conflict conflict = access(order, thread, address, bytes, Touch::kWrite, pc);
  for_cells(address, bytes, [](Cell& cell, uintptr_t) { cell.flags |= kInFlight; });
  return conflict;
}

void Shadow::complete_async_write(const Order& order, unsigned thread, uintptr_t address,
                                  size_t bytes, uint32_t pc) {
  const Stamp now = order.now(thread);
  for_cells(address, bytes, [&](Cell& cell, uintptr_t) {
    if (!(cell.flags & kInFlight) || cell.write_thread != thread || cell.write_pc != pc) return;
    cell.drop(kInFlight);
    cell.write_epoch = now.epoch;
    cell.write_clock = now.clock;
    cell.write_fences = now.fences;
  });
}

size_t Shadow::written_bytes(uintptr_t address, size_t bytes) const {
  size_t from = address - base_;
  const size_t end = from + bytes;
  size_t count = 0;
  for (; from < end && from % 8 != 0; ++from) count += written_[from / 8] >> from % 8 & 1;
  for (; from + 8 <= end; from += 8) count += std::popcount(written_[from / 8]);
  for (; from < end; ++from) count += written_[from / 8] >> from % 8 & 1;
  return count;
}

void Shadow::mark_written(uintptr_t address, size_t bytes) {
  size_t from = address - base_;
  const size_t end = from + bytes;
  const auto set = [&](size_t i) { written_[i / 8] |= static_cast<uint8_t>(1u << i % 8); };
  for (; from < end && from % 8 != 0; ++from) set(from);
  if (from + 8 <= end) {
    const size_t whole = (end - from) / 8;
    std::memset(written_.data() + from / 8, 0xff, whole);
    from += whole * 8;
  }
  for (; from < end; ++from) set(from);
}

void Shadow::forget_contents(uintptr_t address, size_t bytes) {
  const size_t first = (address - base_) / 8;
  std::memset(written_.data() + first, 0, (address - base_ + bytes) / 8 + 1 - first);
  for (const size_t cell : split_) cells_[cell] = {};
  split_.clear();
  quads_.clear();
}

}  // namespace heirloom::emulator
