// SPDX-License-Identifier: Apache-2.0
#include "shared_area.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace heirloom::emulator {

SharedArea::SharedArea() {
  void* all = mmap(nullptr, kArea + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<unsigned char*>(all) + kPage;
  if (mprotect(pages_, kArea, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  resize(0);
}

SharedArea::~SharedArea() { munmap(pages_ - kPage, kArea + 2 * kPage); }

void SharedArea::resize(size_t bytes) {
  const size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  bytes_ = bytes;
  slack_ = whole - bytes;
  data_ = pages_ + kArea - whole;
}

void SharedArea::prepare() {
  std::memset(data_ - kAlignment, kCanary, kAlignment);
  std::memset(data_, kPoison, bytes_);
  std::memset(data_ + bytes_, kCanary, slack_);
}

const char* SharedArea::damage() const {
  const auto intact = [](const unsigned char* fence, size_t n) {
    return std::all_of(fence, fence + n, [](unsigned char c) { return c == kCanary; });
  };
  if (!intact(data_ - kAlignment, kAlignment)) return "before the beginning";
  return intact(data_ + bytes_, slack_) ? nullptr : "past the end";
}

std::string SharedArea::describe(uintptr_t address) const {
  const auto first = reinterpret_cast<uintptr_t>(pages_) - kPage;
  const auto begin = reinterpret_cast<uintptr_t>(data_), end = begin + bytes_;
  std::string text;
  if (address - first >= kArea + 2 * kPage) return text;
  if (address < begin) {
    text = std::to_string(begin - address) + " bytes before the beginning of ";
  } else if (address >= end) {
    text = std::to_string(address - end) + " bytes past the end of ";
  } else {
    text = "byte " + std::to_string(address - begin) + " of ";
  }
  text += std::to_string(bytes_);
  text += " bytes of dynamic shared memory";
  return text;
}

}  // namespace heirloom::emulator
