// SPDX-License-Identifier: Apache-2.0
//
// Executes a grid on the CPU: every CUDA thread of a block on a fiber, blocks one after another.
// The order of blocks, warps and lanes is drawn from the seed; a thread gives way only where it
// waits for others. A thread that never waits costs no switch.
//
// Rules that a kernel must keep, or it ends with a KernelError:
//   __syncthreads   all living threads of the block come to the same one (exited ones do not count);
//   *_sync(mask)    all lanes of the mask come to the same one, with the same mask; none has exited
//                   and the block has them all (a __syncwarp's lanes may come from different lines);
//   mma, ldmatrix   the same, with all 32 lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "emulator/device.h"

namespace heirloom::emulator {

/// What went wrong inside a kernel: the launch fails with this text.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
};
struct KernelInfo {
  std::string name;
  const void* function = nullptr;
};

/// Where launches keep their arguments until they have run: memory that kernels may read.
void* allocate_launch_arguments(size_t bytes);
void free_launch_arguments(void* arguments);

/// Runs all blocks; `thread_body` is what one thread does. KernelError when the kernel breaks a
/// rule; the next grid starts clean.
void run_grid(const LaunchConfig& config, const std::function<void()>& thread_body,
              const KernelInfo& kernel);
/// Decides the schedule of every grid from here on; HEIRLOOM_EMULATOR_SEED or 1 at first.
void set_schedule_seed(uint64_t seed);
uint64_t schedule_seed();

/// The thread that runs now.
struct ThreadView {
  bool inside = false;  ///< false on the host
  uint64_t block = 0;   ///< linear
  uint32_t thread = 0;  ///< linear in its block
  uint32_t warp() const { return thread / 32; }
  uint32_t lane() const { return thread % 32; }
};
/// Kept up to date by the engine: reading it is one load from thread-local memory.
extern constinit __thread ThreadView running_thread;
inline const ThreadView& current_thread() { return running_thread; }
const KernelInfo& current_kernel();
const LaunchConfig& current_launch();
/// Counts grids of this host thread.
uint64_t launch_number();
/// Counts blocks of this host thread, over all grids.
uint64_t block_serial();

struct ByteRange {
  uintptr_t begin = 0, end = 0;
  bool contains(uintptr_t a) const { return a >= begin && a < end; }
  bool contains(const void* p, size_t bytes) const {
    const auto a = reinterpret_cast<uintptr_t>(p);
    return a >= begin && a <= end && end - a >= bytes;
  }
};
/// Dynamic shared memory of the running block: exactly as many bytes as were asked for.
ByteRange shared_range();
/// Where static __shared__ variables are: this host thread's thread-local memory of the program.
ByteRange static_shared_range();
/// All fiber stacks: locals of kernels.
ByteRange stack_range();
/// All launch arguments.
ByteRange argument_range();
/// For addresses of the ranges above and the guards around them ("4 bytes past the end of 1024
/// bytes of dynamic shared memory"); empty for all others.
std::string describe_kernel_address(const void* address);

enum class AccessKind : uint8_t { kRead, kWrite };

/// What instrumentation wants to hear; null in plain builds. Calls speak of current_thread() unless
/// they say otherwise. `pc` is a return address in the kernel.
class Instrument {
 public:
  virtual ~Instrument() = default;
  virtual void kernel_begin() {}
  virtual void kernel_end() {}  ///< also when the kernel failed
  virtual void block_begin() {}
  virtual void block_end() {}  ///< not when the kernel failed
  /// All living threads of the block have met at a __syncthreads; called once.
  virtual void block_barrier(const void* /*pc*/) {}
  /// These lanes have met at a __syncwarp; called once.
  virtual void warp_barrier(uint32_t /*warp*/, uint32_t /*mask*/, const void* /*pc*/) {}
  /// __threadfence (device) or __threadfence_block.
  virtual void fence(bool /*device*/, const void* /*pc*/) {}
  /// A read-modify-write; before it happens.
  virtual void atomic(const void* /*address*/, size_t /*bytes*/, const void* /*pc*/) {}
  /// One access of load_4/8/16, store_4/8/16; before it happens.
  virtual void access(const void* /*address*/, size_t /*bytes*/, AccessKind, const void* /*pc*/) {}
  /// ldmatrix: the current lane named this 16-byte row of matrix `matrix`; a warp reads a matrix's
  /// eight rows in one phase.
  virtual void matrix_row(const void* /*row*/, int /*matrix*/, const void* /*pc*/) {}
  /// cp.async issued: reads `global` (null: zeros are written), writes `shared` any time until
  /// copy_end, which comes from the wait that covers it, wherever the emulator moved the bytes.
  virtual void copy_begin(void* /*shared*/, const void* /*global*/, size_t /*bytes*/,
                          const void* /*pc*/) {}
  virtual void copy_end(void* /*shared*/, const void* /*global*/, size_t /*bytes*/,
                        const void* /*pc*/) {}
  /// From the host, or by a fill: whatever the bytes are, somebody has written them.
  virtual void memory_written(const void* /*data*/, size_t /*bytes*/) {}
};
extern Instrument* instrument;

/// A line of a kernel: where it says so itself, and the return address.
struct Site {
  const void* pc = nullptr;
  std::source_location where;
};

/// Ends the running kernel with this text, after the names of kernel, block and thread. On the host
/// throws KernelError.
[[noreturn]] void fail(std::string what, const void* pc = nullptr);
[[noreturn]] void fail(std::string what, const Site& site);

/// While one exists, whatever goes wrong is the fault of `pc`.
extern constinit __thread const void* acting_pc;
class ActingFor {
 public:
  explicit ActingFor(const void* pc) { acting_pc = pc; }
  ~ActingFor() { acting_pc = nullptr; }
  ActingFor(const ActingFor&) = delete;
};

/// What a lane brings to a meeting of its warp, and what it takes from it.
struct alignas(64) LaneSlot {
  uint32_t in[12];
  uint32_t out[4];
};
enum class Meeting : uint8_t {
  kSyncWarp,
  kShuffle,
  kVote,
  kReduce,
  kLdmatrix,
  kMma,
};
/// The slot of the running thread.
LaneSlot& my_slot();
/// The lanes of `mask` come together; the last one computes all slots (by lane) and all go on.
using Combine = void (*)(LaneSlot* lanes, uint32_t mask);
void meet(Meeting meeting, uint32_t mask, Combine combine, const Site& site);
/// __syncthreads; the same for the and/or/count forms, which sum `value` over the block.
uint32_t meet_block(uint32_t value, const Site& site);

/// From the schedule's generator.
uint64_t random_bits();

}  // namespace heirloom::emulator
