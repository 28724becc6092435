// SPDX-License-Identifier: Apache-2.0
//
// cp.async, ldmatrix, mma and wide accesses, as the PTX ISA defines them.
#include "emulator/ptx.h"

#include <bit>
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine.h"

namespace heirloom::emulator {
namespace {

constexpr uint32_t kWholeWarp = 0xffffffffu;

void check_alignment(const void* address, size_t bytes, const char* what, const void* pc) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  char text[128];
  std::snprintf(text, sizeof text, "%s of %zu bytes at %p, which is not aligned to them", what,
                bytes, address);
  fail(text, pc);
}

void check_shared(const void* address, size_t bytes, const char* what, const void* pc) {
  if (shared_range().contains(address, bytes)) return;
  if (static_shared_range().contains(address, bytes)) return;
  std::string text = describe_kernel_address(address);
  if (text.empty()) text = "memory that is not shared";
  text.insert(0, " outside of the block's shared memory: ");
  text.insert(0, what);
  fail(std::move(text), pc);
}

// ---- cp.async ----

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  size_t bytes;
  const void* pc;
  uint32_t group;
  bool moved;
};
struct ThreadCopies {
  uint64_t block = 0;
  uint32_t open_group = 0;
  std::vector<Copy> waiting;  // oldest first
};

ThreadCopies& copies() {
  static constinit thread_local ThreadCopies* all = nullptr;  // of this host thread
  if (all == nullptr) [[unlikely]] {
    static thread_local std::vector<ThreadCopies> owner(1024);
    all = owner.data();
  }
  ThreadCopies& mine = all[current_thread().thread];
  if (mine.block != block_serial()) {
    mine.block = block_serial();
    mine.open_group = 0;
    mine.waiting.clear();
  }
  return mine;
}

void move(const Copy& c) {
  const ActingFor acting(c.pc);
  if (c.global == nullptr) {
    std::memset(c.shared, 0, c.bytes);
  } else {
    std::memcpy(c.shared, c.global, c.bytes);
  }
}

// ---- ldmatrix ----
//
// An 8x8 matrix of 16-bit elements lies in a warp row by row, two neighbours to a register: its 32
// registers belong to lanes 0, 1, ... 31 in reading order.

const uint16_t* row_of(const LaneSlot& slot) {
  return reinterpret_cast<const uint16_t*>(slot.in[0] | static_cast<uintptr_t>(slot.in[1]) << 32);
}

template <int kCount, bool kTranspose>
void combine_matrices(LaneSlot* lanes, uint32_t) {
  for (int m = 0; m < kCount; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], row_of(lanes[8 * m + r]), 16);
    int lane = 0;
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 8; c += 2) {
        const uint32_t low = kTranspose ? matrix[c][r] : matrix[r][c];
        const uint32_t high = kTranspose ? matrix[c + 1][r] : matrix[r][c + 1];
        lanes[lane++].out[m] = low | high << 16;
      }
    }
  }
}

// ---- mma ----
//
// The operands are made of such 8x8 matrices: A (16x16) of four, down the columns first; the
// transpose of B (8x16) of two, side by side; C and D (16x8) of two, one above the other, with a
// register for each element.

float element(uint32_t pair, int k) {
  return std::bit_cast<float>(k == 0 ? pair << 16 : pair & 0xffff0000u);
}

using HalfRow = float __attribute__((vector_size(16)));

void combine_multiply(LaneSlot* lanes, uint32_t) {
  alignas(16) float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* in = lanes[lane].in;
    const int row = lane >> 2, column = (lane & 3) << 1;
#pragma GCC unroll 4
    for (int tile = 0; tile < 4; ++tile) {
      float* to = &a[row + 8 * (tile & 1)][column + 8 * (tile >> 1)];
      to[0] = element(in[tile], 0);
      to[1] = element(in[tile], 1);
    }
#pragma GCC unroll 2
    for (int tile = 0; tile < 2; ++tile) {
      b[column + 8 * tile][row] = element(in[4 + tile], 0);
      b[column + 8 * tile + 1][row] = element(in[4 + tile], 1);
      std::memcpy(&d[row + 8 * tile][column], in + 6 + 2 * tile, 8);
    }
  }
  // Products of bfloat16 are exact in float32; the sum runs over k upwards, beginning with C.
  for (int i = 0; i < 16; ++i) {
    HalfRow left, right;
    std::memcpy(&left, d[i], 16);
    std::memcpy(&right, d[i] + 4, 16);
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      HalfRow b_left, b_right;
      std::memcpy(&b_left, b[k], 16);
      std::memcpy(&b_right, b[k] + 4, 16);
      left += a[i][k] * b_left;
      right += a[i][k] * b_right;
    }
    std::memcpy(d[i], &left, 16);
    std::memcpy(d[i] + 4, &right, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane >> 2, column = (lane & 3) << 1;
    std::memcpy(lanes[lane].out, &d[row][column], 8);
    std::memcpy(lanes[lane].out + 2, &d[row + 8][column], 8);
  }
}

