// Turns what kills a process into the error of a launch: signals raised by a kernel's code, and launches that do not end.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <mutex>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "runner.h"

namespace sim {

namespace {

const int watchdog_signal = SIGRTMIN + 6;
struct sigaction previous_action[65];

// Where the kernel was, as arguments of addr2line.
std::string location(const void* context) {
  const auto* machine = &static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const auto pc = static_cast<uintptr_t>(machine->gregs[REG_RIP]);
#else
  const auto pc = static_cast<uintptr_t>(machine->pc);
#endif
  Dl_info where{};
  if (!dladdr(reinterpret_cast<void*>(pc), &where) || !where.dli_fname) return "";
  char text[64];
  snprintf(text, sizeof text, " (addr2line -Cfie <kernels' library> %#zx)",
           static_cast<size_t>(pc - reinterpret_cast<uintptr_t>(where.dli_fbase)));
  return text;
}

void on_signal(int signal, siginfo_t* info, void* context) {
  Runner* runner = running;
  if (!runner) {  // not ours: it recurs under the previous handler
    if (signal != watchdog_signal) sigaction(signal, &previous_action[signal], nullptr);
    return;
  }
  const std::string at = location(context);
  if (signal == watchdog_signal) runner->fail(FaultKind::timeout, "no end within CUDA_SIM_TIMEOUT_MS" + at);
  if (signal == SIGSEGV || signal == SIGBUS) {
    char text[64];
    snprintf(text, sizeof text, "access to %p, which is nothing's", info->si_addr);
    runner->fail(FaultKind::bad_address, text + at, reinterpret_cast<uintptr_t>(info->si_addr));
  }
  runner->fail(FaultKind::trap, "trap: array bounds, alignment, shift or __trap()" + at);
}

void install_handlers() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
#ifdef __SANITIZE_ADDRESS__
    const int signals[] = {watchdog_signal};  // the sanitizer reports the rest
#else
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, watchdog_signal};
#endif
    for (const int signal : signals) sigaction(signal, &action, &previous_action[signal]);
  });
}

}  // namespace

void Runner::prepare_thread() {
  install_handlers();
  constexpr size_t size = 64 * 1024;  // a fault on the guard page of a fiber's stack needs another stack
  stack_t alternate{};
  alternate.ss_sp = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  alternate.ss_size = size;
  sigaltstack(&alternate, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = watchdog_signal;
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  timer_create(CLOCK_MONOTONIC, &event, &watchdog_);
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* bottom;
  pthread_attr_getstack(&attributes, &bottom, &main_stack_.size);
  main_stack_.bottom = static_cast<char*>(bottom);
  pthread_attr_destroy(&attributes);
}

void Runner::release_thread() {
  timer_delete(watchdog_);
  stack_t alternate{}, off{};
  sigaltstack(nullptr, &alternate);
  off.ss_flags = SS_DISABLE;
  sigaltstack(&off, nullptr);
  munmap(alternate.ss_sp, alternate.ss_size);
}

void Runner::arm_watchdog(long long milliseconds) {
  itimerspec when{};
  when.it_value = {static_cast<time_t>(milliseconds / 1000), static_cast<long>(milliseconds % 1000 * 1000000)};
  timer_settime(watchdog_, 0, &when, nullptr);
}

// Leaves the kernel from wherever it is. Kernels own nothing, so their stacks are abandoned without unwinding.
void Runner::fail(FaultKind kind, const std::string& message, uintptr_t address) {
  running = nullptr;
  char where[128];
  snprintf(where, sizeof where, ", block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
           threadIdx.y, threadIdx.z);
  fault_ = {kind, std::string("kernel ") + grid_->kernel->name + where + message, address};
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, main_stack_.bottom, main_stack_.size);
#endif
  siglongjmp(escape_, 1);
}

}  // namespace sim
