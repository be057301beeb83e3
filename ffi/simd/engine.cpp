// The step machine: runs a program's lanes, each on its own group of threads. One call of hc_engine_step runs every layer.
//
// Lane 0's thread 0 is the caller. Work inside an instruction is claimed piece by piece from a counter, so a thread that
// loses its core for a while delays nobody by more than the piece it holds; results do not depend on who computes what
// (kernels.h). Whoever sees the mailbox's abort flag makes all threads leave the step: everything that waits looks for it.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "lane.h"
#include "program.h"

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace hc {
namespace {

constexpr int MOST_LANES = 8, MOST_THREADS = 1024;
// Byte offsets in the mailbox; events follow at MAILBOX_EVENTS.
constexpr int ABORT_FLAG = 0, STEP_NUMBER = 64, HEARTBEAT = 72;

// What hc_engine_step and hc_engine_failure return: ffi/engine.ts.
enum class Status : int32_t { done = 0, aborted = 1, overflow = 2, bad_counts = 3, lost = 4 };
enum class Failure : int32_t { program = 0, environment = 1 };

thread_local char last_error[1024] = "";
thread_local Failure last_failure = Failure::program;

void fail(Failure failure, const std::string& message) {
  last_failure = failure;
  std::snprintf(last_error, sizeof last_error, "%s", message.c_str());
}

struct Lane {
  std::vector<BoundInstruction> program;
  std::unique_ptr<Progress[]> progress;  // one per instruction
  std::unique_ptr<Barrier> barrier;
  int threads;

  Lane(std::vector<BoundInstruction>&& program_, int threads_)
      : program(std::move(program_)), progress(std::make_unique<Progress[]>(program.size())),
        barrier(std::make_unique<Barrier>(threads_)), threads(threads_) {}

  void rest() {
    for (size_t n = 0; n < program.size(); n++) progress[n].rest();
    barrier->rest();
  }
};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The machine's cores are shared with whoever else runs: a worker spins this long for the next step, then parks.
constexpr int64_t PARK_AFTER_NS = 200'000;

class Engine {
 public:
  // `mailbox` may be null where nothing signals and nobody aborts. `patience`: nanoseconds that a wait for a partner outside
  // may last, 0 where there is none.
  Engine(const Kernels& kernels, int32_t capacity, uint8_t* mailbox, int64_t patience)
      : kernels_(kernels), capacity_(capacity), mailbox_(mailbox ? mailbox : no_mailbox_.data()), patience_(patience) {}

  // A step that was announced and has not ended is ended first: the engine is not gone under it.
  ~Engine() {
    if (announced_.load(std::memory_order_acquire)) {
      std::atomic_ref(*reinterpret_cast<uint32_t*>(mailbox_ + ABORT_FLAG)).store(1);
      spin_until([&] { return !announced_.load(std::memory_order_acquire); });
    }
    stop_.store(true);
    epoch_.value.fetch_add(1);
    epoch_.value.notify_all();
    for (std::thread& worker : workers_) worker.join();
    std::free(scratch_);
  }

  // Throws std::bad_alloc and std::system_error.
  void start(std::vector<Lane>&& lanes) {
    lanes_ = std::move(lanes);
    int64_t scratch = 0;
    size_t threads = 0;
    for (const Lane& lane : lanes_) {
      scratch = std::max(scratch, scratch_bytes(lane.program));
      threads += static_cast<size_t>(lane.threads);
    }
    // A page more, so that neighbours' scratch is not fetched together.
    scratch_stride_ = (scratch + 4095) / 4096 * 4096 + 4096;
    all_scratch_ = scratch_stride_ * static_cast<int64_t>(threads);
    scratch_ = static_cast<uint8_t*>(std::aligned_alloc(4096, static_cast<size_t>(all_scratch_)));
    if (!scratch_) throw std::bad_alloc();
    times_.assign(lanes_[0].program.size() + 1, 0);
    workers_.reserve(threads);
    uint8_t* own = scratch_;
    for (Lane& lane : lanes_) {
      for (int thread = 0; thread < lane.threads; thread++, own += scratch_stride_) {
        if (own != scratch_) workers_.emplace_back([this, &lane, thread, own] { work(lane, thread, own); });
      }
    }
  }

  Status step(const Step& step) {
    for (const int32_t count : {step.tokens, step.rows, step.tiles}) {
      if (count < 0 || count > capacity_) return Status::bad_counts;
    }
    step_ = step;
    for (Lane& lane : lanes_) lane.rest();
    aborted_.store(false, std::memory_order_relaxed);
    lost_.store(false, std::memory_order_relaxed);
    overflow_ = NO_OVERFLOW;
    number_ = std::max(number_, number().load(std::memory_order_relaxed)) + 1;
    number().store(number_, std::memory_order_release);
    const uint64_t epoch = epoch_.value.fetch_add(1) + 1;
    if (parked_.value.load() > 0) epoch_.value.notify_all();
    run(lanes_[0], 0, scratch_);
    const uint64_t all = epoch * workers_.size();
    spin_until([&] { return finished_.value.load(std::memory_order_acquire) >= all; });
    if (lost_.load(std::memory_order_relaxed)) return Status::lost;
    if (aborted_.load(std::memory_order_relaxed)) return Status::aborted;
    return overflow_ == NO_OVERFLOW ? Status::done : Status::overflow;
  }

  // Says that another thread will run a step, until the step has ended.
  void announce() { announced_.store(true, std::memory_order_release); }
  void ended() { announced_.store(false, std::memory_order_release); }

  uint64_t overflow() const { return overflow_; }
  int64_t all_scratch() const { return all_scratch_; }
  const std::vector<int64_t>& trace() {
    trace_ = true;
    return times_;
  }

 private:
  // A sign of life for a partner that waits.
  std::atomic_ref<uint64_t> heartbeat() { return std::atomic_ref(*reinterpret_cast<uint64_t*>(mailbox_ + HEARTBEAT)); }
  std::atomic_ref<uint64_t> number() { return std::atomic_ref(*reinterpret_cast<uint64_t*>(mailbox_ + STEP_NUMBER)); }

  // Once true it stays so for the step, whatever becomes of the flag: who left would be missed by who stays.
  bool aborted() {
    if (aborted_.load(std::memory_order_relaxed)) return true;
    if (std::atomic_ref(*reinterpret_cast<uint32_t*>(mailbox_ + ABORT_FLAG)).load(std::memory_order_relaxed) == 0) return false;
    aborted_.store(true, std::memory_order_relaxed);
    return true;
  }

  void work(Lane& lane, int thread, uint8_t* own) {
    for (uint64_t seen = 0;;) {
      const int64_t since = now();
      for (int spins = 0; epoch_.value.load(std::memory_order_acquire) == seen; spins++) {
        relax();
        if (spins % 256 != 255 || now() - since < PARK_AFTER_NS) continue;
        parked_.value.fetch_add(1);
        epoch_.value.wait(seen);
        parked_.value.fetch_sub(1);
      }
      seen++;
      if (stop_.load()) return;
      run(lane, thread, own);
      finished_.value.fetch_add(1, std::memory_order_acq_rel);
    }
  }

  void run(Lane& lane, int thread, uint8_t* own) {
    const bool trace = trace_ && &lane == &lanes_[0] && thread == 0;
    if (trace) times_[0] = now();
    uint64_t meetings = 0;
    bool begun = false;  // work that no barrier has ended
    for (size_t n = 0; n < lane.program.size() && !aborted(); n++) {
      const BoundInstruction& bound = lane.program[n];
      if (const int64_t items = bound.items(step_); items > 0) {
        std::visit([&](const auto& arguments) { execute(lane, n, arguments, items, thread, own); }, bound.arguments);
        begun = true;
      }
      if (bound.barrier && begun) {
        lane.barrier->meet(meetings, [this] { return aborted(); });
        begun = false;
      }
      if (trace) times_[n + 1] = now();
    }
  }

  void execute(Lane&, size_t, const Signal& signal, int64_t, int thread, uint8_t*) {
    if (thread == 0) std::atomic_ref(*signal.event).store(number_, std::memory_order_release);
  }

  void execute(Lane&, size_t, const Wait& wait, int64_t, int, uint8_t*) {
    const std::atomic_ref event(*wait.event);
    const int64_t since = patience_ > 0 ? now() : 0;
    spin_until([&] {
      if (event.load(std::memory_order_acquire) >= number_ || aborted()) return true;
      if (patience_ > 0 && now() - since > patience_) {
        lost_.store(true, std::memory_order_relaxed);
        aborted_.store(true, std::memory_order_relaxed);
      }
      return false;
    });
  }

  template <typename Args>
  void execute(Lane& lane, size_t n, const Args& bound_arguments, int64_t items, int, uint8_t* own) {
    Args arguments = bound_arguments;
    const BoundInstruction& bound = lane.program[n];
    prepare(arguments, bound.over_rows ? step_.rows : step_.tokens, own);
    const auto kernel = kernel_of(arguments);
    if (lane.threads == 1 && patience_ == 0) return kernel(arguments, 0, items);
    if (bound.awaits > 0) {
      const size_t earlier = n - static_cast<size_t>(bound.awaits);
      const int64_t all = lane.program[earlier].items(step_);
      spin_until([&] { return lane.progress[earlier].done.load(std::memory_order_acquire) >= all || aborted(); });
    }
    Progress& progress = lane.progress[n];
    const Pieces pieces(items, shares<Args>() * lane.threads);
    while (!aborted()) {
      const auto [begin, end] = pieces[progress.claimed.fetch_add(1, std::memory_order_relaxed)];
      if (begin >= items) return;
      if (patience_ > 0) heartbeat().fetch_add(1, std::memory_order_relaxed);
      kernel(arguments, begin, end);
      progress.done.fetch_add(end - begin, std::memory_order_acq_rel);
    }
  }

  // Large pieces a thread: sums of rows read a part of each row, which should be long.
  template <typename Args>
  static constexpr int64_t shares() {
    return std::is_same_v<Args, SparseSumArgs> || std::is_same_v<Args, LowRankUpArgs> ? 2 : 8;
  }

  // Sums of residual rows are made for tokens that run as decode; a prompt's linears add the residual themselves.
  template <typename... Values>
  void merge(Values&... values) const {
    if (step_.mode == Mode::prefill) ((values.delta[1] = nullptr), ...);
  }

  template <typename Args>
  void prepare(Args& arguments, int32_t count, [[maybe_unused]] uint8_t* own) {
    if constexpr (std::is_same_v<Args, NormArgs> || std::is_same_v<Args, ElementwiseArgs>) {
      merge(arguments.a, arguments.b);
    } else if constexpr (std::is_same_v<Args, SiluMulArgs>) {
      merge(arguments.gate, arguments.up);
    } else if constexpr (std::is_same_v<Args, RopeArgs>) {
      merge(arguments.x);
    } else if constexpr (std::is_same_v<Args, AppendArgs>) {
      merge(arguments.q, arguments.k, arguments.v);
      arguments.overflow = &overflow_;
    } else if constexpr (std::is_same_v<Args, AttendArgs>) {
      arguments.tokens = step_.tokens;
      arguments.scratch = reinterpret_cast<float*>(own);
    } else if constexpr (std::is_same_v<Args, LinearArgs>) {
      arguments.tokens = count;
      if (step_.mode == Mode::decode) arguments.residual.codes = nullptr;
      arguments.scratch = own;
    } else if constexpr (std::is_same_v<Args, SparseSelectArgs>) {
      arguments.scratch = reinterpret_cast<float*>(own);
    } else if constexpr (std::is_same_v<Args, ObserveArgs>) {
      arguments.tokens = count;
    }
  }

  auto kernel_of(const EmbeddingArgs&) const { return kernels_.embedding; }
  auto kernel_of(const NormArgs&) const { return kernels_.norm; }
  auto kernel_of(const QuantizeArgs&) const { return kernels_.quantize; }
  auto kernel_of(const SiluMulArgs&) const { return kernels_.silu_mul; }
  auto kernel_of(const ElementwiseArgs&) const { return kernels_.elementwise; }
  auto kernel_of(const RopeArgs&) const { return kernels_.rope; }
  auto kernel_of(const AppendArgs&) const { return kernels_.append; }
  auto kernel_of(const AttendArgs&) const { return kernels_.attend; }
  auto kernel_of(const LinearArgs&) const { return kernels_.linear; }
  auto kernel_of(const SparseSelectArgs&) const { return kernels_.sparse_select; }
  auto kernel_of(const SparseSumArgs&) const { return kernels_.sparse_sum; }
  auto kernel_of(const LowRankDownArgs&) const { return kernels_.low_rank_down; }
  auto kernel_of(const LowRankUpArgs&) const { return kernels_.low_rank_up; }
  auto kernel_of(const ObserveArgs&) const { return kernels_.observe; }

  const Kernels& kernels_;
  const int32_t capacity_;
  alignas(64) std::array<uint8_t, MAILBOX_EVENTS> no_mailbox_{};
  uint8_t* const mailbox_;
  const int64_t patience_;
  std::vector<Lane> lanes_;
  std::vector<int64_t> times_;  // nanoseconds at the end of each instruction of lane 0, thread 0
  bool trace_ = false;
  Step step_{};
  uint64_t number_ = 0;  // of the step; grows over all engines that share a mailbox
  Sequence epoch_, finished_, parked_;
  alignas(64) std::atomic<bool> aborted_{false}, lost_{false};
  std::atomic<bool> announced_{false};
  alignas(64) uint64_t overflow_ = NO_OVERFLOW;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
  uint8_t* scratch_ = nullptr;
  int64_t scratch_stride_ = 0, all_scratch_ = 0;
};

Memory memory_of(uint8_t* const* segments, const int64_t* sizes) {
  Memory memory{};
  for (int n = 0; n < SEGMENTS; n++) {
    if (reinterpret_cast<uintptr_t>(segments[n]) % 64 != 0 || sizes[n] < 0 || (sizes[n] > 0 && !segments[n])) {
      throw Refusal("segment " + std::to_string(n) + " is no open memory that starts at a multiple of 64 bytes");
    }
    memory.base[n] = segments[n], memory.size[n] = sizes[n];
  }
  return memory;
}

uint8_t* mailbox_of(const Memory& memory) {
  constexpr auto mailbox = static_cast<int>(Segment::mailbox);
  const int64_t size = memory.size[mailbox];
  if (size > 0 && size < MAILBOX_EVENTS) {
    throw Refusal("the mailbox has " + std::to_string(size) + " bytes, expected none or at least " + std::to_string(MAILBOX_EVENTS));
  }
  return size > 0 ? memory.base[mailbox] : nullptr;
}

std::vector<Lane> bind_lanes(const Record* records, const int64_t* counts, const int32_t* threads, int32_t lanes, const Memory& memory, int32_t capacity, bool partner) {
  if (lanes < 1 || lanes > MOST_LANES) throw Refusal(out_of_range("the number of lanes", lanes, 1, MOST_LANES));
  if (capacity < 1) throw Refusal(out_of_range("capacity", capacity, 1, INT32_MAX));
  int64_t all = 0;
  std::vector<std::vector<BoundInstruction>> programs;
  for (int32_t lane = 0; lane < lanes; records += counts[lane], lane++) {
    all += threads[lane];
    if (threads[lane] < 1 || all > MOST_THREADS) throw Refusal(out_of_range("the number of threads", threads[lane], 1, MOST_THREADS));
    try {
      programs.push_back(bind(records, counts[lane], memory, capacity));
    } catch (const Refusal& refusal) {
      throw Refusal("lane " + std::to_string(lane) + ", " + refusal.what());
    }
  }
  check_lanes(programs, partner);
  std::vector<Lane> result;
  for (int32_t lane = 0; lane < lanes; lane++) result.emplace_back(std::move(programs[static_cast<size_t>(lane)]), threads[lane]);
  return result;
}

}  // namespace

HC_EXPORT const char* hc_engine_error() { return last_error; }
HC_EXPORT int32_t hc_engine_failure() { return static_cast<int32_t>(last_failure); }

// The instruction set in use ("avx512vnni"), or null with hc_engine_error() set.
HC_EXPORT const char* hc_isa() {
  const Kernels* kernels = active_kernels();
  if (kernels) return kernels->isa;
  fail(Failure::environment, isa_error());
  return nullptr;
}

// `records` are those of all lanes, one lane after another; `counts` and `threads` have one entry per lane, `segments` and
// `sizes` one per segment. The memory must outlive the engine. Null with hc_engine_error() and hc_engine_failure() set when
// the program is refused, or the machine has no room for its threads and their scratch. `patience`: nanoseconds that a lane
// waits for an event which no lane signals (a partner on another device does) before it calls the partner lost; 0: there is
// no partner, and every event has a lane that signals it.
HC_EXPORT void* hc_engine_create(const Record* records, const int64_t* counts, const int32_t* threads, int32_t lanes,
                                 uint8_t* const* segments, const int64_t* sizes, int32_t capacity, int64_t patience) {
  try {
    if (!hc_isa()) return nullptr;
    const Memory memory = memory_of(segments, sizes);
    std::vector<Lane> bound = bind_lanes(records, counts, threads, lanes, memory, capacity, patience > 0);
    auto engine = std::make_unique<Engine>(*active_kernels(), capacity, mailbox_of(memory), patience);
    engine->start(std::move(bound));
    return engine.release();
  } catch (const Refusal& refusal) {
    fail(Failure::program, refusal.what());
  } catch (const std::system_error& error) {
    fail(Failure::environment, std::string("a thread does not start: ") + error.what());
  } catch (const std::bad_alloc&) {
    fail(Failure::environment, "out of memory for the scratch of the threads");
  }
  return nullptr;
}

// Checks a program that another device will run, against the sizes of its memory. 0, or -1 with hc_engine_error() set.
HC_EXPORT int32_t hc_engine_check(const Record* records, int64_t count, const int64_t* sizes, int32_t capacity) {
  // Nothing is read: binding only needs addresses to add to.
  Memory memory{};
  for (int n = 0; n < SEGMENTS; n++) memory.base[n] = reinterpret_cast<uint8_t*>(uintptr_t{4096}), memory.size[n] = sizes[n];
  try {
    bind(records, count, memory, capacity);
    return 0;
  } catch (const Refusal& refusal) {
    fail(Failure::program, refusal.what());
    return -1;
  }
}

// Runs one step; a Status. At most one call at a time, from any thread.
HC_EXPORT int32_t hc_engine_step(void* engine, int32_t tokens, int32_t rows, int32_t tiles, int32_t mode) {
  return static_cast<int32_t>(static_cast<Engine*>(engine)->step({tokens, rows, tiles, mode == 0 ? Mode::prefill : Mode::decode}));
}

// For a step on another thread: announced before the thread is asked for, so that destroying the engine waits for it.
HC_EXPORT void hc_engine_announce(void* engine) { static_cast<Engine*>(engine)->announce(); }

extern "C" void hc_engine_ended(void* engine) { static_cast<Engine*>(engine)->ended(); }

HC_EXPORT int32_t hc_engine_step_announced(void* engine, int32_t tokens, int32_t rows, int32_t tiles, int32_t mode) {
  const int32_t status = hc_engine_step(engine, tokens, rows, tiles, mode);
  hc_engine_ended(engine);
  return status;
}

// After a step that overflowed: the first layer, token and CacheValue that f16 did not hold.
HC_EXPORT void hc_engine_overflow(void* engine, int32_t* found) {
  const uint64_t overflow = static_cast<Engine*>(engine)->overflow();
  found[0] = static_cast<int32_t>(overflow >> 32);
  found[1] = static_cast<int32_t>(overflow >> 1 & 0x7FFFFFFF);
  found[2] = static_cast<int32_t>(overflow & 1);
}

// From the next step on, records when each instruction of lane 0 ended, as thread 0 saw it; `times` receives count + 1
// nanosecond stamps of the last step (the first is the start).
HC_EXPORT void hc_engine_trace(void* engine, int64_t* times, int64_t count) {
  const std::vector<int64_t>& last = static_cast<Engine*>(engine)->trace();
  std::copy_n(last.begin(), std::min<int64_t>(count, static_cast<int64_t>(last.size())), times);
}

HC_EXPORT int64_t hc_engine_scratch_bytes(void* engine) { return static_cast<Engine*>(engine)->all_scratch(); }

HC_EXPORT void hc_engine_destroy(void* engine) { delete static_cast<Engine*>(engine); }

HC_EXPORT int64_t hc_argmax(const float* logits, int64_t n) { return active_kernels()->argmax(logits, n); }

HC_EXPORT void hc_token_loss(const float* logits, const float* reference, int64_t n, int64_t target, double* nll, double* kl) {
  active_kernels()->token_loss(logits, reference, n, target, nll, kl);
}

}  // namespace hc
