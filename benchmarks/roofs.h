// SPDX-License-Identifier: Apache-2.0
//
// What the machine can do, measured in the same run as the kernels: every benchmark row is a
// fraction of one of these.
#pragma once

namespace heirloom::bench {

struct Roofs {
  double float32_flops = 0;   ///< FMA, all threads, FLOP/s
  double bfloat16_flops = 0;  ///< vdpbf16ps, all threads; float32's without it
  double read_bytes = 0;      ///< DRAM read, bytes/s
  double copy_bytes = 0;      ///< DRAM read + write of a copy, bytes/s
};

/// About half a second.
Roofs measure_roofs();

}  // namespace heirloom::bench
