// A lane's group of threads: work claiming, barriers and events. During a step threads meet only in sequence numbers
// that grow and are never reset; there are no locks. Between steps they park.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hc {

// A cache line of its own, so that spinning on one number does not disturb another.
struct alignas(64) Sequence {
  std::atomic<uint64_t> value{0};
};

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `reached()`. A thread that has spun for some microseconds (its partner lost its core to somebody) offers
// its own, which costs next to nothing where each thread has one, and is what lets the partner go on where not.
template <typename Reached>
inline void spin_until(Reached reached) {
  constexpr int SPINS_BEFORE_YIELD = 64;
  for (int spins = 0; !reached(); spins++) {
    if (spins < SPINS_BEFORE_YIELD) relax();
    else std::this_thread::yield();
  }
}

// The barrier of one lane. `arrivals` only grows: the n-th meeting is over when it reaches n * threads.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(static_cast<uint64_t>(threads)) {}

  // `meetings` is the calling thread's own count of meetings so far.
  void meet(uint64_t& meetings) {
    if (threads_ == 1) return;
    const uint64_t target = ++meetings * threads_;
    if (arrivals_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == target) return;
    spin_until([&] { return arrivals_.value.load(std::memory_order_acquire) >= target; });
  }

 private:
  uint64_t threads_;
  Sequence arrivals_;
};

}  // namespace hc
