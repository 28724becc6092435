// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <link.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "fiber.h"
#include "shared_area.h"
#include "site_text.h"
#include "source_lines.h"
#include "thread_index.h"

namespace heirloom::emulator {

Instrument* instrument = nullptr;
constinit __thread ThreadView running_thread;
constinit __thread const void* acting_pc = nullptr;

namespace {

constexpr uint32_t kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;
constexpr const char* kMeetingNames[] = {"__syncwarp",          "a shuffle", "a vote",
                                         "a __reduce_*_sync()", "ldmatrix",  "mma"};

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

uint64_t environment_seed() {
  const char* text = std::getenv("HEIRLOOM_EMULATOR_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

std::atomic<uint64_t>& global_seed() {
  static std::atomic<uint64_t> seed{environment_seed()};
  return seed;
}
std::atomic<uint64_t> seeds_set{0};

// Lanes that wait for the rest of a mask.
struct Group {
  uint32_t mask, arrived;
  Meeting meeting;
  Combine combine;
  Site site;
};

// Lanes by what they do, as bits. A living lane is in one of `fresh` (has not begun), `ready`,
// `at_barrier`, or in a group's `arrived`, or it is the running one.
struct Warp {
  uint32_t exists, fresh, ready, at_barrier, exited;
  std::vector<Group> groups;
};

class Engine {
 public:
  Engine() : fibers_(kMaxThreads, &Engine::enter), index_of_thread_(thread_index()) {
    find_static_shared();
  }

  void run(const LaunchConfig& config, const std::function<void()>& body,
           const KernelInfo& kernel) {
    if (running_) throw KernelError("[emulator] a kernel was launched from within a kernel");
    const uint64_t threads = uint64_t{config.block.x} * config.block.y * config.block.z;
    const uint64_t blocks = uint64_t{config.grid.x} * config.grid.y * config.grid.z;
    if (threads == 0 || threads > kMaxThreads || blocks == 0 ||
        config.shared_bytes > SharedArea::kMostBytes) {
      throw KernelError("[emulator] impossible launch of " + kernel.name);
    }
    ++launches_;
    if (const uint64_t n = seeds_set.load(); n != seed_number_) {
      seed_number_ = n;
      launches_since_seed_ = 0;
    }
    random_state_ = mix(global_seed() + 0x9E3779B97F4A7C15ull * launches_since_seed_++);
    config_ = config;
    kernel_ = kernel;
    body_ = &body;
    threads_ = static_cast<uint32_t>(threads);
    warps_ = (threads_ + 31) / 32;
    number_threads();
    shared_.resize(config.shared_bytes);
    set_dimensions({config.block.x, config.block.y, config.block.z},
                   {config.grid.x, config.grid.y, config.grid.z});
    struct Running {
      Engine* engine;
      explicit Running(Engine* e) : engine(e) { e->running_ = true; }
      ~Running() {
        engine->running_ = false;
        running_thread = {};
        if (instrument) instrument->kernel_end();
      }
    };
    const Running running(this);
    if (instrument) instrument->kernel_begin();

    // A walk through all blocks in strides that have no factor in common with their number.
    uint64_t at = random() % blocks, stride = random() % blocks;
    while (std::gcd(stride, blocks) != 1) stride = (stride + 1) % (blocks + 1);
    for (uint64_t i = 0; i < blocks; ++i) {
      run_block(at);
      at = (at + stride) % blocks;
    }
  }

  uint64_t random() {  // splitmix64
    return mix(random_state_ += 0x9E3779B97F4A7C15ull);
  }

  LaneSlot* warp_slots() { return slots_ + (current_ & ~31u); }

  void meet(Meeting meeting, uint32_t mask, Combine combine, const Site& site) {
    const uint32_t lane = current_ % 32, bit = 1u << lane;
    Warp& warp = warp_[current_ / 32];
    if (!(mask & bit) || (mask & (~warp.exists | warp.exited | warp.at_barrier))) {
      refuse_mask(warp, meeting, mask, site);
    }
    auto group = warp.groups.begin();
    while (group != warp.groups.end() && group->mask != mask) ++group;
    if (group == warp.groups.end() || group->meeting != meeting ||
        (meeting != Meeting::kSyncWarp && !same_line(group->site, site))) {
      refuse_cycle(warp, meeting, mask, site);
      warp.groups.push_back({mask, 0, meeting, combine, site});
      group = warp.groups.end() - 1;
    }
    group->arrived |= bit;
    if (group->arrived != mask) return go_on();
    *group = warp.groups.back();
    warp.groups.pop_back();
    if (combine) combine(warp_slots(), mask);
    if (meeting == Meeting::kSyncWarp && instrument) {
      instrument->warp_barrier(current_ / 32, mask, site.pc);
    }
    warp.ready |= mask & ~bit;
    // Now and then somebody else first.
    if ((random() & 15) == 0) give_way();
  }

  uint32_t meet_block(uint32_t value, const Site& site) {
    if (arrived_ == 0) {
      barrier_site_ = site;
      barrier_sum_ = 0;
    } else if (!same_line(barrier_site_, site)) {
      std::string text = join("came to this __syncthreads while ", std::to_string(arrived_),
                              arrived_ == 1 ? " thread waits" : " threads wait",
                              " at another one, ", file_line(barrier_site_));
      fail(std::move(text), site);
    }
    Warp& warp = warp_[current_ / 32];
    if (!warp.groups.empty()) check_groups_against_barrier(warp, site);
    barrier_sum_ += value;
    ++arrived_;
    if (arrived_ < alive_) {
      warp.at_barrier |= 1u << (current_ % 32);
      go_on();
    } else {
      open_barrier(site.pc);
      give_way();
    }
    return barrier_sum_of_last_;
  }

  [[noreturn]] void stop(std::string what, const void* pc, const Site* site) {
    error_ = location();
    error_ += what;
    std::string().swap(what);
    error_pc_ = acting_pc ? acting_pc : pc;
    if (site) error_line_ = file_line(*site);
    fibers_.leave_for_host();
  }

  std::string block_name() const {
    std::string text = "kernel ";
    text += kernel_.name;
    text += ", block ";
    text += triple(block_, config_.grid);
    return text;
  }
  std::string location() const {
    std::string text = block_name();
    text += ", thread ";
    text += triple(current_, config_.block);
    text += ": ";
    return text;
  }

  bool running_ = false;
  uint64_t launches_ = 0, blocks_run_ = 0;
  LaunchConfig config_;
  KernelInfo kernel_;
  SharedArea shared_;
  Fibers fibers_;
  ByteRange static_shared_;
  uint32_t current_ = 0;  // linear thread
  LaneSlot slots_[kMaxThreads];

 private:
  static const char* name(Meeting meeting) { return kMeetingNames[static_cast<size_t>(meeting)]; }

  static std::string triple(uint64_t i, const dim3& d) {
    return "(" + std::to_string(i % d.x) + "," + std::to_string(i / d.x % d.y) + "," +
           std::to_string(i / (uint64_t{d.x} * d.y)) + ")";
  }

  void number_threads() {
    const dim3& b = config_.block;
    uint32_t t = 0;
    for (unsigned z = 0; z < b.z; ++z) {
      for (unsigned y = 0; y < b.y; ++y) {
        for (unsigned x = 0; x < b.x; ++x) index_[t++] = {x, y, z};
      }
    }
  }

  void run_block(uint64_t block) {
    block_ = block;
    ++blocks_run_;
    const dim3& g = config_.grid;
    set_block({static_cast<unsigned>(block % g.x), static_cast<unsigned>(block / g.x % g.y),
               static_cast<unsigned>(block / (uint64_t{g.x} * g.y))},
              shared_.data());
    shared_.prepare();
    alive_ = threads_;
    arrived_ = 0;
    active_warps_ = 0;
    for (uint32_t w = 0; w < warps_; ++w) {
      const uint32_t lanes = std::min(32u, threads_ - 32 * w);
      warp_[w].exists = warp_[w].fresh = lanes == 32 ? ~0u : (1u << lanes) - 1;
      warp_[w].ready = warp_[w].at_barrier = warp_[w].exited = 0;
      warp_[w].groups.clear();
      active_warps_ |= 1u << w;
    }
    fibers_.reset();
    error_.clear();
    error_line_.clear();
    error_pc_ = acting_pc = nullptr;
    running_thread = {true, block, 0};
    if (instrument) instrument->block_begin();

    choose_warp();
    go_on();

    running_thread = {};
    if (!error_.empty()) raise();
    if (const char* damage = shared_.damage()) {
      throw KernelError(block_name() + ": a thread wrote " + damage + " of the block's " +
                        std::to_string(config_.shared_bytes) + " bytes of dynamic shared memory");
    }
    if (instrument) instrument->block_end();
  }

  [[noreturn]] void raise() {
    fibers_.forget_frames();
    std::string text = error_;
    if (!error_line_.empty()) text += "; at " + error_line_;
    if (error_pc_) {
      const std::string line = source_lines({reinterpret_cast<uintptr_t>(error_pc_)})[0];
      const auto file_of = [](const std::string& l) {
        const size_t slash = l.rfind('/'), begin = slash == std::string::npos ? 0 : slash + 1;
        return l.substr(begin, l.rfind(':') - begin);
      };
      if (error_line_.empty()) {
        text += "; at " + line;
      } else if (line[0] != '?' && file_of(line) != file_of(error_line_)) {
        text += " in " + line;  // the other way round the compiler may have joined two lines' code
      }
    }
    throw KernelError(text);
  }

  // ---- switching ----

  static void enter() { current_engine->thread_loop(); }

  /// Runs threads from their beginning, one after another as long as they end without waiting.
  void thread_loop() {
    fibers_.entered();
    for (;;) {
      (*body_)();
      thread_exits();
      if (alive_ == 0) fibers_.leave_for_host();
      const uint32_t next = choose_thread();
      if (next == kNobody) report_deadlock();
      set_current(next);
      if (fiber_of_[next] == nullptr) {
        fiber_of_[next] = fibers_.current();
        continue;
      }
      fibers_.give_back(fibers_.current());
      fibers_.leave_for(fiber_of_[next]);
    }
  }

  void thread_exits() {
    Warp& warp = warp_[current_ / 32];
    warp.exited |= 1u << (current_ % 32);
    --alive_;
    for (const Group& group : warp.groups) {
      if (!(group.mask & warp.exited)) continue;
      std::string text = join("exited while ", lane_list(group.arrived),
                              wait_or_waits(group.arrived), " for it at ", name(group.meeting));
      fail(std::move(text), group.site);
    }
    if (arrived_ != 0 && arrived_ == alive_) open_barrier(barrier_site_.pc);
  }

  /// Runs somebody else; returns when it is this thread's turn again.
  void go_on() {
    const uint32_t next = choose_thread();
    if (next == kNobody) report_deadlock();
    if (fiber_of_[next] == nullptr) fiber_of_[next] = fibers_.take();
    set_current(next);
    if (fiber_of_[next] != fibers_.current()) fibers_.switch_to(fiber_of_[next]);
  }
  /// The same for a thread that could run.
  void give_way() {
    warp_[current_ / 32].ready |= 1u << (current_ % 32);
    active_warps_ |= 1u << (current_ / 32);
    choose_warp();
    go_on();
  }

  void set_current(uint32_t thread) {
    current_ = thread;
    *index_of_thread_ = index_[thread];
    running_thread.thread = thread;
  }

  // ---- scheduling ----

  static constexpr uint32_t kNobody = ~0u;

  /// The next lane of the warp at hand, else of another one; takes it out of the waiting ones.
  uint32_t choose_thread() {
    uint32_t candidates = warp_[at_warp_].fresh | warp_[at_warp_].ready;
    if (candidates == 0) {
      active_warps_ &= ~(1u << at_warp_);
      if (active_warps_ == 0) return kNobody;
      choose_warp();
      candidates = warp_[at_warp_].fresh | warp_[at_warp_].ready;
    }
    Warp& warp = warp_[at_warp_];
    const uint32_t lane = backwards_ ? 31 - first_after(reversed(candidates), rotation_)
                                     : first_after(candidates, rotation_);
    const uint32_t bit = 1u << lane, thread = at_warp_ * 32 + lane;
    if (warp.fresh & bit) fiber_of_[thread] = nullptr;
    warp.fresh &= ~bit;
    warp.ready &= ~bit;
    return thread;
  }
  void choose_warp() {
    const uint64_t bits = random();
    at_warp_ = first_after(active_warps_, bits & 31);
    rotation_ = bits >> 5 & 31;
    backwards_ = bits >> 10 & 1;
  }
  /// The first set bit at or after `from`, around the end.
  static uint32_t first_after(uint32_t mask, uint64_t from) {
    const int turn = static_cast<int>(from);
    return (static_cast<uint32_t>(std::countr_zero(std::rotr(mask, turn))) +
            static_cast<uint32_t>(turn)) %
           32;
  }

  static uint32_t reversed(uint32_t x) {
    x = __builtin_bswap32(x);
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    return (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  }

  void open_barrier(const void* pc) {
    if (instrument) instrument->block_barrier(pc);
    arrived_ = 0;
    barrier_sum_of_last_ = barrier_sum_;
    for (uint32_t w = 0; w < warps_; ++w) {
      warp_[w].ready |= warp_[w].at_barrier;
      if (warp_[w].at_barrier) active_warps_ |= 1u << w;
      warp_[w].at_barrier = 0;
    }
  }

  // ---- refusals ----

  static const char* wait_or_waits(uint32_t lanes) {
    return std::popcount(lanes) == 1 ? " waits" : " wait";
  }

  void refuse_mask(const Warp& warp, Meeting meeting, uint32_t mask, const Site& site) {
    std::string text = name(meeting);
    if (!(mask >> (current_ % 32) & 1)) {
      text += " was called by a lane that its mask leaves out";
    } else if (mask & ~warp.exists) {
      text += " names ";
      text += lane_list(mask & ~warp.exists);
      text += ", which the block does not have";
    } else if (mask & warp.exited) {
      text += " names ";
      text += lane_list(mask & warp.exited);
      text += ", which exited before";
    } else {
      const uint32_t lanes = mask & warp.at_barrier;
      text += " names ";
      text += lane_list(lanes);
      text += std::popcount(lanes) == 1 ? ", which waits" : ", which wait";
      text += " for all threads at __syncthreads, ";
      text += file_line(barrier_site_);
    }
    fail(std::move(text), site);
  }

  // Lanes that this one needs may be waiting for it elsewhere.
  void refuse_cycle(const Warp& warp, Meeting meeting, uint32_t mask, const Site& site) {
    for (const Group& other : warp.groups) {
      const uint32_t lanes = other.arrived & mask;
      if (!(other.mask >> (current_ % 32) & 1) || !lanes) continue;
      std::string text =
          join(name(meeting), " needs ", lane_list(lanes), ", which", wait_or_waits(lanes),
               " for this lane at ", name(other.meeting), ", ", file_line(other.site));
      if (other.meeting == meeting && other.mask != mask) text += " (with another mask)";
      fail(std::move(text), site);
    }
  }

  void check_groups_against_barrier(const Warp& warp, const Site& site) {
    for (const Group& group : warp.groups) {
      if (!(group.mask >> (current_ % 32) & 1)) continue;
      std::string text =
          join("__syncthreads waits for ", lane_list(group.arrived), " of this warp, which",
               wait_or_waits(group.arrived), " for this lane at ", name(group.meeting), ", ",
               file_line(group.site));
      fail(std::move(text), site);
    }
  }

  [[noreturn]] void report_deadlock() {
    std::string text = "threads wait for others that never come:";
    if (arrived_) {
      text += join(" ", std::to_string(arrived_), " of ", std::to_string(alive_),
                   " living threads at __syncthreads, ", file_line(barrier_site_), ";");
    }
    for (uint32_t w = 0; w < warps_; ++w) {
      for (const Group& g : warp_[w].groups) {
        text +=
            join(" warp ", std::to_string(w), ": ", lane_list(g.arrived), " at ", name(g.meeting),
                 ", ", file_line(g.site), ", for ", lane_list(g.mask & ~g.arrived), ";");
      }
    }
    text.pop_back();
    stop(std::move(text), nullptr, nullptr);
  }

  void find_static_shared() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
            const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
            *static_cast<ByteRange*>(out) = {begin, begin + info->dlpi_phdr[i].p_memsz};
          }
          return 1;  // the first is the program
        },
        &static_shared_);
  }

