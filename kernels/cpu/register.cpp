// SPDX-License-Identifier: Apache-2.0
//
// Fills the kernel tables for the CPU. This file is compiled for the baseline processor and comes
// first in its archive.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "heirloom/core/error.h"
#include "heirloom/kernels/roofs.h"
#include "kernels/reference/activation.hpp"
#include "kernels/reference/attention.hpp"
#include "kernels/reference/cross_entropy.hpp"
#include "kernels/reference/elementwise.hpp"
#include "kernels/reference/embedding.hpp"
#include "kernels/reference/gemm.hpp"
#include "kernels/reference/head_split.hpp"
#include "kernels/reference/linear_rows.hpp"
#include "kernels/reference/norm.hpp"
#include "kernels/reference/optimizer.hpp"

namespace heirloom {
namespace cpu {

void register_gemm_onednn();

#define HEIRLOOM_REGISTRARS(isa)                          \
  namespace isa {                                         \
  void register_activation();                             \
  void register_attention_backward();                     \
  void register_attention_decode();                       \
  void register_attention_forward();                      \
  void register_cross_entropy();                          \
  void register_elementwise();                            \
  void register_embedding();                              \
  void register_gemm_packed();                            \
  void register_head_split();                             \
  void register_linear_rows();                            \
  void register_norm();                                   \
  void register_optimizer();                              \
  double measure_flops(Dtype dtype);                      \
  double measure_read(const float* data, int64_t floats); \
  static void register_all() {                            \
    register_activation();                                \
    register_attention_backward();                        \
    register_attention_decode();                          \
    register_attention_forward();                         \
    register_cross_entropy();                             \
    register_elementwise();                               \
    register_embedding();                                 \
    register_gemm_packed();                               \
    register_head_split();                                \
    register_linear_rows();                               \
    register_norm();                                      \
    register_optimizer();                                 \
  }                                                       \
  }
HEIRLOOM_REGISTRARS(avx2)
HEIRLOOM_REGISTRARS(avx512)
#undef HEIRLOOM_REGISTRARS

}  // namespace cpu

namespace {

enum class Isa { kReference, kAvx2, kAvx512 };

/// The widest set the processor has, or the lesser one that HEIRLOOM_CPU_ISA names.
Isa choose_isa() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
  const Isa best = avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kReference;
  const char* const wanted = std::getenv("HEIRLOOM_CPU_ISA");
  const std::string name = wanted ? wanted : "";
  if (name.empty() || name == "avx512") return best;
  if (name == "avx2") return avx2 ? Isa::kAvx2 : best;
  if (name == "reference") return Isa::kReference;
  throw_error<ConfigError>(
      "[kernels] expected HEIRLOOM_CPU_ISA avx512, avx2 or reference; got '{}'", name);
}

Isa chosen_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

template <class T>
void register_reference() {
  constexpr Dtype kDtype = kDtypeOf<T>;
  activation_forward_table().set(DeviceKind::kCpu, kDtype, reference::activation_forward<T>);
  activation_backward_table().set(DeviceKind::kCpu, kDtype, reference::activation_backward<T>);
  attention_forward_table().set(DeviceKind::kCpu, kDtype, reference::attention_forward<T>);
  attention_backward_table().set(DeviceKind::kCpu, kDtype, reference::attention_backward<T>);
  attention_decode_table().set(DeviceKind::kCpu, kDtype, reference::attention_forward<T>);
  cross_entropy_table().set(DeviceKind::kCpu, kDtype, reference::cross_entropy<T>);
  add_table().set(DeviceKind::kCpu, kDtype, reference::add<T>);
  column_sum_table().set(DeviceKind::kCpu, kDtype, reference::column_sum<T>);
  dropout_table().set(DeviceKind::kCpu, kDtype, reference::dropout<T>);
  embedding_forward_table().set(DeviceKind::kCpu, kDtype, reference::embedding_forward<T>);
  embedding_backward_table().set(DeviceKind::kCpu, kDtype, reference::embedding_backward<T>);
  gemm_table().set(DeviceKind::kCpu, kDtype, reference::gemm<T>);
  head_split_forward_table().set(DeviceKind::kCpu, kDtype, reference::head_split_forward<T>);
  head_split_backward_table().set(DeviceKind::kCpu, kDtype, reference::head_split_backward<T>);
  linear_rows_table().set(DeviceKind::kCpu, kDtype, reference::linear_rows<T>);
  norm_forward_table().set(DeviceKind::kCpu, kDtype, reference::norm_forward<T>);
  norm_backward_table().set(DeviceKind::kCpu, kDtype, reference::norm_backward<T>);
  adamw_table().set(DeviceKind::kCpu, kDtype, reference::adamw<T>);
  sum_squares_table().set(DeviceKind::kCpu, kDtype, reference::sum_squares<T>);
  grad_scale_table().set(DeviceKind::kCpu, kDtype, reference::grad_scale);
}

}  // namespace

void register_cpu_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    const Isa isa = chosen_isa();
    register_reference<double>();
    register_reference<float>();
    register_reference<bfloat16>();
    if (isa == Isa::kAvx512) {
      cpu::avx512::register_all();
      cpu::register_gemm_onednn();
    }
    if (isa == Isa::kAvx2) cpu::avx2::register_all();
  });
}

std::string cpu_kernel_isa() {
  switch (chosen_isa()) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kReference:
      break;
  }
  return "reference";
}

double cpu_flops_roof(Dtype dtype) {
  return chosen_isa() == Isa::kAvx512 ? cpu::avx512::measure_flops(dtype)
                                      : cpu::avx2::measure_flops(dtype);
}

double cpu_read_roof() {
  constexpr int64_t kBytes = 256 << 20, kHugePage = 2 << 20;
  float* data = static_cast<float*>(std::aligned_alloc(kHugePage, kBytes));
  if (data == nullptr) return 0;
  madvise(data, kBytes,
          MADV_HUGEPAGE);  // as the library's own memory, so that page walks do not lower the roof
  std::memset(data, 1, kBytes);
  const double rate = chosen_isa() == Isa::kAvx512 ? cpu::avx512::measure_read(data, kBytes / 4)
                                                   : cpu::avx2::measure_read(data, kBytes / 4);
  std::free(data);
  return rate;
}

}  // namespace heirloom
