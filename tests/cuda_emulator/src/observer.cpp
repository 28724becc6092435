// SPDX-License-Identifier: Apache-2.0
#include "observer.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "memory.h"
#include "source_lines.h"

namespace heirloom::emulator {
namespace {

constexpr size_t kMostShared = 256 << 10;  // and where it begins depends on its size
constexpr uintptr_t kSector = 32;

struct ConstantSearch {
  uintptr_t address;
  bool found;
};
// Constants of the program and of its libraries: segments that nobody can write.
bool is_constant(uintptr_t address) {
  ConstantSearch search{address, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        auto& s = *static_cast<ConstantSearch*>(out);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& h = info->dlpi_phdr[i];
          const bool constant =
              (h.p_type == PT_LOAD && !(h.p_flags & PF_W)) || h.p_type == PT_GNU_RELRO;
          if (constant && s.address - (info->dlpi_addr + h.p_vaddr) < h.p_memsz) s.found = true;
        }
        return s.found ? 1 : 0;
      },
      &search);
  return search.found;
}

const void* pointer(uintptr_t address) { return reinterpret_cast<const void*>(address); }

bool is_poison(uintptr_t address, size_t bytes) {
  const auto* data = reinterpret_cast<const unsigned char*>(address);
  return std::all_of(data, data + bytes, [](unsigned char c) { return c == 0xff; });
}

const char* verb(Touch touch) {
  switch (touch) {
    case Touch::kRead:
      return "reads";
    case Touch::kWrite:
      return "writes";
    case Touch::kAtomic:
      return "adds atomically to";
  }
  return "";
}

}  // namespace

