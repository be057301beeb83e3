// What a running block offers to its threads: where they are, barriers, and operations of a warp.
#pragma once
#include <cstdint>
#include <type_traits>

#include "vectors.h"

// Rewritten when another fiber runs.
#define SIM_THREAD_LOCAL extern __thread __attribute__((tls_model("initial-exec")))
SIM_THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;
#undef SIM_THREAD_LOCAL
constexpr int warpSize = 32;

extern "C" {
void sim_barrier();
// Lets the other threads of the block, and of the host, run.
void sim_yield();
uint64_t sim_clock_ns();
// Ends the kernel with CUDA_ERROR_LAUNCH_FAILED. printf's format.
[[noreturn]] void sim_fail(const char* format, ...);
// An operation of the lanes in `mask`: each hands in its `mine`. When the last live one of them has arrived, `run` is called
// once with all of them, those in `group`, and then every lane goes on.
using SimCollective = void (*)(void* const* lanes, unsigned group);
void sim_collective(unsigned mask, void* mine, SimCollective run);
}

inline void __syncthreads() { sim_barrier(); }
inline void __nanosleep(unsigned) { sim_yield(); }
inline void __trap() { __builtin_trap(); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __syncwarp(unsigned mask = ~0u) {
  sim_collective(mask, nullptr, [](void* const*, unsigned) {});
}

inline unsigned sim_lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31; }

template <class T> T sim_shuffle(unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  struct Lane { T value; unsigned source; } mine{value, source};
  sim_collective(mask, &mine, [](void* const* lanes, unsigned group) {
    T results[32];
    for (unsigned rest = group; rest; rest &= rest - 1) {
      const unsigned i = __builtin_ctz(rest), from = static_cast<Lane*>(lanes[i])->source;
      if (!(group >> from & 1)) sim_fail("lane %u shuffles from lane %u, which takes no part", i, from);
      results[i] = static_cast<Lane*>(lanes[from])->value;
    }
    for (unsigned rest = group; rest; rest &= rest - 1) {
      const unsigned i = __builtin_ctz(rest);
      static_cast<Lane*>(lanes[i])->value = results[i];
    }
  });
  return mine.value;
}
// A source outside the segment of `width` lanes yields the caller's own value.
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return sim_shuffle(mask, value, (sim_lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = sim_lane(), source = lane ^ bits;
  return sim_shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = sim_lane(), source = lane + delta;
  return sim_shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = sim_lane();
  return sim_shuffle(mask, value, (lane & (width - 1)) >= delta ? lane - delta : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned mine = predicate != 0;
  sim_collective(mask, &mine, [](void* const* lanes, unsigned group) {
    unsigned ballot = 0;
    for (unsigned rest = group; rest; rest &= rest - 1)
      ballot |= *static_cast<unsigned*>(lanes[__builtin_ctz(rest)]) << __builtin_ctz(rest);
    for (unsigned rest = group; rest; rest &= rest - 1) *static_cast<unsigned*>(lanes[__builtin_ctz(rest)]) = ballot;
  });
  return mine;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