template <class T>
T load(const void* address, const void* pc) {
  check_alignment(address, sizeof(T), "a load", pc);
  if (instrument) instrument->access(address, sizeof(T), AccessKind::kRead, pc);
  const ActingFor acting(pc);
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
void store(void* address, T value, const void* pc) {
  check_alignment(address, sizeof(T), "a store", pc);
  if (instrument) instrument->access(address, sizeof(T), AccessKind::kWrite, pc);
  const ActingFor acting(pc);
  std::memcpy(address, &value, sizeof(T));
}

}  // namespace

[[gnu::noinline]] void copy_async(void* shared, const void* global, int bytes, bool valid) {
  const void* pc = __builtin_return_address(0);
  const auto size = static_cast<size_t>(bytes);
  check_shared(shared, size, "cp.async", pc);
  check_alignment(shared, size, "cp.async to shared memory", pc);
  if (valid) check_alignment(global, size, "cp.async from global memory", pc);
  ThreadCopies& mine = copies();
  Copy c{shared, valid ? global : nullptr, size, pc, mine.open_group, false};
  if (instrument) instrument->copy_begin(shared, c.global, size, pc);
  // The hardware may be done at once, or not before it is waited for: a kernel must bear both.
  c.moved = random_bits() & 1;
  if (c.moved) move(c);
  if (!c.moved || instrument) mine.waiting.push_back(c);
}

void copy_async_commit() { ++copies().open_group; }

void copy_async_wait(int pending) {
  ThreadCopies& mine = copies();
  size_t done = 0;
  while (done < mine.waiting.size() &&
         mine.waiting[done].group + static_cast<uint32_t>(pending) < mine.open_group) {
    const Copy& c = mine.waiting[done++];
    if (!c.moved) move(c);
    if (instrument) instrument->copy_end(c.shared, c.global, c.bytes, c.pc);
  }
  mine.waiting.erase(mine.waiting.begin(),
                     mine.waiting.begin() + static_cast<std::ptrdiff_t>(done));
}

[[gnu::noinline]] uint4 load_matrices(const void* row, int count, bool transpose, Where where) {
  const Site site{__builtin_return_address(0), where};
  LaneSlot& mine = my_slot();
  const int lane = static_cast<int>(current_thread().lane());
  if (lane < 8 * count) {
    check_shared(row, 16, "a row of ldmatrix", site.pc);
    check_alignment(row, 16, "a row of ldmatrix", site.pc);
    if (instrument) instrument->matrix_row(row, lane / 8, site.pc);
  }
  const auto address = reinterpret_cast<uintptr_t>(row);
  mine.in[0] = static_cast<uint32_t>(address);
  mine.in[1] = static_cast<uint32_t>(address >> 32);
  static constexpr Combine kCombine[2][3] = {
      {combine_matrices<1, false>, combine_matrices<2, false>, combine_matrices<4, false>},
      {combine_matrices<1, true>, combine_matrices<2, true>, combine_matrices<4, true>}};
  meet(Meeting::kLdmatrix, kWholeWarp, kCombine[transpose][count / 2], site);
  return {mine.out[0], mine.out[1], mine.out[2], mine.out[3]};
}

[[gnu::noinline]] float4 multiply_m16n8k16(uint4 a, uint2 b, float4 c, Where where) {
  LaneSlot& mine = my_slot();
  std::memcpy(mine.in, &a, 16);
  std::memcpy(mine.in + 4, &b, 8);
  std::memcpy(mine.in + 6, &c, 16);
  meet(Meeting::kMma, kWholeWarp, combine_multiply, {__builtin_return_address(0), where});
  return {std::bit_cast<float>(mine.out[0]), std::bit_cast<float>(mine.out[1]),
          std::bit_cast<float>(mine.out[2]), std::bit_cast<float>(mine.out[3])};
}

[[gnu::noinline]] uint32_t load_word(const void* address) {
  return load<uint32_t>(address, __builtin_return_address(0));
}
[[gnu::noinline]] uint2 load_two_words(const void* address) {
  return load<uint2>(address, __builtin_return_address(0));
}
[[gnu::noinline]] uint4 load_four_words(const void* address) {
  return load<uint4>(address, __builtin_return_address(0));
}
[[gnu::noinline]] void store_word(void* address, uint32_t value) {
  store(address, value, __builtin_return_address(0));
}
[[gnu::noinline]] void store_two_words(void* address, uint2 value) {
  store(address, value, __builtin_return_address(0));
}
[[gnu::noinline]] void store_four_words(void* address, uint4 value) {
  store(address, value, __builtin_return_address(0));
}

}  // namespace heirloom::emulator
