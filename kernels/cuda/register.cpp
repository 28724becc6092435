// SPDX-License-Identifier: Apache-2.0
//
// Fills the kernel tables for CUDA: float32 and bfloat16.
#include <mutex>

#include "heirloom/kernels/kernel_table.h"

namespace heirloom {
namespace cuda {

void register_activation();
void register_attention_backward();
void register_attention_float32();
void register_attention_forward();
void register_cross_entropy();
void register_elementwise();
void register_embedding();
void register_gemm();
void register_head_split();
void register_norm();
void register_optimizer();
void register_runtime();

}  // namespace cuda

void register_cuda_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    cuda::register_runtime();
    cuda::register_activation();
    cuda::register_attention_backward();
    cuda::register_attention_float32();
    cuda::register_attention_forward();
    cuda::register_cross_entropy();
    cuda::register_elementwise();
    cuda::register_embedding();
    cuda::register_gemm();
    cuda::register_head_split();
    cuda::register_norm();
    cuda::register_optimizer();
  });
}

}  // namespace heirloom
