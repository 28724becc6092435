// SPDX-License-Identifier: Apache-2.0
//
// A kernel table maps (device, dtype) to a function that sees raw pointers, sizes and a stream.
// Tables are filled by explicit registration; a missing entry throws and lists what exists. All
// tables enumerate themselves, so tests can prove that every registered pair is tested.
//
// Axes, here and in every kernel header: B sequences, T queries, S keys, N rows (tokens), C model
// width, H query heads, G KV heads, D head width of q and k, E head width of v, F MLP width, V
// vocabulary. Matrices are row-major; strides are in elements. `T` names the table's dtype, `A` its
// accumulate_dtype (float32; float64 for float64).
#pragma once

#include <array>
#include <string>
#include <vector>

#include "heirloom/core/device.h"
#include "heirloom/core/dtype.h"

namespace heirloom {

/// What one call moves and computes; the same expressions stand in the kernel files' heads.
struct KernelCost {
  double bytes_read = 0, bytes_written = 0, flops = 0;
  KernelCost& operator+=(const KernelCost& other) {
    bytes_read += other.bytes_read;
    bytes_written += other.bytes_written;
    flops += other.flops;
    return *this;
  }
  double bytes() const { return bytes_read + bytes_written; }
};

class KernelTableBase {
 public:
  explicit KernelTableBase(const char* name);
  KernelTableBase(const KernelTableBase&) = delete;
  const std::string& name() const { return name_; }
  virtual bool has(DeviceKind device, Dtype dtype) const = 0;

 protected:
  ~KernelTableBase() = default;
  [[noreturn]] void missing(DeviceKind device, Dtype dtype) const;

 private:
  std::string name_;
};

/// Every table of the process, in the order of their first use by a registrar.
const std::vector<const KernelTableBase*>& kernel_tables();

template <class Args>
class KernelTable final : public KernelTableBase {
 public:
  using Function = void (*)(const Args&, Stream);
  using KernelTableBase::KernelTableBase;
  void set(DeviceKind device, Dtype dtype, Function f) { slot(device, dtype) = f; }
  bool has(DeviceKind device, Dtype dtype) const override { return slot(device, dtype) != nullptr; }
  Function get(DeviceKind device, Dtype dtype) const {
    if (Function f = slot(device, dtype)) return f;
    missing(device, dtype);
  }

 private:
  Function& slot(DeviceKind device, Dtype dtype) {
    return functions_[static_cast<size_t>(device)][static_cast<size_t>(dtype)];
  }
  const Function& slot(DeviceKind device, Dtype dtype) const {
    return functions_[static_cast<size_t>(device)][static_cast<size_t>(dtype)];
  }
  std::array<std::array<Function, 4>, 3> functions_{};
};

/// Fills the tables for the CPU: float32 and bfloat16 for the best instruction set the processor
/// has, float64 from the reference loops. Safe to call more than once.
void register_cpu_kernels();

/// "avx512", "avx2": what register_cpu_kernels chose. HEIRLOOM_CPU_ISA in the environment may ask
/// for less.
std::string cpu_kernel_isa();

}  // namespace heirloom
