// SPDX-License-Identifier: Apache-2.0
//
// Memory faults as messages. A kernel's fault ends the kernel: the thread that touched what it may not
// goes on in fail(), on its own stack. The host's fault ends the process.
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "engine.h"
#include "memory.h"

namespace heirloom::emulator {
namespace {

struct sigaction previous_segv, previous_bus;
thread_local const void* fault_address = nullptr;
thread_local const void* fault_pc = nullptr;
thread_local bool ending = false;

[[noreturn]] void end_kernel() {
  ending = false;
  // The fiber is never gone back to, so nothing on its stack may own memory.
  static thread_local std::string text;
  text = describe_kernel_address(fault_address);
  if (text.empty()) text = describe_address(fault_address);
  text.insert(0, "touched ");
  fail(text, fault_pc);
}

void write_all(const std::string& text) {
  const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
  static_cast<void>(written);
}

void hand_on(int signal, siginfo_t* info, void* context) {
  const struct sigaction& previous = signal == SIGBUS ? previous_bus : previous_segv;
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, context);
    return;
  }
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
    return;
  }
  ::signal(signal, SIG_DFL);  // the instruction faults again, for good
}

void handle(int signal, siginfo_t* info, void* raw_context) {
  auto* context = static_cast<ucontext_t*>(raw_context);
  const ThreadView thread = current_thread();
  const void* address = info->si_addr;
  const Allocation* a = find_allocation(address);
  if (thread.inside && !ending) {
    const ByteRange stacks = stack_range();
    if (stacks.contains(reinterpret_cast<uintptr_t>(address))) {
      write_all("CUDA emulator: kernel " + current_kernel().name + " needs more stack than the " +
                "emulator gives a thread\n");
      std::abort();
    }
#if defined(__x86_64__)
    // Below the red zone, aligned as after a call.
    fault_address = address;
    auto& registers = context->uc_mcontext.gregs;
    fault_pc = reinterpret_cast<const void*>(registers[REG_RIP] + 1);  // as a return address
    ending = true;
    registers[REG_RSP] = ((registers[REG_RSP] - 512) & ~greg_t{15}) - 8;
    registers[REG_RIP] = reinterpret_cast<greg_t>(&end_kernel);
    return;
#endif
  }
  if (thread.inside || a != nullptr) {
    std::string text = "CUDA emulator: ";
    if (thread.inside) {
      text += "kernel " + current_kernel().name + ", block " + std::to_string(thread.block) +
              ", thread " + std::to_string(thread.thread) + ": touched ";
    } else if (a->alive && a->kind == MemoryKind::kDevice) {
      text += "device memory touched by the host: ";
    } else {
      text += "touched by the host: ";
    }
    write_all(text + describe_address(address) + "\n");
    std::abort();
  }
  hand_on(signal, info, raw_context);
}

// Handlers run on a stack of their own: the fault may be a stack's end.
void install_signal_stack() {
  static thread_local bool installed = false;
  if (installed) return;
  installed = true;
  constexpr size_t kBytes = 64 << 10;
  stack_t now{};
  if (sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE) == 0) return;
  stack_t stack{};
  stack.ss_size = kBytes;
  stack.ss_sp = std::malloc(kBytes);
  if (stack.ss_sp != nullptr) sigaltstack(&stack, nullptr);
}

}  // namespace

void install_fault_handler() {
  install_signal_stack();
  static const bool once = [] {
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGSEGV, &action, &previous_segv) == 0 &&
           sigaction(SIGBUS, &action, &previous_bus) == 0;
  }();
  static_cast<void>(once);
}

}  // namespace heirloom::emulator
