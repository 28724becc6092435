// SPDX-License-Identifier: Apache-2.0
//
// Philox4x32-10 for consecutive counters, in a loop that gcc vectorises. Internal linkage, as
// vector_math.h.
#pragma once

#include <cstdint>

namespace heirloom::cpu::HEIRLOOM_ISA {
namespace {

constexpr int64_t kPhiloxGroup = 64;  // counters drawn together

/// words[w][g] = word w of philox(key, {e + g in 64 bits, third, 0}).
[[maybe_unused]] void philox_group(uint64_t key, uint64_t e, uint32_t third,
                                   uint32_t (&words)[4][kPhiloxGroup]) {
#pragma omp simd
  for (int64_t g = 0; g < kPhiloxGroup; ++g) {
    const uint64_t element = e + static_cast<uint64_t>(g);
    uint32_t c0 = static_cast<uint32_t>(element), c1 = static_cast<uint32_t>(element >> 32);
    uint32_t c2 = third, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0][g] = c0;
    words[1][g] = c1;
    words[2][g] = c2;
    words[3][g] = c3;
  }
}

}  // namespace
}  // namespace heirloom::cpu::HEIRLOOM_ISA
