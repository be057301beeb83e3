// What every kernel is given beside its instruction's operands: the step at hand, and whom to wait for and tell.
//
// A kernel is `extern "C" __global__ void name(const Parameters p, const Call call)`: it begins with `if (!begin(call)) return;`
// and ends with `finish(call);`, both reached by every thread of every block. Fork and merge are here and nowhere else: a
// kernel whose output leaves for the other lane stores it with `put`, and one that reads deltas reads them with `delta`.
#pragma once
#include "device.h"

namespace hc {

// Pointers as the instruction table has them: whatever the kernel reads them as.
struct Read {
  const void* address;
  template <typename T> HC_DEVICE operator const T*() const { return static_cast<const T*>(address); }
};
struct Write {
  void* address;
  template <typename T> HC_DEVICE operator T*() const { return static_cast<T*>(address); }
};

// The head of the step's inputs in device memory, copied there by the step's first operation and back by its last.
struct StepReport {
  uint64_t number;    // of the step; grows with every step
  uint64_t overflow;  // lowered to the first key or value that f16 does not hold (ffi/simd/kernels.h: overflow_of)
  uint64_t patience;  // nanoseconds that a wait may last without a sign of life of the partner
  uint32_t stopped;   // not 0: kernels return at once
  uint32_t lost;      // not 0: the partner did not answer in time
};

// The mailbox, in pinned host memory (compiler/memory.ts): what both lanes read and write.
struct Mailbox {
  uint32_t abort;
  uint32_t unused[15];
  uint64_t number;
  uint64_t heartbeat;  // grows whenever a thread of the CPU begins a piece of work
};

struct Call {
  int32_t n;       // what the instruction runs over: the step's tokens, or its rows of logits
  int32_t tokens;  // of the step
  int32_t tiles;   // of the step (attend)
  int32_t chunks;  // attend: chunks of the context that the grid covers
  int32_t checks;  // not 0: look whether the step was stopped, even where there is nothing to wait for
  int32_t unused;
  int64_t host;    // bytes from the device's arena to its twin in pinned memory; 0: nobody else reads the output
  StepReport* report;
  Mailbox* mailbox;
  const uint64_t* wait;  // event to wait for, or null
  uint64_t* signal;      // event to publish when all blocks are done, or null
  uint32_t* arrivals;    // blocks that are done, of this instruction alone; 0 between steps
  void* scratch;         // device memory; who needs some says how much in its launch rule
};

// Whether the event that a kernel waits for comes. Every look crosses the bus, so the event is looked at most.
HC_DEVICE bool await(const Call& call) {
  const uint64_t number = load_volatile(&call.report->number);
  const auto patience = static_cast<int64_t>(load_volatile(&call.report->patience));
  uint64_t since = clock_ns(), heartbeat = 0;
  for (unsigned looks = 1; load_acquire_system(call.wait) < number; looks++) {
    __nanosleep(looks < 8 ? 32 * looks : 256);
    if (looks % 16 != 0) continue;
    if (load_acquire_system(&call.mailbox->abort) != 0) return false;
    const uint64_t beat = load_acquire_system(&call.mailbox->heartbeat);
    if (beat != heartbeat) heartbeat = beat, since = clock_ns();
    // Signed: the timer of a GPU need not grow between two reads.
    if (static_cast<int64_t>(clock_ns() - since) <= patience) continue;
    store_volatile(&call.report->lost, 1u);
    return false;
  }
  return true;
}

// Waits for the other lane. False: the step was stopped, leave; to all threads of a block alike, as one looks for all.
HC_DEVICE bool begin(const Call& call) {
  __shared__ uint32_t stopped;
  // A read of memory before everything else would cost a decode step's small kernels a tenth of their time.
  if (call.wait == nullptr && call.checks == 0) return true;
  if (thread_in_block() == 0) {
    stopped = load_volatile(&call.report->stopped);
    if (call.wait != nullptr && !stopped && !await(call)) store_volatile(&call.report->stopped, stopped = 1);
  }
  __syncthreads();
  return stopped == 0;
}

// After the block's last store. The last block of the grid publishes the step's number.
HC_DEVICE void finish(const Call& call) {
  if (call.signal == nullptr) return;
  // The fence stands between the barrier and the count, in the thread that counts: so it covers what all threads stored.
  __syncthreads();
  if (thread_in_block() != 0) return;
  __threadfence_system();
  const uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
  if (atomicInc(call.arrivals, blocks - 1) != blocks - 1) return;
  __threadfence_system();
  store_release_system(call.signal, load_volatile(&call.report->number));
}

// Stores an output that another lane may read.
template <typename T> HC_DEVICE void put(const Call& call, T* at, T value) {
  *at = value;
  if (call.host != 0) *reinterpret_cast<T*>(reinterpret_cast<char*>(at) + call.host) = value;
}

// x[i] and what corrections add to it; deltas lie in pinned memory and are read once, past the caches.
struct Corrected {
  const float* base;
  const float* low_rank;
  const float* sparse;
  HC_DEVICE float operator[](int64_t i) const {
    if (low_rank == nullptr && sparse == nullptr) return base[i];
    const float first = low_rank ? load_past_caches(low_rank + i) : 0.0f, second = sparse ? load_past_caches(sparse + i) : 0.0f;
    return base[i] + (low_rank && sparse ? first + second : low_rank ? first : second);
  }
};

}  // namespace hc
