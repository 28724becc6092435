// SPDX-License-Identifier: Apache-2.0
//
// The instructions of kernels/cuda/common/ptx.cuh with the meaning that the PTX ISA gives them.
// Everything travels by value, so that register arrays of kernels stay in registers.
#pragma once

#include <cstdint>

#include "emulator/device.h"

// The running block's dynamic shared memory, 128-byte aligned; constant as threadIdx is.
extern __thread unsigned char* const heirloom_dynamic_shared;

namespace heirloom::emulator {

__forceinline__ unsigned char* dynamic_shared() { return heirloom_dynamic_shared; }

/// cp.async of 4, 8 or 16 bytes, zeros where !valid. The bytes move at once or when they are waited
/// for, as the schedule's seed chooses for each copy.
void copy_async(void* shared, const void* global, int bytes, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);
/// ldmatrix.m8n8 (.trans): matrices 0..count-1 in x, y, z, w; lanes 8m..8m+7 name the rows of
/// matrix m.
uint4 load_matrices(const void* row, int count, bool transpose, Where where = Where::current());
/// mma.m16n8k16.row.col: A B + C, bfloat16 inputs, float32 sums. The real instruction's rounding
/// is not specified; here products are exact and d = ((c + p0) + p1) + ... + p15 in float32.
float4 multiply_m16n8k16(uint4 a, uint2 b, float4 c, Where where = Where::current());
/// One access of 4, 8 or 16 aligned bytes.
uint32_t load_word(const void* address);
uint2 load_two_words(const void* address);
uint4 load_four_words(const void* address);
void store_word(void* address, uint32_t value);
void store_two_words(void* address, uint2 value);
void store_four_words(void* address, uint4 value);

}  // namespace heirloom::emulator
