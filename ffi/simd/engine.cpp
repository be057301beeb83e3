// The engine's functions for ffi/engine.ts: programs come in as records, and errors go out as text.
#include "engine.h"

#include <cstdio>
#include <memory>
#include <string>
#include <system_error>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace hc {
namespace {

constexpr int MOST_LANES = 8, MOST_THREADS = 1024;

// What hc_engine_failure returns: ffi/engine.ts.
enum class Failure : int32_t { program = 0, environment = 1 };

thread_local char last_error[1024] = "";
thread_local Failure last_failure = Failure::program;

void fail(Failure failure, const std::string& message) {
  last_failure = failure;
  std::snprintf(last_error, sizeof last_error, "%s", message.c_str());
}

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

// Begins a step on another thread; `hc_engine_join` waits for it and returns its Status. -1 when no thread starts.
HC_EXPORT int32_t hc_engine_begin(void* engine, int32_t tokens, int32_t rows, int32_t tiles, int32_t mode) {
  try {
    static_cast<Engine*>(engine)->begin({tokens, rows, tiles, mode == 0 ? Mode::prefill : Mode::decode});
    return 0;
  } catch (const std::system_error& error) {
    fail(Failure::environment, std::string("a thread does not start: ") + error.what());
    return -1;
  }
}

HC_EXPORT int32_t hc_engine_join(void* engine) { return static_cast<int32_t>(static_cast<Engine*>(engine)->join()); }

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
