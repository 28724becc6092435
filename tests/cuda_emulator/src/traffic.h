// SPDX-License-Identifier: Apache-2.0
//
// What a warp's accesses cost in the memory system, modelled: 32-byte sectors of global memory,
// wavefronts (passes through the 32 banks of 4 bytes) of shared memory. Pure functions, and the
// recorder that finds out which accesses of 32 threads are one instruction of a warp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace heirloom::emulator {

/// One instruction of a warp: the lanes of `lanes` touch `bytes` at their addresses.
struct WarpAccess {
  uint32_t lanes = 0;
  uint32_t bytes = 0;
  std::array<uintptr_t, 32> address{};
};

struct Units {
  uint64_t used = 0;
  uint64_t ideal = 0;  ///< what as many distinct bytes need at least
  Units& operator+=(const Units& o) {
    used += o.used;
    ideal += o.ideal;
    return *this;
  }
};

/// Distinct 32-byte sectors, against distinct bytes / 32.
Units sectors(const WarpAccess&);
/// Accesses of up to 4 bytes: all lanes at once; 8 bytes: by half warps; 16: by quarter warps; what
/// one pass serves is one word of each bank, to any number of lanes. Against the distinct bytes of
/// each such group / 128.
Units wavefronts(const WarpAccess&);
/// ldmatrix: rows of 16 bytes, one pass for each matrix of eight (lanes 8 m .. 8 m + 7 name the rows
/// of matrix m).
Units matrix_wavefronts(const WarpAccess&);

/// Puts the accesses of the lanes of one warp together: the k-th access of each lane at one place
/// of the program since the warp last came together is one instruction.
class WarpRecorder {
 public:
  /// Calls `done(place, access)` for every instruction that is complete.
  template <class Done>
  void record(uint32_t place, unsigned lane, uint32_t all_lanes, uintptr_t address, uint32_t bytes,
              Done done) {
    if (place >= places_.size()) places_.resize(place + 1);
    Place& p = places_[place];
    if (!p.touched) {
      p.touched = true;
      touched_.push_back(place);
    }
    const uint32_t k = p.counts[lane]++;
    if (k >= p.first + p.open.size()) p.open.emplace_back();
    WarpAccess& access = p.open[k - p.first];
    access.lanes |= 1u << lane;
    access.bytes = bytes > access.bytes ? bytes : access.bytes;
    access.address[lane] = address;
    if (access.lanes != all_lanes || k != p.first + p.finished) return;
    done(place, access);
    // Finished ones go when all are: lanes run one after another, so that they finish in a row.
    if (++p.finished == p.open.size()) {
      p.first += static_cast<uint32_t>(p.open.size());
      p.open.clear();
      p.finished = 0;
    }
  }
  /// The warp is together: what is open had only some of the lanes.
  template <class Done>
  void converge(Done done) {
    for (const uint32_t place : touched_) {
      Place& p = places_[place];
      for (size_t i = p.finished; i < p.open.size(); ++i) done(place, p.open[i]);
      p.open.clear();
      p.counts.fill(0);
      p.first = p.finished = 0;
      p.touched = false;
    }
    touched_.clear();
  }
  void clear() {
    converge([](uint32_t, const WarpAccess&) {});
  }

 private:
  struct Place {
    std::array<uint32_t, 32> counts{};
    uint32_t first = 0, finished = 0;
    bool touched = false;
    std::vector<WarpAccess> open;
  };
  std::vector<Place> places_;
  std::vector<uint32_t> touched_;
};

}  // namespace heirloom::emulator
