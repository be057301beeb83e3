// What the machine's memory gives: the ceiling that speeds of kernels are printed beside.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "huge_pages.h"

namespace {

// Sums 64-bit words with eight independent accumulators, so that loads and not additions are the limit.
uint64_t sum(const uint64_t* words, size_t count) {
  uint64_t lanes[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += words[i + lane];
  }
  uint64_t total = 0;
  for (uint64_t lane : lanes) total += lane;
  return total;
}

struct Free {
  void operator()(uint64_t* words) const { std::free(words); }
};
using Words = std::unique_ptr<uint64_t[], Free>;

// Memory in huge pages where the system has them, as weights are mapped (mapping.cpp); null when there is none.
Words allocate(size_t bytes) {
  using hc::HUGE_PAGE;
  void* address = std::aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
  if (address) hc::prefer_huge_pages(address, bytes);
  return Words(static_cast<uint64_t*>(address));
}

// A round starts when every thread has arrived and ends when the last one is done.
struct Round {
  std::atomic<int32_t> arrived{0};
  std::atomic<int32_t> done{0};
};

void meet(std::atomic<int32_t>& count, int32_t threads) {
  count.fetch_add(1);
  while (count.load() < threads) std::this_thread::yield();
}

}  // namespace

// Bytes per second that `threads` threads read together (copy 0) or copy (copy 1; a byte copied counts once), each in
// its own part of `bytes` bytes; the best of `rounds`. 0 when there is no memory for it.
extern "C" __attribute__((visibility("default"))) double hc_measure_bandwidth(int32_t copy, uint64_t bytes,
                                                                              int32_t threads, int32_t rounds) {
  using Clock = std::chrono::steady_clock;
  if (threads < 1 || rounds < 1) return 0;
  const size_t words = bytes / static_cast<size_t>(threads) / 64 * 8;
  const size_t part = words * sizeof(uint64_t);
  std::vector<Words> sources, targets;
  for (int32_t thread = 0; thread < threads; ++thread) {
    sources.push_back(allocate(part));
    targets.push_back(copy ? allocate(part) : nullptr);
    if (!sources.back() || (copy && !targets.back())) return 0;
  }
  std::vector<Round> all(static_cast<size_t>(rounds) + 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;  // written by thread 0 alone
  const auto work = [&](int32_t thread) {
    uint64_t* source = sources[static_cast<size_t>(thread)].get();
    uint64_t* target = targets[static_cast<size_t>(thread)].get();
    // Each thread touches its memory first, which places it near the thread.
    std::memset(source, 1, part);
    if (copy) std::memset(target, 2, part);
    for (Round& round : all) {
      meet(round.arrived, threads);
      const auto started = Clock::now();
      if (copy) {
        std::memcpy(target, source, part);
      } else {
        sink.fetch_add(sum(source, words));
      }
      meet(round.done, threads);
      const double seconds = std::chrono::duration<double>(Clock::now() - started).count();
      // The first round warms up.
      if (thread == 0 && &round != &all.front()) best = std::max(best, static_cast<double>(part) * threads / seconds);
    }
  };
  std::vector<std::thread> others;
  for (int32_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return best;
}
