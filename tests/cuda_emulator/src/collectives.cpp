// SPDX-License-Identifier: Apache-2.0
//
// Barriers, shuffles, votes, fences and atomics.
#include <bit>
#include <cstdio>

#include "engine.h"

namespace heirloom::emulator {
namespace {

Site site_of(const void* pc, Where where) { return {pc, where}; }

// in: value (two words), argument, width, kind. The source lanes are those of the PTX ISA's shfl,
// with the segment mask and clamp that CUDA's functions pass to it.
void combine_shuffle(LaneSlot* lanes, uint32_t mask) {
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    LaneSlot& me = lanes[lane];
    const auto argument = static_cast<int>(me.in[2]);
    const auto width = static_cast<int>(me.in[3]);
    const int first = lane & ~(width - 1), last = lane | (width - 1);
    int from = lane;
    switch (static_cast<Shuffle>(me.in[4])) {
      case Shuffle::kIndex:
        from = first | (argument & (width - 1));
        break;
      case Shuffle::kXor:
        from = lane ^ (argument & 31);  // may reach an earlier segment, not a later one
        if (from > last) from = lane;
        break;
      case Shuffle::kUp:
        from = lane - (argument & 31);
        if (from < first) from = lane;
        break;
      case Shuffle::kDown:
        from = lane + (argument & 31);
        if (from > last) from = lane;
        break;
    }
    if (!(mask >> from & 1)) {
      char text[96];
      std::snprintf(text, sizeof text,
                    "a shuffle: lane %d reads lane %d, which the mask leaves out", lane, from);
      fail(text);
    }
    me.out[0] = lanes[from].in[0];
    me.out[1] = lanes[from].in[1];
  }
}

void combine_vote(LaneSlot* lanes, uint32_t mask) {
  uint32_t ballot = 0;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    ballot |= lanes[lane].in[0] << lane;
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    lanes[std::countr_zero(left)].out[0] = ballot;
  }
}

template <Reduction kReduction>
void combine_reduction(LaneSlot* lanes, uint32_t mask) {
  uint32_t result = lanes[std::countr_zero(mask)].in[0];
  for (uint32_t left = mask & (mask - 1); left != 0; left &= left - 1) {
    const uint32_t x = lanes[std::countr_zero(left)].in[0];
    const auto a = static_cast<int32_t>(result), b = static_cast<int32_t>(x);
    switch (kReduction) {
      case Reduction::kAdd:
        result += x;
        break;
      case Reduction::kMinSigned:
        result = static_cast<uint32_t>(b < a ? b : a);
        break;
      case Reduction::kMaxSigned:
        result = static_cast<uint32_t>(a < b ? b : a);
        break;
      case Reduction::kMinUnsigned:
        result = x < result ? x : result;
        break;
      case Reduction::kMaxUnsigned:
        result = result < x ? x : result;
        break;
    }
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    lanes[std::countr_zero(left)].out[0] = result;
  }
}

}  // namespace

[[gnu::noinline]] void block_barrier(Where where) {
  meet_block(0, site_of(__builtin_return_address(0), where));
}

[[gnu::noinline]] int block_count(bool predicate, Count count, Where where) {
  const bool all = count == Count::kAll;
  const uint32_t sum =
      meet_block(all ? !predicate : predicate, site_of(__builtin_return_address(0), where));
  if (count == Count::kSum) return static_cast<int>(sum);
  return all ? sum == 0 : sum != 0;
}

[[gnu::noinline]] void warp_barrier(unsigned mask, Where where) {
  meet(Meeting::kSyncWarp, mask, nullptr, site_of(__builtin_return_address(0), where));
}

[[gnu::noinline]] uint64_t shuffle(unsigned mask, uint64_t value, int argument, int width,
                                   Shuffle kind, Where where) {
  const Site site = site_of(__builtin_return_address(0), where);
  if (width < 1 || width > 32 || (width & (width - 1))) {
    fail("a shuffle's width must be a power of two up to 32", site);
  }
  LaneSlot& mine = my_slot();
  mine.in[0] = static_cast<uint32_t>(value);
  mine.in[1] = static_cast<uint32_t>(value >> 32);
  mine.in[2] = static_cast<uint32_t>(argument);
  mine.in[3] = static_cast<uint32_t>(width);
  mine.in[4] = static_cast<uint32_t>(kind);
  meet(Meeting::kShuffle, mask, combine_shuffle, site);
  return mine.out[0] | static_cast<uint64_t>(mine.out[1]) << 32;
}

[[gnu::noinline]] unsigned vote(unsigned mask, bool predicate, Where where) {
  LaneSlot& mine = my_slot();
  mine.in[0] = predicate;
  meet(Meeting::kVote, mask, combine_vote, site_of(__builtin_return_address(0), where));
  return mine.out[0];
}

[[gnu::noinline]] unsigned reduce(unsigned mask, unsigned value, Reduction reduction, Where where) {
  static constexpr Combine kCombine[] = {
      combine_reduction<Reduction::kAdd>, combine_reduction<Reduction::kMinSigned>,
      combine_reduction<Reduction::kMaxSigned>, combine_reduction<Reduction::kMinUnsigned>,
      combine_reduction<Reduction::kMaxUnsigned>};
  LaneSlot& mine = my_slot();
  mine.in[0] = value;
  meet(Meeting::kReduce, mask, kCombine[static_cast<int>(reduction)],
       site_of(__builtin_return_address(0), where));
  return mine.out[0];
}

[[gnu::noinline]] void fence(bool device) {
  if (instrument) instrument->fence(device, __builtin_return_address(0));
}

[[gnu::noinline]] void trap() { fail("__trap()", __builtin_return_address(0)); }

template <class T>
[[gnu::noinline]] T atomic(T* address, T value, T compare, Atomic operation) {
  const void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    char text[64];
    std::snprintf(text, sizeof text, "an atomic of %zu bytes at misaligned address %p", sizeof(T),
                  static_cast<void*>(address));
    fail(text, pc);
  }
  if (instrument) instrument->atomic(address, sizeof(T), pc);
  const ActingFor acting(pc);
  const T old = *address;
  switch (operation) {
    case Atomic::kAdd:
      *address = static_cast<T>(static_cast<unsigned long long>(old) +
                                static_cast<unsigned long long>(value));
      break;
    case Atomic::kMin:
      *address = value < old ? value : old;
      break;
    case Atomic::kMax:
      *address = old < value ? value : old;
      break;
    case Atomic::kAnd:
      *address = old & value;
      break;
    case Atomic::kOr:
      *address = old | value;
      break;
    case Atomic::kXor:
      *address = old ^ value;
      break;
    case Atomic::kExchange:
      *address = value;
      break;
    case Atomic::kCompareAndSwap:
      *address = old == compare ? value : old;
      break;
  }
  return old;
}
template int atomic(int*, int, int, Atomic);
template unsigned atomic(unsigned*, unsigned, unsigned, Atomic);
template unsigned long long atomic(unsigned long long*, unsigned long long, unsigned long long,
                                   Atomic);

}  // namespace heirloom::emulator
