// Interrupts that wait until they are asked for: see ffi/interrupts.ts.
#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int SIGNALS[] = {SIGINT, SIGTERM, SIGHUP};
constexpr size_t COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction before[COUNT];
std::atomic<int32_t> received{0};
static_assert(std::atomic<int32_t>::is_always_lock_free);

void on_interrupt(int number) {
  if (received.exchange(number) == 0) return;
  // Whoever asks twice does not want to wait.
  signal(number, SIG_DFL);
  raise(number);
}

}  // namespace

HC_EXPORT void hc_watch_interrupts() {
  received = 0;
  for (size_t i = 0; i < COUNT; i++) {
    struct sigaction action {};
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGNALS[i], nullptr, &before[i]);
    // What the parent told this process to ignore (nohup) stays ignored.
    if ((before[i].sa_flags & SA_SIGINFO) || before[i].sa_handler != SIG_IGN) sigaction(SIGNALS[i], &action, nullptr);
  }
}

// The signal that came since the watch began, 0 for none.
HC_EXPORT int32_t hc_interrupt() { return received; }

HC_EXPORT void hc_unwatch_interrupts() {
  for (size_t i = 0; i < COUNT; i++) sigaction(SIGNALS[i], &before[i], nullptr);
}
