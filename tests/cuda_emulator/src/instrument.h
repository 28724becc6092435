// SPDX-License-Identifier: Apache-2.0
//
// What the emulator sees of a kernel's memory accesses, when the kernel is compiled to tell it.
//
// How. The kernels' sources are compiled with
//     -O2 -g -fsanitize=thread --param=tsan-instrument-func-entry-exit=0 -fno-tree-sra
// and linked without the sanitizer: the compiler calls a function before every access that may
// leave a thread's registers, and hooks.cpp defines those functions. (-fno-tree-sra: else a 16-byte
// load that is used by parts becomes four loads.) Accesses to a thread's own stack are dropped
// first; collectives, wrapped loads and stores and cp.async tell the emulator themselves.
//
// Errors, found in every launch and collected (take_report):
//   race           Two accesses of one byte by two threads, at least one of them a write, not both
//                  atomic, without an order. Within a block __syncthreads orders, and __syncwarp the
//                  lanes that take part; shuffles, votes, ldmatrix and mma order nothing (the lane
//                  that names a row for ldmatrix reads it: before another lane overwrites the row, a
//                  __syncwarp must stand). Between blocks of a launch only the ticket pattern
//                  orders: write, __threadfence, atomic by one block; atomic on the same address,
//                  __threadfence, access by the other, with barriers wherever the work is handed to
//                  other threads. Both fences are asked for, as in the PTX memory model. Launches
//                  are ordered; streams are the runtime's business.
//                  The destination of a cp.async must not be touched, by its own thread neither,
//                  before the thread has waited for it. Found from the order alone, whatever the
//                  values and the schedule were.
//   uninitialised  A read all of whose bytes were never written: of device memory since it was
//                  allocated, of shared memory by this block. A wide read that finds some of its
//                  bytes written is a move of padding and no error: the others hold the poison 0xff,
//                  a NaN in every float type and -1 in every integer, so that a kernel that computes
//                  with them fails by its values or by its bounds.
//   out of bounds  Outside every living allocation, outside the block's shared memory, or in memory
//                  of the host that is neither pinned nor constant. The launch fails there.
//
// Traffic, where asked for (watch_traffic), modelled:
//   sectors        Distinct 32-byte sectors of global memory that an instruction of a warp touches,
//                  against what its distinct bytes need.
//   wavefronts     Passes through the banks of shared memory, against what its distinct bytes need.
//   DRAM bytes     Per launch, 32 for each distinct sector read before it is written, and 32 for each
//                  distinct sector written: caches that keep everything within a launch, and nothing
//                  between launches.
//
// Which accesses of 32 lanes are one instruction is told by their place and their number there since
// the warp's last barrier: right unless lanes go through a loop a different number of times and
// meet in a shuffle only.
//
// What is not seen: overruns that end inside the same allocation (or, for static __shared__, inside
// another variable); order by other means than those above (spinning, atomics of wider or narrower
// scope, fences through a third block); memcpy of more than 16 bytes inside a kernel; races between
// streams; anything that the compiler for the device does differently: registers, spills,
// instruction counts, caches, latency.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace heirloom::emulator {

struct Finding {
  enum class Kind : uint8_t { kRace, kUninitialised, kOutOfBounds };
  Kind kind = Kind::kRace;
  std::string kernel;      ///< the first one
  std::string line;        ///< "kernels/cuda/norm.cu:88": where the access is
  std::string other_line;  ///< of a race: what it conflicts with
  std::string text;        ///< all of it, in one sentence
  uint64_t count = 0;      ///< accesses that gave this finding
};

/// Everything found since the last call, one for each place (or pair of places), in their order;
/// empty in plain builds.
std::vector<Finding> take_report();
/// One finding to a line.
std::string format(const std::vector<Finding>& findings);

enum class Space : uint8_t { kGlobal, kShared };

/// All instructions of a kernel at one line that do the same.
struct LineTraffic {
  std::string line;
  Space space = Space::kGlobal;
  bool write = false, atomic = false, matrix = false;
  uint32_t bytes = 0;     ///< of one lane
  uint64_t accesses = 0;  ///< instructions of warps
  uint64_t used = 0;      ///< sectors or wavefronts
  uint64_t ideal = 0;
};
/// A kernel's launches taken together.
struct KernelTraffic {
  std::string kernel;
  uint64_t launches = 0;
  uint64_t blocks = 0;
  uint32_t threads = 0;       ///< of a block, in the last launch
  uint64_t shared_bytes = 0;  ///< dynamic, of a block, in the last launch
  uint64_t dram_read = 0, dram_written = 0;
  std::vector<LineTraffic> lines;
  /// Sums over lines, atomics left out.
  uint64_t used(Space space) const;
  uint64_t ideal(Space space) const;
};

/// From here on; off at first.
void watch_traffic(bool on);
/// Everything counted since the last call, by kernel name, and starts from zero.
std::vector<KernelTraffic> take_traffic();

/// Whether kernels of this program were compiled for it.
bool instrumented();

}  // namespace heirloom::emulator
