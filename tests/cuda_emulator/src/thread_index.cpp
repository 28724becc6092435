// SPDX-License-Identifier: Apache-2.0
//
// The built-in variables. Kernels see them const (emulator/device.h); here they are not.
#include "thread_index.h"

__thread heirloom::emulator::Index3 threadIdx;
__thread heirloom::emulator::Index3 blockIdx;
__thread heirloom::emulator::Index3 blockDim;
__thread heirloom::emulator::Index3 gridDim;
__thread unsigned char* heirloom_dynamic_shared;

namespace heirloom::emulator {

void set_dimensions(Index3 block, Index3 grid) {
  blockDim = block;
  gridDim = grid;
}
void set_block(Index3 index, unsigned char* dynamic_shared) {
  blockIdx = index;
  heirloom_dynamic_shared = dynamic_shared;
}
Index3* thread_index() { return &threadIdx; }

}  // namespace heirloom::emulator
