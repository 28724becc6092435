// SPDX-License-Identifier: Apache-2.0
//
// Kernels under test, and their device: one suite runs over every entry of a table.
#pragma once

#include "heirloom/kernels/kernel_table.h"
#include "support/buffers.h"
#include "support/devices.h"
#include "support/numerics.h"

namespace heirloom::test {

/// A kernel of a table, or a reference loop, which is a function for the CPU.
template <class Args>
struct Kernel {
  using Function = typename KernelTable<Args>::Function;

  Kernel(Function f, const Device& where = {}) : function(f), device(where) {}
  /// What `args` points to lies in the memory of `device`: make buffers under OnDevice(device).
  void operator()(const Args& args) const { function(args, device_stream(device)); }

  Function function;
  Device device;
};

/// The entry of `table`.
template <class Args>
Kernel<Args> on(const KernelTable<Args>& table, const Device& device, Dtype dtype) {
  return {table.get(device.kind, dtype), device};
}

/// Calls body.operator()<T>(device) for every device and dtype that `table` has.
template <class Body>
void for_each_entry(const KernelTableBase& table, const Body& body) {
  for_each_device([&](const Device& device) {
    int count = 0;
    const auto visit = [&]<class T>(T) {
      if (!table.has(device.kind, kDtypeOf<T>)) return;
      ++count;
      SCOPED_TRACE(table.name() + " " + dtype_name(kDtypeOf<T>));
      body.template operator()<T>(device);
    };
    visit(float{});
    visit(bfloat16(0.0f));
    visit(double{});
    EXPECT_EQ(count, device.kind == DeviceKind::kCpu ? 3 : 2)
        << table.name() << ": expected float32 and bfloat16, on the CPU float64 too";
  });
}

/// `run` returns all that kernels of `device` wrote. The same bits are expected every time; on the
/// CPU also from any number of threads.
inline void expect_reproducible(const Device& device, const std::function<Values()>& run) {
  if (device.kind == DeviceKind::kCpu) return expect_same_for_any_threads(run);
  const Values once = run();
  EXPECT_TRUE(run() == once) << "two runs differ";
}

}  // namespace heirloom::test
