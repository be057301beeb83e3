// Copies within the host's memory, in a stream's order: see HostCopy in ffi/cuda/host_copy.ts.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Part {
  uint8_t* to;
  const uint8_t* from;
  uint64_t bytes;
};
struct Parts {
  uint64_t count;
  Part part[];
};

// From here on one thread is slower than the bus.
constexpr uint64_t SHARED_BYTES = 8 << 20;
constexpr unsigned MOST_THREADS = 4;

// The `share`-th of `shares` of every part.
void copy_share(const Parts& parts, unsigned share, unsigned shares) {
  for (uint64_t n = 0; n < parts.count; n++) {
    const Part& part = parts.part[n];
    const uint64_t begin = part.bytes * share / shares, end = part.bytes * (share + 1) / shares;
    std::memcpy(part.to + begin, part.from + begin, end - begin);
  }
}

}  // namespace

// What cuLaunchHostFunc calls, on a thread of the driver, which must call nothing of the driver's. `table`: Parts.
HC_EXPORT void hc_copy_parts(void* table) {
  const auto& parts = *static_cast<const Parts*>(table);
  uint64_t bytes = 0;
  for (uint64_t n = 0; n < parts.count; n++) bytes += parts.part[n].bytes;
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency() / 2);
  const unsigned shares = bytes < SHARED_BYTES ? 1 : std::min(MOST_THREADS, cores);
  std::vector<std::thread> helpers;
  try {
    helpers.reserve(shares);
    for (unsigned share = 1; share < shares; share++) helpers.emplace_back(copy_share, std::cref(parts), share, shares);
  } catch (...) {
    // No more threads: what they would have copied is copied here.
    for (auto share = static_cast<unsigned>(helpers.size()) + 1; share < shares; share++) copy_share(parts, share, shares);
  }
  copy_share(parts, 0, shares);
  for (std::thread& helper : helpers) helper.join();
}
