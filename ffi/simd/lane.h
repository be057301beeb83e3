// How the threads of a lane wait and share work. There are no locks: they meet in numbers that grow during a step, which
// are zeroed while every thread rests.
#pragma once
#include <algorithm>
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

inline int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Spins until `reached()`. A thread that has spun for some microseconds (its partner lost its core to somebody) offers
// its own, which costs next to nothing where each thread has one, and is what lets the partner go on where not. Returns for how
// many nanoseconds it did.
template <typename Reached>
inline int64_t spin_until(Reached reached) {
  constexpr int SPINS_BEFORE_YIELD = 64;
  int64_t since = 0;
  for (int spins = 0; !reached(); spins++) {
    if (spins < SPINS_BEFORE_YIELD) {
      relax();
      continue;
    }
    if (spins == SPINS_BEFORE_YIELD) since = now();
    std::this_thread::yield();
  }
  return since > 0 ? now() - since : 0;
}

// The barrier of one lane. `arrivals` only grows in a step: the n-th meeting is over when it reaches n * threads.
class Barrier {
 public:
  // `meetings` is the calling thread's own count of meetings so far. Ends, too, when `given_up()`. Returns the nanoseconds
  // that it waited.
  template <typename GivenUp> int64_t meet(uint64_t& meetings, int threads, GivenUp given_up) {
    if (threads == 1) return 0;
    const uint64_t target = ++meetings * static_cast<uint64_t>(threads);
    if (arrivals_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == target) return 0;
    return spin_until([&] { return arrivals_.value.load(std::memory_order_acquire) >= target || given_up(); });
  }
  void rest() { arrivals_.value.store(0, std::memory_order_relaxed); }

 private:
  Sequence arrivals_;
};

// How far the threads of a lane are with one instruction.
struct alignas(64) Progress {
  std::atomic<int64_t> claimed{0};  // pieces
  std::atomic<int64_t> done{0};     // items

  void rest() {
    claimed.store(0, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
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

}  // namespace hc
