// The engine's threads, where TypeScript cannot reach: for SANITIZE=thread, aborts at any moment from another thread, and
// threads or scratch that the machine has no room for.
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "../../ffi/simd/isa.h"
#include "../../ffi/simd/kernels_variant.h"
#include "../../ffi/simd/program.h"

#include "check.h"

using namespace hc;
using check::expect, check::random32;

// The engine runs this program's variant.
const Kernels* hc::active_kernels() { return &hc::HC_ISA::kernels(); }
const char* hc::isa_error() { return ""; }

extern "C" {
const char* hc_engine_error();
int32_t hc_engine_failure();
void* hc_engine_create(const Record*, const int64_t*, const int32_t*, int32_t, uint8_t* const*, const int64_t*, int32_t, int64_t);
int32_t hc_engine_step(void*, int32_t, int32_t, int32_t, int32_t);
void hc_engine_destroy(void*);
}

constexpr int WIDTH = 40, TOKENS = 24, VALUES = 8, DONE = 0, ABORTED = 1;

static uint64_t place(Segment segment, int64_t offset) { return uint64_t{static_cast<uint64_t>(segment)} << 56 | static_cast<uint64_t>(offset); }

// Value `out` = value a + value b.
static Record add(int a, int b, int out, bool barrier = true, int after = 0) {
  Record record{};
  record.opcode = static_cast<int32_t>(Opcode::elementwise);
  record.barrier = barrier, record.awaits = after;
  for (uint64_t& operand : record.operand) operand = ~uint64_t{0};
  using namespace instruction::elementwise;
  const auto value = [](int n) { return place(Segment::arena, int64_t{4} * n * WIDTH * TOKENS); };
  record.operand[a_] = value(a), record.operand[b_] = value(b), record.operand[out_] = value(out);
  record.integer[width_] = record.integer[aStride_] = record.integer[bStride_] = WIDTH;
  return record;
}

static Record event(Opcode op, int n) {
  Record record{};
  record.opcode = static_cast<int32_t>(op);
  record.barrier = 1;
  for (uint64_t& operand : record.operand) operand = ~uint64_t{0};
  record.operand[0] = place(Segment::mailbox, MAILBOX_EVENTS + n * EVENT_BYTES);
  return record;
}

struct Machine {
  alignas(64) float values[VALUES][TOKENS * WIDTH] = {};
  alignas(64) uint64_t mailbox[64] = {};
  void* engine;

  Machine(const std::vector<std::vector<Record>>& lanes, const std::vector<int32_t>& threads) {
    std::vector<Record> records;
    std::vector<int64_t> counts;
    for (const auto& lane : lanes) records.insert(records.end(), lane.begin(), lane.end()), counts.push_back(static_cast<int64_t>(lane.size()));
    uint8_t* base[SEGMENTS] = {};
    int64_t size[SEGMENTS] = {};
    base[static_cast<int>(Segment::arena)] = reinterpret_cast<uint8_t*>(values), size[static_cast<int>(Segment::arena)] = sizeof values;
    base[static_cast<int>(Segment::mailbox)] = reinterpret_cast<uint8_t*>(mailbox), size[static_cast<int>(Segment::mailbox)] = sizeof mailbox;
    engine = hc_engine_create(records.data(), counts.data(), threads.data(), static_cast<int32_t>(lanes.size()), base, size, TOKENS, 0);
  }
  ~Machine() { if (engine) hc_engine_destroy(engine); }
  int32_t step() { return hc_engine_step(engine, TOKENS, 0, 0, 1); }
  void flag(uint32_t value) { std::atomic_ref(*reinterpret_cast<uint32_t*>(mailbox)).store(value); }
  void start(float x) { for (float& value : values[0]) value = x; }
  bool all(int n, float expected) const {
    for (const float x : values[n]) if (x != expected) return false;
    return true;
  }
};

// 6 = 8 * value 0 by way of both lanes, with and without barriers.
static std::vector<std::vector<Record>> two_lanes() {
  return {{add(0, 0, 1), event(Opcode::signal, 0), add(0, 0, 2, false), add(0, 0, 3, false), add(2, 1, 4, true, 2), event(Opcode::wait, 1), add(4, 5, 6)},
          {event(Opcode::wait, 0), add(1, 0, 7), add(7, 0, 5), event(Opcode::signal, 1)}};
}