 public:
  ~Engine() { current_engine = nullptr; }
  Engine(const Engine&) = delete;

  static constinit thread_local Engine* current_engine;

 private:
  Fiber* fiber_of_[kMaxThreads] = {};
  Index3 index_[kMaxThreads] = {};
  Index3* index_of_thread_ = nullptr;
  Warp warp_[kMaxWarps] = {};
  uint32_t active_warps_ = 0;  // that have fresh or ready lanes; may have one too many
  uint32_t at_warp_ = 0;
  uint64_t rotation_ = 0;  // which lane of it comes first, and the direction
  bool backwards_ = false;
  uint32_t threads_ = 0, warps_ = 0, alive_ = 0;
  uint32_t arrived_ = 0;  // at __syncthreads, the last one included
  uint32_t barrier_sum_ = 0, barrier_sum_of_last_ = 0;
  Site barrier_site_;
  uint64_t block_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::string error_, error_line_;
  const void* error_pc_ = nullptr;
  uint64_t random_state_ = 0, seed_number_ = 0, launches_since_seed_ = 0;
};

constinit thread_local Engine* Engine::current_engine = nullptr;

[[gnu::noinline]] Engine& create_engine() {
  static thread_local std::unique_ptr<Engine> owner;
  owner = std::make_unique<Engine>();
  Engine::current_engine = owner.get();
  return *owner;
}
Engine& engine() {
  return Engine::current_engine != nullptr ? *Engine::current_engine : create_engine();
}

ByteRange range(const unsigned char* begin, size_t bytes) {
  return {reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(begin) + bytes};
}

}  // namespace

