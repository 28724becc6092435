// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/common/launch.cuh"
#include "tests/cuda_emulator/src/engine.h"
#include "tests/cuda_emulator/src/instrument.h"

namespace heirloom::cuda {

constexpr int kSeeds = 40;

/// Memory that kernels and the host share.
template <class T>
class Pinned {
 public:
  explicit Pinned(size_t n, T value = {}) : n_(n) {
    check(cudaHostAlloc(&data_, n * sizeof(T), cudaHostAllocDefault), "pinned memory");
    std::fill_n(data_, n, value);
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  T* get() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  std::vector<T> values() const { return {data_, data_ + n_}; }

 private:
  size_t n_;
  T* data_ = nullptr;
};

/// What the kernel failed with; empty when it did not.
template <class... P, class... A>
std::string outcome(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... args) {
  std::string text;
  try {
    launch(kernel, grid, block, shared_bytes, Stream{}, std::forward<A>(args)...);
    check(cudaDeviceSynchronize(), "the kernel");
  } catch (const DeviceError& error) {
    text = error.what();
    emulator::reset_runtime();
  }
  emulator::take_report();  // mistakes here are made on purpose
  return text;
}

class Engine : public testing::Test {
 protected:
  ~Engine() override { emulator::set_schedule_seed(1); }
};

}  // namespace heirloom::cuda
