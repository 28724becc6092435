// SPDX-License-Identifier: Apache-2.0
//
// A block's dynamic shared memory: as many bytes as were asked for between two fences, filled with
// 0xff, a NaN in every float type. Behind the last byte (rounded up to 128) memory is inaccessible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace heirloom::emulator {

class SharedArea {
 public:
  static constexpr size_t kMostBytes = 227 << 10;

  SharedArea();
  ~SharedArea();
  SharedArea(const SharedArea&) = delete;

  /// For the blocks of one grid.
  void resize(size_t bytes);
  void prepare();
  /// "before the beginning" or "past the end" when a fence was overwritten since.
  const char* damage() const;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  /// "8 bytes past the end of 1024 bytes of dynamic shared memory"; empty when it is elsewhere.
  std::string describe(uintptr_t address) const;

 private:
  static constexpr size_t kPage = 4096, kAlignment = 128;
  static constexpr size_t kArea = 232 << 10;  // whole pages; data end at their end
  static constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;

  unsigned char* pages_ = nullptr;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0, slack_ = 0;
};

}  // namespace heirloom::emulator
