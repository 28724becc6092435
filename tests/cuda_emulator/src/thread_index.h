// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace heirloom::emulator {

struct Index3 {
  unsigned x, y, z;
};
void set_dimensions(Index3 block, Index3 grid);
void set_block(Index3 index, unsigned char* dynamic_shared);
/// This host thread's threadIdx.
Index3* thread_index();

}  // namespace heirloom::emulator
