// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

namespace heirloom::emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlot = size_t{1} << 20;    // allocations begin in slots of their own
constexpr size_t kGuard = size_t{64} << 10;  // at least so much nothing on either side
constexpr size_t kAlignment = 256;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kCanary = 0xc5;
constexpr size_t kNearCanary = 256;

constexpr size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

struct Registry {
  std::recursive_mutex mutex;
  uintptr_t begin = 0;
  size_t bytes = 0;           // of address space; the last quarter is for pinned memory
  uint32_t* slots = nullptr;  // slot -> id of its allocation, 0 for none
  size_t next[2] = {0, 0};    // next free slot, by kind
  size_t end[2] = {0, 0};
  std::deque<Allocation> all;  // by id - 1
  std::vector<uint32_t> alive[2];
  size_t used[2] = {0, 0};
  size_t capacity = 0;
  int open = 0;

  Registry() {
    for (bytes = size_t{1} << 40; bytes >= size_t{1} << 32; bytes /= 2) {
      void* range = mmap(nullptr, bytes + kHugePage, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (range == MAP_FAILED) continue;
      begin = round_up(reinterpret_cast<uintptr_t>(range), kHugePage);
      break;
    }
    if (begin == 0) {
      std::fputs("CUDA emulator: the system gives no address space\n", stderr);
      std::abort();
    }
    const size_t count = bytes / kSlot;
    void* table = mmap(nullptr, count * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table == MAP_FAILED) std::abort();
    slots = static_cast<uint32_t*>(table);
    end[0] = count / 4 * 3;
    next[1] = end[0];
    end[1] = count;
    const char* text = std::getenv("HEIRLOOM_EMULATOR_MEMORY_GIB");
    capacity = static_cast<size_t>(std::max(1.0, text ? std::atof(text) : 8.0) * (1u << 30));
  }
};

// Never destroyed: memory may be freed by destructors of static objects.
Registry& registry() {
  static Registry* const r = new Registry;
  return *r;
}

const char* kind_name(MemoryKind kind) { return kind == MemoryKind::kDevice ? "device" : "pinned"; }

void protect(const Allocation& a, bool accessible) {
  if (mprotect(reinterpret_cast<void*>(a.pages), a.page_bytes,
               accessible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
    std::perror("CUDA emulator: mprotect");
    std::abort();
  }
}

std::string name_of(const Allocation& a) {
  return std::string(kind_name(a.kind)) + " allocation #" + std::to_string(a.id) + " (" +
         std::to_string(a.size) + " bytes)";
}

void fill_canaries(const Allocation& a) {
  std::memset(reinterpret_cast<void*>(a.pages), kCanary, a.base - a.pages);
  const uintptr_t end = a.base + a.size;
  std::memset(reinterpret_cast<void*>(end), kCanary, a.pages + a.page_bytes - end);
}

bool all_canary(const unsigned char* from, size_t bytes, size_t* at) {
  static const std::vector<unsigned char> intact(kPage, kCanary);
  if (std::memcmp(from, intact.data(), bytes) == 0) return true;
  *at = static_cast<size_t>(
      std::find_if(from, from + bytes, [](unsigned char c) { return c != kCanary; }) - from);
  return false;
}

// The bytes around `a` must be accessible.
std::string canary_damage(const Allocation& a, bool whole) {
  const auto* end = reinterpret_cast<const unsigned char*>(a.base + a.size);
  size_t at = 0;
  if (!all_canary(end, a.pages + a.page_bytes - (a.base + a.size), &at)) {
    return name_of(a) + " was overrun: the byte " + std::to_string(at) +
           " past its end was written";
  }
  const size_t front = a.base - a.pages;
  const size_t bytes = whole ? front : std::min(front, kNearCanary);
  const auto* from = reinterpret_cast<const unsigned char*>(a.base - bytes);
  if (!all_canary(from, bytes, &at)) {
    return name_of(a) + " was underrun: the byte " + std::to_string(bytes - at) +
           " before its beginning was written";
  }
  return {};
}

}  // namespace

void* allocate_memory(MemoryKind kind, size_t bytes) {
  install_fault_handler();
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const size_t k = static_cast<size_t>(kind);
  const size_t page_bytes = round_up(std::max<size_t>(bytes, 1), kPage);
  size_t slots = (page_bytes + 2 * kGuard + kSlot - 1) / kSlot;
  size_t behind = kGuard;
  if (page_bytes >= kHugePage) {
    // The end where a huge page may end, one slot more behind it.
    const size_t end = round_up((r.next[k] + slots) * kSlot, kHugePage) / kSlot;
    slots = end + 1 - r.next[k];
    behind = kSlot;
  }
  if (r.next[k] + slots > r.end[k]) return nullptr;
  if (kind == MemoryKind::kDevice && r.used[k] + bytes > r.capacity) return nullptr;

  Allocation a;
  a.kind = kind;
  a.size = bytes;
  a.page_bytes = page_bytes;
  a.pages = r.begin + (r.next[k] + slots) * kSlot - behind - page_bytes;
  a.base = a.pages + page_bytes - round_up(std::max<size_t>(bytes, 1), kAlignment);
  a.id = static_cast<uint32_t>(r.all.size() + 1);
  if (mprotect(reinterpret_cast<void*>(a.pages), page_bytes, PROT_READ | PROT_WRITE) != 0) {
    return nullptr;
  }
  // Large pages: opening and closing goes by pages.
  madvise(reinterpret_cast<void*>(a.pages), page_bytes, MADV_HUGEPAGE);
  std::memset(reinterpret_cast<void*>(a.base), kPoison, bytes);
  fill_canaries(a);
  if (kind == MemoryKind::kDevice && r.open == 0) protect(a, false);
  std::fill_n(r.slots + r.next[k], slots, a.id);
  r.next[k] += slots;
  r.used[k] += bytes;
  r.all.push_back(a);
  r.alive[k].push_back(a.id);
  return reinterpret_cast<void*>(a.base);
}

bool free_memory(MemoryKind kind, const void* data, std::string* damage) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto* a = const_cast<Allocation*>(find_allocation(data));
  if (a == nullptr || !a->alive || a->kind != kind ||
      a->base != reinterpret_cast<uintptr_t>(data)) {
    return false;
  }
  const size_t k = static_cast<size_t>(kind);
  protect(*a, true);
  *damage = canary_damage(*a, true);
  // A new mapping: gives the memory and its page tables back, and stays inaccessible for good.
  void* pages = mmap(reinterpret_cast<void*>(a->pages), a->page_bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (pages == MAP_FAILED) std::abort();
  a->alive = false;
  r.used[k] -= a->size;
  std::erase(r.alive[k], a->id);
  return true;
}

const Allocation* find_allocation(const void* address) {
  Registry& r = registry();
  const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - r.begin;
  if (offset >= r.bytes) return nullptr;
  const uint32_t id = r.slots[offset / kSlot];
  return id == 0 ? nullptr : &r.all[id - 1];
}

bool in_allocation(const void* data, size_t bytes) {
  const Allocation* a = find_allocation(data);
  const auto at = reinterpret_cast<uintptr_t>(data);
  return a != nullptr && a->alive && at >= a->base && bytes <= a->size &&
         at - a->base <= a->size - bytes;
}

std::string describe_address(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const Allocation* a = find_allocation(address);
  if (a == nullptr) {
    // A stray may reach the next allocation's slots; look left before giving up.
    Registry& r = registry();
    if (at - r.begin < r.bytes) return "unallocated device memory";
    return "host memory, no allocation of the device's";
  }
  std::string text;
  if (at < a->base) {
    text = std::to_string(a->base - at) + " bytes before the beginning of ";
  } else if (at >= a->base + a->size) {
    text = std::to_string(at - a->base - a->size) + " bytes past the end of ";
  } else {
    text = "byte " + std::to_string(at - a->base) + " of ";
  }
  return text + (a->alive ? "" : "freed ") + name_of(*a);
}

uintptr_t device_range_begin() { return registry().begin; }
uintptr_t device_range_end() { return registry().begin + registry().end[0] * kSlot; }
size_t allocated_bytes(MemoryKind kind) { return registry().used[static_cast<size_t>(kind)]; }
size_t device_capacity() { return registry().capacity; }

std::string check_canaries(bool whole) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const DeviceMemoryOpen open;
  for (const auto& ids : r.alive) {
    for (const uint32_t id : ids) {
      std::string damage = canary_damage(r.all[id - 1], whole);
      if (!damage.empty()) return damage;
    }
  }
  return {};
}

void restore_canaries() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const DeviceMemoryOpen open;
  for (const auto& ids : r.alive) {
    for (const uint32_t id : ids) fill_canaries(r.all[id - 1]);
  }
}

DeviceMemoryOpen::DeviceMemoryOpen() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  if (r.open++ != 0) return;
  for (const uint32_t id : r.alive[0]) protect(r.all[id - 1], true);
}

DeviceMemoryOpen::~DeviceMemoryOpen() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  if (--r.open != 0) return;
  for (const uint32_t id : r.alive[0]) protect(r.all[id - 1], false);
}

bool device_memory_is_open() { return registry().open != 0; }

}  // namespace heirloom::emulator
