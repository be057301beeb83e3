// Runs a block's CUDA threads as fibers of one OS thread. A fiber runs until it ends or must wait (at a barrier, in a warp
// operation, in __nanosleep); then the next ready one goes on. Blocks of a grid run one after the other.
#pragma once
#include <setjmp.h>
#include <time.h>

#include <random>
#include <vector>

#include "fiber.h"
#include "grid.h"
#include "warp.h"

namespace sim {

constexpr size_t page_size = 4096;
constexpr unsigned char scribble = 0xff;  // of memory that was never written: a NaN in float and in half

struct Fiber {
  Context context;
  Stack stack{};  // empty until the thread first runs, and after it ended
  uint3 index;
  bool in_barrier = false;
  // The warp operation in which the thread waits; no mask: in none.
  unsigned mask = 0;
  void* mine = nullptr;
  SimCollective operation = nullptr;
};

class Runner {
 public:
  Runner();
  ~Runner();
  Fault run(const Grid& grid);
  void barrier();
  void yield();
  void collective(unsigned mask, void* mine, SimCollective operation);
  [[noreturn]] void fail(FaultKind kind, const std::string& message, uintptr_t address = 0);

 private:
  static constexpr unsigned most_threads = 1024;

  static void fiber_main();
  void run_threads();
  void run_block(uint3 index);
  void thread_ended(Fiber& fiber);
  void release_barrier();
  bool complete(unsigned warp, unsigned mask);
  void take_turns();
  void suspend();
  void transfer(Context& from, const Context& to, const Stack& to_stack, bool for_good = false);
  Stack take_stack();
  void push_ready(Fiber& fiber);
  Fiber* pop_ready();
  [[noreturn]] void fail_deadlock();
  std::vector<unsigned> order(unsigned count);
  // Shared memory (shared.cpp).
  void find_shared();
  void prepare_static_shared();
  void prepare_dynamic_shared();
  void check_shared();
  void release_shared();
  // Signals and the timer of a launch (faults.cpp).
  void prepare_thread();
  void release_thread();
  void arm_watchdog(long long milliseconds);

  const Grid* grid_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;  // in which threads begin, and go on after a barrier
  unsigned count_ = 0, live_ = 0, at_barrier_ = 0;
  unsigned warp_live_[most_threads / 32], warp_waiting_[most_threads / 32];
  Fiber* ready_[most_threads];  // a ring
  unsigned first_ready_ = 0, after_ready_ = 0;
  Fiber* current_ = nullptr;
  Context main_;
  Stack main_stack_{};
  std::vector<Stack> free_stacks_, all_stacks_;
  unsigned yields_ = 0;
  char *shared_ = nullptr, *dynamic_ = nullptr;
  size_t shared_size_ = 0;
  sigjmp_buf escape_;
  Fault fault_;
  timer_t watchdog_;
  // 0: in order. Less: in reverse order. More: whatever may run next is chosen at random.
  long long seed_ = 0;
  std::minstd_rand random_;
};

// The runner of this OS thread while it runs a kernel's code, else null.
extern __thread Runner* running __attribute__((tls_model("initial-exec")));

}  // namespace sim
