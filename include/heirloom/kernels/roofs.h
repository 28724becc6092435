// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heirloom/core/dtype.h"

namespace heirloom {

/// What this processor can do, measured now with the OpenMP threads in use. About a tenth of a
/// second each.
///   flops   FLOP/s of fused multiply-adds in registers (bfloat16: pairs of products into float32,
///   where there are such
///           instructions; else as float32)
///   read    bytes per second of reading memory far larger than the caches
double cpu_flops_roof(Dtype dtype);
double cpu_read_roof();

}  // namespace heirloom
