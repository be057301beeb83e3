// Fibers, barriers and warp operations of a block.
#include "runner.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define EXPORT __attribute__((visibility("default")))
EXPORT __thread uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace sim {

constexpr size_t stack_size = 64 * 1024;

__thread Runner* running __attribute__((tls_model("initial-exec")));

long long setting(const char* name, long long otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtoll(text, nullptr, 0) : otherwise;
}

// For the address sanitizer: frames were abandoned there, with what marks the room between their variables.
static void unpoison([[maybe_unused]] const Stack& stack) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack.bottom, stack.size);
#endif
}

Runner::Runner() { prepare_thread(); }

Runner::~Runner() {
  release_thread();
  for (const Stack& stack : all_stacks_) {
    unpoison(stack);
    munmap(stack.bottom - page_size, stack_size + page_size);
  }
}

void Runner::fail_deadlock() {
  const auto in_operation = std::count_if(fibers_.begin(), fibers_.end(), [](const Fiber& fiber) { return fiber.mask != 0; });
  fail(FaultKind::misuse, "deadlock: " + std::to_string(at_barrier_) + " threads wait at a barrier, " +
                              std::to_string(in_operation) + " in a warp operation, " + std::to_string(count_ - live_) +
                              " have ended");
}

// ---- fibers ----

void Runner::push_ready(Fiber& fiber) {
  ready_[after_ready_++ % most_threads] = &fiber;
  if (seed_ <= 0) return;
  const unsigned other = first_ready_ + random_() % (after_ready_ - first_ready_);
  std::swap(ready_[other % most_threads], ready_[(after_ready_ - 1) % most_threads]);
}

Fiber* Runner::pop_ready() {
  if (first_ready_ == after_ready_) fail_deadlock();
  return ready_[first_ready_++ % most_threads];
}

Stack Runner::take_stack() {
  if (free_stacks_.empty()) {
    auto* base = static_cast<char*>(mmap(nullptr, stack_size + page_size, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) fail(FaultKind::misuse, "no memory for a fiber's stack");
    mprotect(base, page_size, PROT_NONE);
    // Tops at different offsets within a page: at equal ones all fibers' frames would compete for the same few sets of the
    // first-level cache.
    all_stacks_.push_back({base + page_size, stack_size - all_stacks_.size() % 16 * 256});
    free_stacks_.push_back(all_stacks_.back());
  }
  const Stack stack = free_stacks_.back();
  free_stacks_.pop_back();
  unpoison(stack);
  return stack;
}

void Runner::transfer(Context& from, const Context& to, [[maybe_unused]] const Stack& to_stack,
                      [[maybe_unused]] bool for_good) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, to_stack.bottom, to_stack.size);
  switch_context(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  switch_context(from, to);
#endif
}

// Runs other threads until this one is ready again, and its turn comes.
void Runner::suspend() {
  Fiber* self = current_;
  Fiber* next = pop_ready();
  if (next == self) return;
  if (next->stack.size == 0) {
    next->stack = take_stack();
    next->context.start_on(next->stack, fiber_main);
  }
  current_ = next;
  transfer(self->context, next->context, next->stack);
  current_ = self;
  threadIdx = self->index;
}

// Whoever completes what others waited for goes on first, unless the order is random.
void Runner::take_turns() {
  if (seed_ <= 0 || random_() % 2 == 0) return;
  push_ready(*current_);
  suspend();
}

void Runner::fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  running->run_threads();
}

// The life of a stack: runs a thread from start to end; then, where the next ready thread has not begun, that one as well.
// A kernel in which no thread waits costs one call a thread, and no switch.
void Runner::run_threads() {
  for (;;) {
    threadIdx = current_->index;
    grid_->kernel->invoke(grid_->parameters);
    Fiber& ended = *current_;
    const Stack stack = std::exchange(ended.stack, {});
    thread_ended(ended);
    if (live_ == 0) {
      free_stacks_.push_back(stack);
      transfer(ended.context, main_, main_stack_, true);
    }
    current_ = pop_ready();
    if (current_->stack.size == 0) {
      current_->stack = stack;
    } else {
      free_stacks_.push_back(stack);
      transfer(ended.context, current_->context, current_->stack, true);
    }
  }
}

void Runner::thread_ended(Fiber& fiber) {
  const auto position = static_cast<unsigned>(&fiber - fibers_.data()), warp = position / 32;
  live_--;
  warp_live_[warp] &= ~(1u << position % 32);
  // Ended threads no longer take part: that may complete what others wait for.
  for (unsigned rest = warp_waiting_[warp]; rest; rest &= rest - 1) {
    const unsigned mask = fibers_[warp * 32 + __builtin_ctz(rest)].mask;
    if (mask && complete(warp, mask)) break;
  }
  if (at_barrier_ && at_barrier_ == live_) release_barrier();
}

// ---- barriers and warp operations ----

void Runner::release_barrier() {
  at_barrier_ = 0;
  for (const unsigned i : order_) {
    if (!fibers_[i].in_barrier) continue;
    fibers_[i].in_barrier = false;
    push_ready(fibers_[i]);
  }
}