static void steps() {
  for (const std::vector<int32_t>& threads : {std::vector<int32_t>{1, 1}, {3, 2}, {2, 4}}) {
    Machine machine(two_lanes(), threads);
    for (int round = 1; round <= 200; round++) {
      machine.start(static_cast<float>(round));
      expect(machine.step() == DONE && machine.all(6, 8.0f * static_cast<float>(round)), "engine: steps", round);
      if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // until workers park
    }
  }
}

static void aborts() {
  std::vector<std::vector<Record>> lanes = two_lanes();
  for (auto& lane : lanes) {
    for (int n = 0; n < 40; n++) lane.insert(lane.begin(), add(0, 0, &lane == &lanes[0] ? 1 : 7));
  }
  for (const std::vector<int32_t>& threads : {std::vector<int32_t>{1, 1}, {3, 2}}) {
    Machine machine(lanes, threads);
    std::atomic<int> round{0};
    std::atomic<bool> over{false};
    // Raises the flag at any moment of a step, and takes it back at once every other time.
    std::thread other([&] {
      for (int seen = 0; !over; ) {
        if (round == seen) continue;
        seen = round;
        for (uint32_t n = (static_cast<uint32_t>(seen) * 2654435761u) >> 21; n-- > 0;) std::atomic_signal_fence(std::memory_order_seq_cst);
        machine.flag(1);
        if (seen % 2) machine.flag(0);
      }
    });
    int aborted = 0;
    for (int n = 1; n <= 300; n++) {
      round = n;
      const int32_t status = machine.step();
      expect(status == DONE || status == ABORTED, "engine: status", status);
      aborted += status == ABORTED;
    }
    over = true;
    other.join();
    machine.flag(1);
    expect(machine.step() == ABORTED, "engine: the flag is up before the step");
    machine.flag(0);
    machine.start(3);
    expect(machine.step() == DONE && machine.all(6, 24), "engine: a step after an abort");
    expect(aborted > 0, "engine: some steps are aborted");
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Calls f while the process may have no more than this many bytes of addresses.
template <class F> static void within(rlim_t bytes, F f) {
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  const rlimit less = {bytes, before.rlim_max};
  setrlimit(RLIMIT_AS, &less);
  f();
  setrlimit(RLIMIT_AS, &before);
}

static void expect_shortage(const void* engine, const char* message) {
  expect(!engine && hc_engine_failure() == 1, message);
  expect(std::string(hc_engine_error()).find(message) == 0, hc_engine_error());
}

static void shortages() {
  within(256 << 20, [] {  // stacks are 8 MiB each
    const Machine machine({{add(0, 0, 1)}}, {500});
    expect_shortage(machine.engine, "a thread does not start");
  });
  // Scores of so many positions, for so many threads.
  Record record{};
  record.opcode = static_cast<int32_t>(Opcode::attend);
  using namespace instruction::attend;
  for (const int operand : {q_, cacheK_, cacheV_, tiles_, positions_, sequences_, pages_, out_}) record.operand[operand] = place(Segment::arena, 0);
  for (const int integer : {heads_, kvHeads_, headDim_, pageCount_, mostSequences_}) record.integer[integer] = 1;
  record.integer[mostPages_] = 1 << 20, record.integer[context_] = 1 << 26;
  alignas(64) static uint8_t start[64];
  uint8_t* base[SEGMENTS] = {};
  int64_t size[SEGMENTS] = {};
  base[static_cast<int>(Segment::arena)] = start, size[static_cast<int>(Segment::arena)] = int64_t{1} << 40;
  const int64_t count = 1;
  const int32_t threads = 1024;
  within(rlim_t{1} << 40, [&] {
    expect_shortage(hc_engine_create(&record, &count, &threads, 1, base, size, TOKENS, 0), "out of memory for the scratch");
  });
}
#else
static void shortages() {}
#endif

int main() {
  steps();
  aborts();
  shortages();
  return check::finish("engine_test " HC_ISA_TEXT);
}