struct Observer::Memory {
  explicit Memory(const Allocation& a)
      : allocation(&a), shadow(a.base, a.size, false), sectors((a.size + kSector - 1) / kSector) {
    void* map = mmap(nullptr, (sectors + 1) * sizeof(SectorLaunches), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw KernelError("the emulator could not map its shadow memory");
    launches = static_cast<SectorLaunches*>(map);
  }
  ~Memory() { munmap(launches, (sectors + 1) * sizeof(SectorLaunches)); }
  Memory(const Memory&) = delete;

  struct SectorLaunches {
    uint32_t read, written;  // the launch that last did
  };
  const Allocation* allocation;
  Shadow shadow;
  size_t sectors;
  SectorLaunches* launches;
};

Observer& Observer::instance() {
  static auto* const observer = new Observer;  // kernels may run until the process ends
  return *observer;
}

void Observer::kernel_begin() {
  stack_ = stack_range();
  stack_bytes_ = stack_.end - stack_.begin;
  arguments_ = argument_range();
  shared_ = shared_range();
  static_shared_ = static_shared_range();
  const size_t shared_bytes = shared_.end - shared_.begin;
  if (!shared_shadow_ || !shared_shadow_->contains(shared_.begin, shared_bytes)) {
    shared_shadow_ = std::make_unique<Shadow>(shared_.begin - kMostShared, 2 * kMostShared, true);
  }
  const size_t static_bytes = static_shared_.end - static_shared_.begin;
  if (static_bytes > 0 &&
      (!static_shadow_ || !static_shadow_->contains(static_shared_.begin, static_bytes))) {
    static_shadow_ = std::make_unique<Shadow>(static_shared_.begin, static_bytes, true);
  }
  for (auto& memory : memories_) {
    if (memory && !memory->allocation->alive) memory.reset();
  }
  last_memory_ = nullptr;
  const dim3& block = current_launch().block;
  threads_ = block.x * block.y * block.z;
  order_.begin_launch();
  ++launch_;
  dram_read_ = dram_written_ = 0;
  kernel_ = &kernels_[current_kernel().name];
  recorders_.resize((threads_ + 31) / 32);
  for (WarpRecorder& r : recorders_) r.clear();
  inside_ = false;
}

void Observer::kernel_end() {
  inside_ = false;
  if (!traffic_) return;
  KernelTraffic& t = kernel_->totals;
  const LaunchConfig& launch = current_launch();
  ++t.launches;
  t.blocks += uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  t.threads = threads_;
  t.shared_bytes = launch.shared_bytes;
  t.dram_read += dram_read_;
  t.dram_written += dram_written_;
}

void Observer::block_begin() {
  order_.begin_block(static_cast<uint32_t>(current_thread().block), threads_);
  shared_shadow_->forget_contents(shared_.begin, shared_.end - shared_.begin);
  if (static_shadow_) {
    static_shadow_->forget_contents(static_shared_.begin,
                                    static_shared_.end - static_shared_.begin);
  }
  inside_ = true;
}

void Observer::block_end() {
  inside_ = false;
  for (WarpRecorder& r : recorders_) {
    r.converge([&](uint32_t p, const WarpAccess& a) { count(p, a); });
  }
}

void Observer::block_barrier(const void*) {
  const Deaf deaf(inside_);
  order_.block_barrier();
  for (WarpRecorder& r : recorders_) {
    r.converge([&](uint32_t p, const WarpAccess& a) { count(p, a); });
  }
}

void Observer::warp_barrier(uint32_t warp, uint32_t mask, const void*) {
  const Deaf deaf(inside_);
  order_.warp_barrier(warp, mask);
  if (mask != 0xffffffffu) return;  // the others are somewhere else
  recorders_[warp].converge([&](uint32_t p, const WarpAccess& a) { count(p, a); });
}

void Observer::fence(bool device, const void*) {
  const Deaf deaf(inside_);
  if (!device) return;  // orders nothing that is seen here
  order_.fence(current_thread().thread);
}

void Observer::access(const void* address, size_t bytes, AccessKind kind, const void* pc) {
  const Deaf deaf(inside_);
  observe(reinterpret_cast<uintptr_t>(address), bytes,
          kind == AccessKind::kRead ? Touch::kRead : Touch::kWrite, pc, false);
}

void Observer::matrix_row(const void* row, int, const void* pc) {
  const Deaf deaf(inside_);
  observe(reinterpret_cast<uintptr_t>(row), 16, Touch::kRead, pc, true);
}

void Observer::atomic(const void* address, size_t bytes, const void* pc) {
  const Deaf deaf(inside_);
  const auto at = reinterpret_cast<uintptr_t>(address);
  observe(at, bytes, Touch::kAtomic, pc, false);
  if (!shared_.contains(at) && !static_shared_.contains(at)) {
    order_.atomic(current_thread().thread, at);
  }
}

void Observer::copy_begin(void* shared, const void* global, size_t bytes, const void* pc) {
  const Deaf deaf(inside_);
  if (global != nullptr) {
    observe(reinterpret_cast<uintptr_t>(global), bytes, Touch::kRead, pc, false);
  }
  observe(reinterpret_cast<uintptr_t>(shared), bytes, Touch::kWrite, pc, false, true);
}

void Observer::copy_end(void* shared, const void*, size_t bytes, const void* pc) {
  const Deaf deaf(inside_);
  Shadow& shadow =
      shared_.contains(reinterpret_cast<uintptr_t>(shared)) ? *shared_shadow_ : *static_shadow_;
  shadow.complete_async_write(order_, current_thread().thread, reinterpret_cast<uintptr_t>(shared),
                              bytes, place(pc, Space::kShared, Touch::kWrite, false));
}

void Observer::memory_written(const void* data, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(data);
  if (Memory* memory = memory_of(at, bytes)) memory->shadow.mark_written(at, bytes);
}

void Observer::observe(uintptr_t address, size_t bytes, Touch touch, const void* pc, bool matrix,
                       bool copy) {
  const unsigned thread = current_thread().thread, warp = thread / 32;
  Shadow* shadow = nullptr;
  Space space = Space::kShared;
  Memory* memory = nullptr;
  if (shared_.contains(pointer(address), bytes)) {
    shadow = shared_shadow_.get();
  } else if ((memory = memory_of(address, bytes)) != nullptr) {
    space = Space::kGlobal;
    shadow = &memory->shadow;
  } else if (static_shared_.contains(pointer(address), bytes)) {
    shadow = static_shadow_.get();
  } else {
    const bool constant = arguments_.contains(address) || is_constant(address);
    if (constant && touch == Touch::kRead) return;
    if (in_library_template(reinterpret_cast<uintptr_t>(pc))) return;
    std::string where = describe_kernel_address(pointer(address));
    if (where.empty()) {
      where = constant ? "a launch argument or a constant" : describe_address(pointer(address));
    }
    out_of_bounds(where, place(pc, Space::kGlobal, touch, matrix), bytes, pc);
  }
  const uint32_t p = place(pc, space, touch, matrix);
  check(*shadow, address, bytes, touch, p, thread, copy);
  if (!traffic_) return;
  if (memory != nullptr) count_sectors(*memory, address, bytes, touch);
  const unsigned lanes = std::min(32u, threads_ - warp * 32);
  const uint32_t all = matrix ? 0 : lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  recorders_[warp].record(p, thread % 32, all, address, static_cast<uint32_t>(bytes),
                          [&](uint32_t at, const WarpAccess& a) { count(at, a); });
}

void Observer::check(Shadow& shadow, uintptr_t address, size_t bytes, Touch touch, uint32_t place,
                     unsigned thread, bool copy) {
  if (touch != Touch::kWrite && shadow.written_bytes(address, bytes) == 0) {
    // Copies, fills and library calls write without telling; static shared memory is not poisoned.
    if (&shadow == static_shadow_.get() || is_poison(address, bytes)) {
      report(Finding::Kind::kUninitialised, place, place,
             std::string(verb(touch)) + " " + std::to_string(bytes) + " bytes at " +
                 describe(address) + ", which nobody has written",
             "");
    } else {
      shadow.mark_written(address, bytes);
    }
  }
  const Conflict c = copy ? shadow.begin_async_write(order_, thread, address, bytes, place)
                          : shadow.access(order_, thread, address, bytes, touch, place);
  if (!c) return;
  const char* did = c.with == Conflict::With::kRead     ? "reads"
                    : c.with == Conflict::With::kAtomic ? "adds atomically to"
                    : c.with == Conflict::With::kWrite  ? "writes"
                                                        : "copies to, not yet waited for,";
  report(Finding::Kind::kRace, place, c.pc, std::string(verb(touch)) + " " + describe(c.address),
         thread_text(c.block, c.thread) + " " + did + " it without an order between them");
}

Observer::Memory* Observer::memory_of(uintptr_t address, size_t bytes) {
  if (last_memory_ != nullptr) {
    const Allocation& a = *last_memory_->allocation;
    if (address >= a.base && address + bytes <= a.base + a.size) return last_memory_;
  }
  const Allocation* a = find_allocation(pointer(address));
  if (a == nullptr || !a->alive || address < a->base || address + bytes > a->base + a->size) {
    return nullptr;
  }
  if (a->id >= memories_.size()) memories_.resize(a->id + 1);
  auto& memory = memories_[a->id];
  if (!memory) {
    memory = std::make_unique<Memory>(*a);
    if (a->kind == MemoryKind::kPinned) memory->shadow.mark_written(a->base, a->size);
  }
  return last_memory_ = memory.get();
}

void Observer::count_sectors(Memory& memory, uintptr_t address, size_t bytes, Touch touch) {
  if (memory.allocation->kind != MemoryKind::kDevice) return;
  const uintptr_t base = memory.allocation->base;
  const size_t last = (address + bytes - 1 - base) / kSector;
  for (size_t s = (address - base) / kSector; s <= last; ++s) {
    auto& launches = memory.launches[s];
    if (touch != Touch::kWrite && launches.read != launch_ && launches.written != launch_) {
      launches.read = launch_;
      dram_read_ += kSector;
    }
    if (touch != Touch::kRead && launches.written != launch_) {
      launches.written = launch_;
      dram_written_ += kSector;
    }
  }
}

void Observer::count(uint32_t p, const WarpAccess& access) {
  if (p >= kernel_->stats.size()) kernel_->stats.resize(places_.size());
  Stat& stat = kernel_->stats[p];
  ++stat.accesses;
  stat.bytes = access.bytes;
  const Place& place = places_[p];
  stat.units += place.space == Space::kGlobal ? sectors(access)
                : place.matrix                ? matrix_wavefronts(access)
                                              : wavefronts(access);
}

uint32_t Observer::place(const void* pc, Space space, Touch touch, bool matrix) {
  const uint64_t key = reinterpret_cast<uintptr_t>(pc) << 4 | static_cast<uint64_t>(space) << 3 |
                       static_cast<uint64_t>(touch) << 1 | static_cast<uint64_t>(matrix);
  if (places_.size() * 2 >= place_keys_.size()) {
    std::vector<uint64_t> keys(std::max<size_t>(4096, place_keys_.size() * 2));
    std::vector<uint32_t> ids(keys.size());
    for (size_t i = 0; i < place_keys_.size(); ++i) {
      if (place_keys_[i] == 0) continue;
      size_t at = place_keys_[i] * 0x9E3779B97F4A7C15ull >> 20 & (keys.size() - 1);
      while (keys[at] != 0) at = (at + 1) & (keys.size() - 1);
      keys[at] = place_keys_[i];
      ids[at] = place_ids_[i];
    }
    place_keys_.swap(keys);
    place_ids_.swap(ids);
  }
  const size_t mask = place_keys_.size() - 1;
  size_t at = key * 0x9E3779B97F4A7C15ull >> 20 & mask;
  for (; place_keys_[at] != 0; at = (at + 1) & mask) {
    if (place_keys_[at] == key) return place_ids_[at];
  }
  place_keys_[at] = key;
  place_ids_[at] = static_cast<uint32_t>(places_.size());
  places_.push_back({reinterpret_cast<uintptr_t>(pc), space, touch, matrix});
  return place_ids_[at];
}

void Observer::out_of_bounds(const std::string& where, uint32_t place, size_t bytes,
                             const void* pc) {
  const Touch touch = places_[place].touch;
  const std::string text =
      std::string(verb(touch)) + " " + std::to_string(bytes) + " bytes at " + where;
  report(Finding::Kind::kOutOfBounds, place, place, text, "");
  fail(text, pc);
}

void Observer::report(Finding::Kind kind, uint32_t place, uint32_t other_place, std::string what,
                      std::string other) {
  auto [found, fresh] = findings_.try_emplace({kind, place, other_place});
  RawFinding& f = found->second;
  if (fresh) {
    const ThreadView t = current_thread();
    f.kind = kind;
    f.kernel = current_kernel().name;
    f.place = place;
    f.other_place = other_place;
    f.what = thread_text(t.block, static_cast<int>(t.thread)) + " " + std::move(what);
    f.other = std::move(other);
  }
  ++f.count;
}

std::string Observer::describe(uintptr_t address) const {
  if (shared_.contains(address)) {
    return "byte " + std::to_string(address - shared_.begin) + " of dynamic shared memory";
  }
  if (static_shared_.contains(address) && find_allocation(pointer(address)) == nullptr) {
    return "a __shared__ variable";
  }
  return describe_address(pointer(address));
}

std::string Observer::thread_text(uint64_t block, int thread) const {
  const dim3& grid = current_launch().grid;
  const dim3& threads = current_launch().block;
  std::string text = "block " + std::to_string(block);
  if (grid.y * grid.z > 1) {
    text += " (" + std::to_string(block % grid.x) + "," + std::to_string(block / grid.x % grid.y) +
            "," + std::to_string(block / (uint64_t{grid.x} * grid.y)) + ")";
  }
  if (thread < 0) return text + ", several threads:";
  const auto t = static_cast<unsigned>(thread);
  text += ", thread " + std::to_string(t);
  if (threads.y * threads.z > 1) {
    text += " (" + std::to_string(t % threads.x) + "," + std::to_string(t / threads.x % threads.y) +
            "," + std::to_string(t / (threads.x * threads.y)) + ")";
  }
  return text;
}

}  // namespace heirloom::emulator