void Runner::barrier() {
  if (++at_barrier_ == live_) {
    release_barrier();
    take_turns();
  } else {
    current_->in_barrier = true;
    suspend();
  }
}

void Runner::yield() {
  yields_++;
  if (first_ready_ == after_ready_ || yields_ % 64 == 0) {  // the host's thread that we wait for may need this core
    if (yields_ < 1000) sched_yield();
    else usleep(20);
  }
  push_ready(*current_);
  suspend();
}

void Runner::collective(unsigned mask, void* mine, SimCollective operation) {
  Fiber& self = *current_;
  const auto position = static_cast<unsigned>(&self - fibers_.data()), warp = position / 32, bit = 1u << position % 32;
  if (!(mask & bit)) fail(FaultKind::misuse, "the mask of a warp operation lacks the calling lane");
  self.mask = mask;
  self.mine = mine;
  self.operation = operation;
  warp_waiting_[warp] |= bit;
  if (complete(warp, mask)) take_turns();
  else suspend();
}

// Where every live lane of the mask has arrived, does the operation and lets them go on.
bool Runner::complete(unsigned warp, unsigned mask) {
  const unsigned group = mask & warp_live_[warp];
  if (group == 0 || group & ~warp_waiting_[warp]) return false;
  Fiber* lanes = &fibers_[warp * 32];
  const SimCollective operation = lanes[__builtin_ctz(group)].operation;
  void* all[32] = {};
  for (unsigned rest = group; rest; rest &= rest - 1) {
    const unsigned i = __builtin_ctz(rest);
    if (lanes[i].mask != mask) return false;  // that lane waits for another group
    if (lanes[i].operation != operation) fail(FaultKind::misuse, "lanes of one mask meet in different warp operations");
    all[i] = lanes[i].mine;
  }
  operation(all, group);
  warp_waiting_[warp] &= ~group;
  for (unsigned rest = group; rest; rest &= rest - 1) {
    Fiber& lane = lanes[__builtin_ctz(rest)];
    lane.mask = 0;
    if (&lane != current_) push_ready(lane);
  }
  return true;
}

// ---- grids ----

std::vector<unsigned> Runner::order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (seed_ < 0) std::reverse(order.begin(), order.end());
  if (seed_ > 0) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

void Runner::run_block(uint3 index) {
  blockIdx = index;
  live_ = count_;
  at_barrier_ = first_ready_ = after_ready_ = 0;
  for (unsigned warp = 0; warp < most_threads / 32; warp++) {
    const unsigned first = warp * 32;
    warp_live_[warp] = first >= count_ ? 0 : count_ - first >= 32 ? ~0u : (1u << (count_ - first)) - 1;
    warp_waiting_[warp] = 0;
  }
  for (const unsigned i : order_) push_ready(fibers_[i]);
  prepare_dynamic_shared();
  current_ = pop_ready();
  current_->stack = take_stack();
  current_->context.start_on(current_->stack, fiber_main);
  transfer(main_, current_->context, current_->stack);
  check_shared();
}

Fault Runner::run(const Grid& grid) {
  grid_ = &grid;
  fault_ = {};
  yields_ = 0;
  seed_ = setting("CUDA_SIM_SEED", 0);
  if (seed_ > 0) random_.seed(static_cast<unsigned>(seed_) + random_());
  const uint3 threads = grid.threads, blocks = grid.blocks;
  count_ = threads.x * threads.y * threads.z;
  fibers_.assign(count_, {});
  for (unsigned i = 0; i < count_; i++)
    fibers_[i].index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
  order_ = order(count_);
  const std::vector<unsigned> block_order = order(blocks.x * blocks.y * blocks.z);
  blockDim = threads;
  gridDim = blocks;
  find_shared();
  prepare_static_shared();
  arm_watchdog(setting("CUDA_SIM_TIMEOUT_MS", 20000));
  if (sigsetjmp(escape_, 1) == 0) {
    running = this;
    for (const unsigned i : block_order) run_block({i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y});
  } else {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    free_stacks_ = all_stacks_;
  }
  running = nullptr;
  arm_watchdog(0);
  release_shared();
  return fault_;
}

Fault run_grid(const Grid& grid) {
  // A pointer: the room for thread-locals of a library that is loaded late is small.
  thread_local const auto runner = std::make_unique<Runner>();
  return runner->run(grid);
}

}  // namespace sim

extern "C" {
EXPORT void sim_barrier() { sim::running->barrier(); }
EXPORT void sim_yield() { sim::running->yield(); }
EXPORT void sim_collective(unsigned mask, void* mine, SimCollective run) { sim::running->collective(mask, mine, run); }
EXPORT uint64_t sim_clock_ns() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);  // as %globaltimer, which follows the wall clock
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}
EXPORT void sim_fail(const char* format, ...) {
  char text[256];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  sim::running->fail(sim::FaultKind::misuse, text);
}
}