void run_grid(const LaunchConfig& config, const std::function<void()>& thread_body,
              const KernelInfo& kernel) {
  engine().run(config, thread_body, kernel);
}
void set_schedule_seed(uint64_t seed) {
  global_seed() = seed;
  ++seeds_set;
}
uint64_t schedule_seed() { return global_seed(); }
uint64_t random_bits() { return engine().random(); }

const KernelInfo& current_kernel() { return engine().kernel_; }
const LaunchConfig& current_launch() { return engine().config_; }
uint64_t launch_number() { return engine().launches_; }
uint64_t block_serial() { return engine().blocks_run_; }
ByteRange shared_range() {
  const SharedArea& shared = engine().shared_;
  return range(shared.data(), shared.bytes());
}
ByteRange static_shared_range() { return engine().static_shared_; }
ByteRange stack_range() { return range(engine().fibers_.begin(), engine().fibers_.bytes()); }

std::string describe_kernel_address(const void* address) {
  const Engine& e = engine();
  const auto at = reinterpret_cast<uintptr_t>(address);
  std::string text = e.shared_.describe(at);
  if (!text.empty()) {
    return text;
  } else if (e.static_shared_.contains(at)) {
    text = "static shared memory";
  } else if (stack_range().contains(at)) {
    text = "a thread's stack";
  } else if (argument_range().contains(at)) {
    text = "the arguments of a launch";
  }
  return text;
}

void fail(std::string what, const void* pc) {
  if (!running_thread.inside) throw KernelError("[emulator] outside a kernel: " + what);
  engine().stop(std::move(what), pc, nullptr);
}
void fail(std::string what, const Site& site) {
  if (!running_thread.inside) throw KernelError("[emulator] outside a kernel: " + what);
  engine().stop(std::move(what), site.pc, &site);
}

LaneSlot& my_slot() {
  if (!running_thread.inside) fail("a warp's instruction was called by the host");
  Engine& e = *Engine::current_engine;
  return e.slots_[e.current_];
}
void meet(Meeting meeting, uint32_t mask, Combine combine, const Site& site) {
  if (!running_thread.inside) fail("a warp's instruction was called by the host");
  Engine::current_engine->meet(meeting, mask, combine, site);
}
uint32_t meet_block(uint32_t value, const Site& site) {
  if (!running_thread.inside) fail("__syncthreads was called by the host");
  return Engine::current_engine->meet_block(value, site);
}

}  // namespace heirloom::emulator
