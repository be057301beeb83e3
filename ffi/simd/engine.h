// The step machine: runs a program's lanes, each on its own group of threads. One call of hc_engine_step runs every layer.
//
// Lane 0's thread 0 is the caller. Work inside an instruction is claimed piece by piece from a counter, so a thread that
// loses its core for a while delays nobody by more than the piece it holds; results do not depend on who computes what
// (kernels.h), or on how many do (shedding.h). Whoever sees the mailbox's abort flag makes all threads leave the step: everything that waits looks for it.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <variant>
#include <vector>

#include "isa.h"
#include "lane.h"
#include "program.h"
#include "shedding.h"

namespace hc {

// Byte offsets in the mailbox; events follow at MAILBOX_EVENTS.
constexpr int ABORT_FLAG = 0, STEP_NUMBER = 64, HEARTBEAT = 72;

// What hc_engine_step returns: ffi/engine.ts.
enum class Status : int32_t { done = 0, aborted = 1, overflow = 2, bad_counts = 3, lost = 4 };

struct Lane {
  std::vector<BoundInstruction> program;
  std::unique_ptr<Progress[]> progress;  // one per instruction
  std::unique_ptr<Barrier> barrier = std::make_unique<Barrier>();
  int threads;
  int active;  // of them, those that take part in the step
  Shedding shedding;

  Lane(std::vector<BoundInstruction>&& program_, int threads_)
      : program(std::move(program_)), progress(std::make_unique<Progress[]>(program.size())), threads(threads_),
        active(threads_), shedding(threads_) {}

  void rest() {
    for (size_t n = 0; n < program.size(); n++) progress[n].rest();
    barrier->rest();
  }
};

// The machine's cores are shared with whoever else runs: a worker spins this long for the next step, then parks.
constexpr int64_t PARK_AFTER_NS = 200'000;

// Between two steps, longer than another program keeps a core: nobody wanted a step.
constexpr int64_t REST_NS = 10'000'000;

// A thread but the caller's.
struct alignas(64) Worker {
  std::atomic<uint64_t> called{0};  // grows with every step that wants it
  std::atomic<bool> parked{false};
  Lane* lane = nullptr;
  int thread = 0;
  uint8_t* scratch = nullptr;
  std::thread runs;

  // Returns whether it was parked.
  bool call() {
    called.fetch_add(1);
    if (!parked.load()) return false;
    called.notify_one();
    return true;
  }
};

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
    for (size_t n = 0; n < running_; n++) workers_[n].call(), workers_[n].runs.join();
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
    workers_ = std::make_unique<Worker[]>(threads - 1);
    uint8_t* own = scratch_;
    for (Lane& lane : lanes_) {
      for (int thread = 0; thread < lane.threads; thread++, own += scratch_stride_) {
        if (own == scratch_) continue;
        Worker& worker = workers_[running_];
        worker.lane = &lane, worker.thread = thread, worker.scratch = own;
        worker.runs = std::thread([this, &worker] { work(worker); });
        running_++;
      }
    }
  }

  Status step(const Step& step) {
    for (const int32_t count : {step.tokens, step.rows, step.tiles}) {
      if (count < 0 || count > capacity_) return Status::bad_counts;
    }
    step_ = step;
    // Lanes that wait for each other, or for a partner, have the threads that they were planned with.
    const bool sheds = lanes_.size() == 1 && patience_ == 0 && step.mode == Mode::decode;
    for (Lane& lane : lanes_) {
      lane.rest();
      lane.active = sheds ? lane.shedding.threads() : lane.threads;
    }
    long_waits_.store(0, std::memory_order_relaxed);
    aborted_.store(false, std::memory_order_relaxed);
    lost_.store(false, std::memory_order_relaxed);
    overflow_ = NO_OVERFLOW;
    number_ = std::max(number_, number().load(std::memory_order_relaxed)) + 1;
    number().store(number_, std::memory_order_release);
    const int64_t since = now();
    bool woke = false;  // a thread, which takes as long as a system takes
    for (size_t n = 0; n < running_; n++) {
      if (workers_[n].thread >= workers_[n].lane->active) continue;
      woke |= workers_[n].call();
      called_++;
    }
    run(lanes_[0], 0, scratch_);
    waited(spin_until([&] { return finished_.value.load(std::memory_order_acquire) >= called_; }));
    const int64_t until = now();
    // The first step after a rest is no measure: its threads had to be woken.
    const bool rested = woke && since - ended_at_ > REST_NS;
    ended_at_ = until;
    if (sheds && !rested) lanes_[0].shedding.ended(step.tokens, until - since, long_waits_.load(std::memory_order_relaxed));
    if (lost_.load(std::memory_order_relaxed)) return Status::lost;
    if (aborted_.load(std::memory_order_relaxed)) return Status::aborted;
    return overflow_ == NO_OVERFLOW ? Status::done : Status::overflow;
  }

  // A step on a thread of its own, which the caller joins: what it does meanwhile must not be another step.
  void begin(const Step& step) {
    beside_ = std::thread([this, step] { beside_status_ = this->step(step); });
  }
  Status join() {
    beside_.join();
    return beside_status_;
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

  void waited(int64_t nanoseconds) {
    if (nanoseconds >= LONG_WAIT_NS) long_waits_.fetch_add(1, std::memory_order_relaxed);
  }

  void work(Worker& worker) {
    for (uint64_t seen = 0;;) {
      const int64_t since = now();
      for (int spins = 0; worker.called.load(std::memory_order_acquire) == seen; spins++) {
        relax();
        if (spins % 256 != 255 || now() - since < PARK_AFTER_NS) continue;
        worker.parked.store(true);
        worker.called.wait(seen);
        worker.parked.store(false);
      }
      seen++;
      if (stop_.load()) return;
      run(*worker.lane, worker.thread, worker.scratch);
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
        waited(lane.barrier->meet(meetings, lane.active, [this] { return aborted(); }));
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
    if (lane.active == 1 && patience_ == 0) return kernel(arguments, 0, items);
    if (bound.awaits > 0) {
      const size_t earlier = n - static_cast<size_t>(bound.awaits);
      const int64_t all = lane.program[earlier].items(step_);
      waited(spin_until([&] { return lane.progress[earlier].done.load(std::memory_order_acquire) >= all || aborted(); }));
    }
    Progress& progress = lane.progress[n];
    const Pieces pieces(items, shares<Args>() * lane.active);
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
  int64_t ended_at_ = 0;  // the last step, in nanoseconds
  uint64_t called_ = 0;  // workers, over all steps
  Sequence finished_;    // of them
  std::atomic<int64_t> long_waits_{0};
  alignas(64) std::atomic<bool> aborted_{false}, lost_{false};
  std::atomic<bool> announced_{false};
  alignas(64) uint64_t overflow_ = NO_OVERFLOW;
  std::atomic<bool> stop_{false};
  std::unique_ptr<Worker[]> workers_;
  size_t running_ = 0;  // of them
  std::thread beside_;
  Status beside_status_ = Status::done;
  uint8_t* scratch_ = nullptr;
  int64_t scratch_stride_ = 0, all_scratch_ = 0;
};

}  // namespace hc
