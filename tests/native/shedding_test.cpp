// Shedding threads, against machines that are made up: what a step costs with so many threads, and whether it has long waits.
#include "../../ffi/simd/shedding.h"

#include <functional>

#include "check.h"

using namespace hc;
using check::expect;

struct Machine {
  std::function<int64_t(int)> nanoseconds;  // of a step, by threads
  std::function<int64_t(int)> long_waits;
};

constexpr int64_t MS = 1'000'000;

// Runs steps for so long; returns the time that the same steps would have taken with the best number of threads, relative to
// the time they took.
static double efficiency(Shedding& shedding, const Machine& machine, int most, int64_t nanoseconds, int32_t tokens = 1) {
  int64_t best = machine.nanoseconds(1), took = 0, steps = 0;
  for (int threads = 2; threads <= most; threads++) best = std::min(best, machine.nanoseconds(threads));
  for (; took < nanoseconds; steps++) {
    const int threads = shedding.threads();
    expect(threads >= 1 && threads <= most, "threads", threads, most);
    const int64_t time = machine.nanoseconds(threads);
    took += time;
    shedding.ended(tokens, time, machine.long_waits(threads));
  }
  return static_cast<double>(steps * best) / static_cast<double>(took);
}

// 10 ms of work, shared well; another program's thread beside them costs half of the time of every step that needs its core.
static Machine idle() {
  return {[](int threads) { return 10 * MS / threads; }, [](int) { return 0; }};
}
static Machine loaded(int cores) {
  return {[cores](int threads) { return threads < cores ? 10 * MS / threads : 25 * MS; },
          [cores](int threads) { return threads < cores ? 0 : 2; }};
}

int main() {
  for (const int threads : {2, 4, 16}) {
    Shedding shedding(threads);
    expect(efficiency(shedding, idle(), threads, 5000 * MS) == 1, "an idle machine keeps all threads");
    efficiency(shedding, loaded(threads), threads, 1000 * MS);
    const double under_load = efficiency(shedding, loaded(threads), threads, 10'000 * MS);
    expect(under_load > 0.93, "one thread less under load", under_load, 1);
    efficiency(shedding, idle(), threads, 10'000 * MS);
    expect(shedding.threads() == threads, "all threads come back", shedding.threads(), threads);
    expect(efficiency(shedding, idle(), threads, 5000 * MS) == 1, "and stay");
  }
  {
    // Waits that less threads do not mend, as on a machine that stutters: the question costs little.
    Shedding shedding(2);
    const Machine stutters = {[](int threads) { return 10 * MS / threads; }, [](int threads) { return threads > 1 ? 1 : 0; }};
    efficiency(shedding, stutters, 2, 2000 * MS);
    const double found = efficiency(shedding, stutters, 2, 20'000 * MS);
    expect(found > 0.98, "long waits without a better number of threads", found, 1);
  }
  {
    // Steps of other sizes are no reason to change anything.
    Shedding shedding(2);
    for (int step = 0; step < 1000; step++) shedding.ended(1 + step % 3, step % 3 * 20 * MS, step % 2 * 3);
    expect(shedding.threads() == 2, "steps that cannot be compared", shedding.threads(), 2);
    Shedding single(1);
    for (int step = 0; step < 1000; step++) single.ended(1, 20 * MS, 5);
    expect(single.threads() == 1, "one thread", single.threads(), 1);
  }
  return check::finish("shedding_test");
}
