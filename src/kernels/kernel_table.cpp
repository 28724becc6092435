// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/kernel_table.h"

#include "heirloom/core/error.h"
#include "heirloom/kernels/activation.h"
#include "heirloom/kernels/attention.h"
#include "heirloom/kernels/cross_entropy.h"
#include "heirloom/kernels/elementwise.h"
#include "heirloom/kernels/embedding.h"
#include "heirloom/kernels/gemm.h"
#include "heirloom/kernels/head_split.h"
#include "heirloom/kernels/norm.h"
#include "heirloom/kernels/optimizer.h"

namespace heirloom {
namespace {

std::vector<const KernelTableBase*>& registry() {
  static std::vector<const KernelTableBase*> tables;
  return tables;
}

constexpr std::array kDevices = {DeviceKind::kCpu, DeviceKind::kCuda};
constexpr std::array kDtypes = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64};

}  // namespace

const std::vector<const KernelTableBase*>& kernel_tables() { return registry(); }

KernelTableBase::KernelTableBase(const char* name) : name_(name) { registry().push_back(this); }

void KernelTableBase::missing(DeviceKind device, Dtype dtype) const {
  std::string have;
  for (const DeviceKind d : kDevices) {
    for (const Dtype t : kDtypes) {
      if (has(d, t)) {
        have += fmt::format("{}{} {}", have.empty() ? "" : ", ",
                            d == DeviceKind::kCpu ? "cpu" : "cuda", dtype_name(t));
      }
    }
  }
  throw_error<UnsupportedError>("[{}] no kernel for ({}, {}); have: {}", name_,
                                device_name({device, 0}), dtype_name(dtype),
                                have.empty() ? "none" : have);
}

// The tables, one per op. A table is born on first use, which a registrar makes.
#define HEIRLOOM_KERNEL_TABLE(op, Args)  \
  KernelTable<Args>& op##_table() {      \
    static KernelTable<Args> table(#op); \
    return table;                        \
  }
HEIRLOOM_KERNEL_TABLE(gemm, GemmArgs)
HEIRLOOM_KERNEL_TABLE(linear_rows, LinearRowsArgs)
HEIRLOOM_KERNEL_TABLE(norm_forward, NormForwardArgs)
HEIRLOOM_KERNEL_TABLE(norm_backward, NormBackwardArgs)
HEIRLOOM_KERNEL_TABLE(activation_forward, ActivationForwardArgs)
HEIRLOOM_KERNEL_TABLE(activation_backward, ActivationBackwardArgs)
HEIRLOOM_KERNEL_TABLE(head_split_forward, HeadSplitForwardArgs)
HEIRLOOM_KERNEL_TABLE(head_split_backward, HeadSplitBackwardArgs)
HEIRLOOM_KERNEL_TABLE(attention_forward, AttentionForwardArgs)
HEIRLOOM_KERNEL_TABLE(attention_backward, AttentionBackwardArgs)
HEIRLOOM_KERNEL_TABLE(attention_decode, AttentionForwardArgs)
HEIRLOOM_KERNEL_TABLE(cross_entropy, CrossEntropyArgs)
HEIRLOOM_KERNEL_TABLE(embedding_forward, EmbeddingForwardArgs)
HEIRLOOM_KERNEL_TABLE(embedding_backward, EmbeddingBackwardArgs)
HEIRLOOM_KERNEL_TABLE(add, AddArgs)
HEIRLOOM_KERNEL_TABLE(column_sum, ColumnSumArgs)
HEIRLOOM_KERNEL_TABLE(dropout, DropoutArgs)
HEIRLOOM_KERNEL_TABLE(adamw, AdamwArgs)
HEIRLOOM_KERNEL_TABLE(sum_squares, SumSquaresArgs)
#undef HEIRLOOM_KERNEL_TABLE

}  // namespace heirloom
