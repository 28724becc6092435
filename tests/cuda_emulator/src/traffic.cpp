// SPDX-License-Identifier: Apache-2.0
#include "traffic.h"

#include <algorithm>
#include <bit>

namespace heirloom::emulator {
namespace {

constexpr uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

// The access's byte ranges in the order of addresses.
struct Ranges {
  std::array<std::pair<uintptr_t, uintptr_t>, 32> range;
  unsigned count = 0;

  Ranges(const WarpAccess& a, uint32_t lanes) {
    bool sorted = true;
    for (uint32_t rest = lanes & a.lanes; rest != 0; rest &= rest - 1) {
      const uintptr_t begin = a.address[std::countr_zero(rest)];
      sorted = sorted && (count == 0 || range[count - 1].first <= begin);
      range[count++] = {begin, begin + a.bytes};
    }
    if (!sorted) std::sort(range.begin(), range.begin() + count);
  }
  // How many units of `size` bytes the ranges touch.
  uint64_t distinct(uintptr_t size) const {
    uint64_t units = 0;
    uintptr_t next = 0;  // first unit not yet counted
    for (unsigned i = 0; i < count; ++i) {
      const uintptr_t from = std::max(range[i].first / size, next);
      const uintptr_t end = (range[i].second - 1) / size + 1;
      if (end > from) {
        units += end - from;
        next = end;
      }
    }
    return units;
  }
};

// Passes through the banks that these lanes need: the most distinct words that one bank has.
Units one_group(const WarpAccess& a, uint32_t lanes) {
  if ((lanes & a.lanes) == 0) return {};
  const Ranges ranges(a, lanes);
  std::array<uint8_t, 32> words{};
  uintptr_t next = 0;
  for (unsigned i = 0; i < ranges.count; ++i) {
    const uintptr_t end = (ranges.range[i].second - 1) / 4 + 1;
    for (uintptr_t w = std::max(ranges.range[i].first / 4, next); w < end; ++w) ++words[w % 32];
    next = std::max(next, end);
  }
  return {*std::max_element(words.begin(), words.end()), divide_up(ranges.distinct(1), 128)};
}

Units by_groups(const WarpAccess& a, unsigned lanes_in_group) {
  Units units;
  const uint32_t group = lanes_in_group == 32 ? 0xffffffffu : (uint32_t{1} << lanes_in_group) - 1;
  for (unsigned first = 0; first < 32; first += lanes_in_group) {
    units += one_group(a, group << first);
  }
  return units;
}

}  // namespace

Units sectors(const WarpAccess& a) {
  if (a.lanes == 0) return {};
  const Ranges ranges(a, a.lanes);
  return {ranges.distinct(32), divide_up(ranges.distinct(1), 32)};
}

Units wavefronts(const WarpAccess& a) {
  return by_groups(a, a.bytes <= 4 ? 32 : a.bytes <= 8 ? 16 : 8);
}

Units matrix_wavefronts(const WarpAccess& a) { return by_groups(a, 8); }

}  // namespace heirloom::emulator
