// SPDX-License-Identifier: Apache-2.0
#include "heirloom/kernels/kernel_table.h"

#include <gtest/gtest.h>

#include <set>

#include "heirloom/core/error.h"
#include "heirloom/kernels/gemm.h"
#include "support/devices.h"

namespace heirloom {
namespace {

/// The tables that the suites in this folder run over every dtype of. A new table belongs here with
/// its tests.
const std::set<std::string> kTested = {"activation_backward",
                                       "activation_forward",
                                       "adamw",
                                       "add",
                                       "attention_backward",
                                       "attention_decode",
                                       "attention_forward",
                                       "column_sum",
                                       "cross_entropy",
                                       "dropout",
                                       "embedding_backward",
                                       "embedding_forward",
                                       "gemm",
                                       "grad_scale",
                                       "head_split_backward",
                                       "head_split_forward",
                                       "linear_rows",
                                       "norm_backward",
                                       "norm_forward",
                                       "sum_squares"};

/// Decode runs on the CPU only.
const std::set<std::string> kNotOnCuda = {"attention_decode", "linear_rows"};

TEST(KernelTableTest, EveryTableIsTested) {
  register_kernels();
  std::set<std::string> found;
  for (const KernelTableBase* table : kernel_tables()) {
    EXPECT_TRUE(kTested.contains(table->name())) << table->name() << " has no tests";
    EXPECT_TRUE(found.insert(table->name()).second) << table->name() << " is there twice";
  }
  EXPECT_EQ(found, kTested);
}

TEST(KernelTableTest, TheCpuHasEveryKernelInEveryDtype) {
  register_kernels();
  register_kernels();
  for (const KernelTableBase* table : kernel_tables()) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64}) {
      EXPECT_TRUE(table->has(DeviceKind::kCpu, dtype)) << table->name() << " " << dtype_name(dtype);
    }
    EXPECT_FALSE(table->has(DeviceKind::kCpu, Dtype::kInt32)) << table->name();
  }
}

TEST(KernelTableTest, CudaHasEveryKernelOfTraining) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  for (const KernelTableBase* table : kernel_tables()) {
    const bool expected = !kNotOnCuda.contains(table->name());
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
      EXPECT_EQ(table->has(DeviceKind::kCuda, dtype), expected)
          << table->name() << " " << dtype_name(dtype);
    }
    EXPECT_FALSE(table->has(DeviceKind::kCuda, Dtype::kFloat64)) << table->name();
    EXPECT_FALSE(table->has(DeviceKind::kCuda, Dtype::kInt32)) << table->name();
  }
}

TEST(KernelTableTest, AMissingEntryNamesWhatExists) {
  register_kernels();
  try {
    gemm_table().get(DeviceKind::kCpu, Dtype::kInt32);
    FAIL();
  } catch (const UnsupportedError& e) {
    const std::string message = e.what();
    EXPECT_NE(message.find("[gemm]"), std::string::npos) << message;
    EXPECT_NE(message.find("cpu bfloat16"), std::string::npos) << message;
  }
}

TEST(KernelTableTest, TheInstructionSetHasAName) {
  const std::string isa = cpu_kernel_isa();
  EXPECT_TRUE(isa == "avx512" || isa == "avx2" || isa == "reference") << isa;
}

}  // namespace
}  // namespace heirloom
