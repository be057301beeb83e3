// The step machine: runs a program's lanes on two groups of threads. One call of hc_engine_step runs every layer.
//
// The backbone lane's thread 0 is the caller. Work inside an instruction is claimed item by item from a counter, so a
// thread that loses its core for a while delays nobody by more than the piece it holds; results do not depend on who
// computes what (kernels.h).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "lane.h"
#include "program.h"

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace hc {
namespace {

thread_local char last_error[512] = "";

// How far the threads of a lane are with one instruction. Zeroed while every thread rests.
struct alignas(64) Progress {
  std::atomic<int64_t> claimed{0};  // pieces
  std::atomic<int64_t> done{0};     // items
  std::atomic<bool> complete{false};

  void rest() {
    claimed.store(0, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    complete.store(false, std::memory_order_relaxed);
  }
};

// The pieces in which an instruction's items are claimed: large enough to read memory in long runs, and smaller ones for
// the last quarter, so that threads finish together.
class Pieces {
 public:
  Pieces(int64_t items, int64_t count)
      : items_(items), large_(std::max<int64_t>(1, (items + count - 1) / count)), small_(std::max<int64_t>(1, large_ / 4)),
        large_count_(count == 1 ? 1 : items * 3 / 4 / large_) {}

  struct Piece { int64_t begin, end; };
  Piece operator[](int64_t n) const {
    const int64_t begin = n <= large_count_ ? n * large_ : large_count_ * large_ + (n - large_count_) * small_;
    return {begin, std::min(items_, begin + (n < large_count_ ? large_ : small_))};
  }

 private:
  int64_t items_, large_, small_, large_count_;
};

struct Lane {
  std::vector<BoundInstruction> program;
  std::unique_ptr<Progress[]> progress;  // one per instruction
  std::unique_ptr<Barrier> barrier;
  int threads = 0;
  bool trace = false;
  std::vector<int64_t> times;  // nanoseconds at the end of each instruction, thread 0

  void start(int thread_count) {
    threads = thread_count;
    progress = std::make_unique<Progress[]>(program.size());
    barrier = std::make_unique<Barrier>(thread_count);
    times.assign(program.size() + 1, 0);
  }
  void rest() {
    for (size_t n = 0; n < program.size(); n++) progress[n].rest();
  }
};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The machine's cores are shared with whoever else runs: a worker spins this long for the next step, then parks.
constexpr int64_t PARK_AFTER_NS = 200'000;

class Engine {
 public:
  Engine(const Kernels& kernels, int events) : kernels_(kernels), events_(std::make_unique<Sequence[]>(static_cast<size_t>(events) + 1)) {}

  ~Engine() {
    stop_.store(true, std::memory_order_release);
    epoch_.value.fetch_add(1, std::memory_order_release);
    epoch_.value.notify_all();
    for (std::thread& worker : workers_) worker.join();
    std::free(scratch_);
  }

  Lane backbone, compensation;

  bool start(int backbone_threads, int compensation_threads) {
    backbone.start(backbone_threads);
    compensation.start(std::max(1, compensation_threads));
    scratch_stride_ = (std::max(scratch_bytes(backbone.program), scratch_bytes(compensation.program)) + 4095) / 4096 * 4096 + 4096;
    const int all = backbone_threads + compensation_threads;
    scratch_ = static_cast<uint8_t*>(std::aligned_alloc(4096, static_cast<size_t>(scratch_stride_ * all)));
    if (scratch_ == nullptr) return false;
    for (int n = 1; n < backbone_threads; n++) workers_.emplace_back([this, n] { work(backbone, n, n); });
    for (int n = 0; n < compensation_threads; n++) {
      workers_.emplace_back([this, n, backbone_threads] { work(compensation, n, backbone_threads + n); });
    }
    return true;
  }

  void step(const Step& step) {
    step_ = step;
    backbone.rest();
    compensation.rest();
    const uint64_t epoch = epoch_.value.fetch_add(1, std::memory_order_acq_rel) + 1;
    if (parked_.value.load(std::memory_order_acquire) > 0) epoch_.value.notify_all();
    run(backbone, 0, 0, epoch, meetings_);
    const uint64_t all = epoch * workers_.size();
    spin_until([&] { return finished_.value.load(std::memory_order_acquire) >= all; });
  }

 private:
  void work(Lane& lane, int thread, int scratch) {
    uint64_t meetings = 0;
    for (uint64_t seen = 0;;) {
      const int64_t since = now();
      for (int spins = 0; epoch_.value.load(std::memory_order_acquire) == seen; spins++) {
        relax();
        if (spins % 256 != 255 || now() - since < PARK_AFTER_NS) continue;
        parked_.value.fetch_add(1, std::memory_order_acq_rel);
        epoch_.value.wait(seen, std::memory_order_acquire);
        parked_.value.fetch_sub(1, std::memory_order_acq_rel);
      }
      seen++;
      if (stop_.load(std::memory_order_acquire)) return;
      run(lane, thread, scratch, seen, meetings);
      finished_.value.fetch_add(1, std::memory_order_acq_rel);
    }
  }

  void run(Lane& lane, int thread, int scratch, uint64_t epoch, uint64_t& meetings) {
    uint8_t* own = scratch_ + scratch_stride_ * scratch;
    const bool trace = lane.trace && thread == 0;
    if (trace) lane.times[0] = now();
    for (size_t n = 0; n < lane.program.size(); n++) {
      const BoundInstruction& bound = lane.program[n];
      if (bound.runs(step_.mode)) {
        std::visit([&](const auto& arguments) { execute(lane, n, bound, arguments, thread, epoch, own); }, bound.arguments);
      }
      // What continues work begun without a barrier also ends it, in steps that skip it too.
      if (bound.barrier && (bound.after > 0 || bound.runs(step_.mode))) lane.barrier->meet(meetings);
      if (trace) lane.times[n + 1] = now();
    }
  }

  void execute(Lane&, size_t, const BoundInstruction&, const Signal& signal, int thread, uint64_t epoch, uint8_t*) {
    if (thread == 0) events_[static_cast<size_t>(signal.event)].value.store(epoch, std::memory_order_release);
  }

  void execute(Lane&, size_t, const BoundInstruction&, const Wait& wait, int, uint64_t epoch, uint8_t*) {
    const auto& event = events_[static_cast<size_t>(wait.event)].value;
    spin_until([&] { return event.load(std::memory_order_acquire) >= epoch; });
  }

  template <typename Args>
  void execute(Lane& lane, size_t n, const BoundInstruction& bound, const Args& bound_arguments, int, uint64_t, uint8_t* own) {
    Args arguments = bound_arguments;
    int64_t tokens = step_.count;
    if (bound.is_output) {
      if (step_.logits == LogitRows::none) return;
      if (step_.logits == LogitRows::last) tokens = 1;
    }
    prepare(arguments, tokens, own);
    int64_t items = bound.per_token;
    if constexpr (std::is_same_v<Args, AttentionArgs>) items *= (tokens + ATTENTION_TILE - 1) / ATTENTION_TILE;
    else if (!bound.fixed_items) items *= tokens;
    const auto kernel = kernel_of(arguments);
    if (lane.threads == 1) return kernel(arguments, 0, items);
    if (bound.after > 0) {
      const Progress& earlier = lane.progress[n - static_cast<size_t>(bound.after)];
      spin_until([&] { return earlier.complete.load(std::memory_order_acquire); });
    }
    Progress& progress = lane.progress[n];
    const Pieces pieces(items, shares<Args>() * lane.threads);
    for (;;) {
      const auto [begin, end] = pieces[progress.claimed.fetch_add(1, std::memory_order_relaxed)];
      if (begin >= items) return;
      kernel(arguments, begin, end);
      if (progress.done.fetch_add(end - begin, std::memory_order_acq_rel) + (end - begin) == items) {
        progress.complete.store(true, std::memory_order_release);
      }
    }
  }

  // Large pieces a thread: sums of rows read a part of each row, which should be long.
  template <typename Args>
  static constexpr int64_t shares() {
    return std::is_same_v<Args, SparseSumArgs> || std::is_same_v<Args, LowRankUpArgs> ? 2 : 8;
  }

  template <typename Args>
  void prepare(Args& arguments, int64_t tokens, [[maybe_unused]] uint8_t* own) const {
    if constexpr (std::is_same_v<Args, EmbedArgs>) {
      arguments.tokens = step_.tokens;
    } else if constexpr (std::is_same_v<Args, HeadsArgs>) {
      arguments.position = step_.position;
    } else if constexpr (std::is_same_v<Args, AttentionArgs>) {
      arguments.position = step_.position;
      arguments.tokens = static_cast<int32_t>(tokens);
      arguments.scratch = reinterpret_cast<float*>(own);
    } else if constexpr (std::is_same_v<Args, LinearArgs>) {
      // Logits of the last token only: the inputs start at that token's row.
      const int64_t skipped = step_.count - tokens;
      arguments.tokens = static_cast<int32_t>(tokens);
      if (arguments.x) arguments.x += skipped * arguments.inputs;
      if (arguments.quantized.group > 0) {
        arguments.quantized.codes += skipped * arguments.quantized.stride;
        arguments.quantized.scales += skipped * arguments.quantized.groups;
        arguments.quantized.sums += skipped * arguments.quantized.groups;
      }
      if (step_.mode == Mode::decode) arguments.residual = nullptr;
      arguments.scratch = own;
    } else if constexpr (std::is_same_v<Args, SparseSelectArgs>) {
      arguments.scratch = reinterpret_cast<float*>(own);
    }
  }

  auto kernel_of(const EmbedArgs&) const { return kernels_.embed; }
  auto kernel_of(const NormArgs&) const { return kernels_.norm; }
  auto kernel_of(const QuantizeArgs&) const { return kernels_.quantize; }
  auto kernel_of(const SiluMulArgs&) const { return kernels_.silu_mul; }
  auto kernel_of(const ElementwiseArgs&) const { return kernels_.elementwise; }
  auto kernel_of(const HeadsArgs&) const { return kernels_.heads; }
  auto kernel_of(const AttentionArgs&) const { return kernels_.attention; }
  auto kernel_of(const LinearArgs&) const { return kernels_.linear; }
  auto kernel_of(const SparseSelectArgs&) const { return kernels_.sparse_select; }
  auto kernel_of(const SparseSumArgs&) const { return kernels_.sparse_sum; }
  auto kernel_of(const LowRankDownArgs&) const { return kernels_.low_rank_down; }
  auto kernel_of(const LowRankUpArgs&) const { return kernels_.low_rank_up; }

  const Kernels& kernels_;
  std::unique_ptr<Sequence[]> events_;
  Sequence epoch_, finished_, parked_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
  Step step_{};
  uint64_t meetings_ = 0;
  uint8_t* scratch_ = nullptr;
  int64_t scratch_stride_ = 0;
};

}  // namespace

HC_EXPORT const char* hc_engine_error() { return last_error; }

// The instruction set in use ("avx512vnni"), or null with hc_engine_error() set.
HC_EXPORT const char* hc_isa() {
  const Kernels* kernels = active_kernels();
  if (kernels) return kernels->isa;
  std::snprintf(last_error, sizeof last_error, "%s", isa_error());
  return nullptr;
}

// Null with hc_engine_error() set when a program does not fit its memory. `segments` and `sizes` have one entry per
// segment; the memory must outlive the engine. compensation_threads may be 0 when that lane's program is empty.
HC_EXPORT void* hc_engine_create(const Record* backbone, int64_t backbone_count, const Record* compensation, int64_t compensation_count,
                                 uint8_t* const* segments, const int64_t* sizes, int32_t events, int32_t backbone_threads,
                                 int32_t compensation_threads) {
  const Kernels* kernels = active_kernels();
  if (!kernels) {
    std::snprintf(last_error, sizeof last_error, "%s", isa_error());
    return nullptr;
  }
  Memory memory{};
  for (int n = 0; n < SEGMENTS; n++) memory.base[n] = segments[n], memory.size[n] = sizes[n];
  auto engine = std::make_unique<Engine>(*kernels, events);
  if (!bind(backbone, backbone_count, memory, engine->backbone.program, last_error, sizeof last_error)) return nullptr;
  if (!bind(compensation, compensation_count, memory, engine->compensation.program, last_error, sizeof last_error)) return nullptr;
  if (!engine->start(backbone_threads, compensation_threads)) {
    std::snprintf(last_error, sizeof last_error, "out of memory for the scratch of %d threads", backbone_threads + compensation_threads);
    return nullptr;
  }
  return engine.release();
}

HC_EXPORT void hc_engine_step(void* engine, const int32_t* tokens, int32_t count, int32_t position, int32_t mode, int32_t logits) {
  static_cast<Engine*>(engine)->step({tokens, count, position, static_cast<Mode>(mode), static_cast<LogitRows>(logits)});
}

// From the next step on, records when each backbone instruction of thread 0 ended; `times` receives count + 1
// nanosecond stamps of the last step (the first is the start).
HC_EXPORT void hc_engine_trace(void* engine, int64_t* times, int64_t count) {
  Lane& lane = static_cast<Engine*>(engine)->backbone;
  lane.trace = true;
  std::copy_n(lane.times.begin(), std::min<int64_t>(count, static_cast<int64_t>(lane.times.size())), times);
}

HC_EXPORT void hc_engine_destroy(void* engine) { delete static_cast<Engine*>(engine); }

HC_EXPORT int64_t hc_argmax(const float* logits, int64_t n) { return active_kernels()->argmax(logits, n); }

HC_EXPORT void hc_token_loss(const float* logits, const float* reference, int64_t n, int64_t target, double* nll, double* kl) {
  active_kernels()->token_loss(logits, reference, n, target, nll, kl);
}

}  // namespace hc
