// How many of a lane's threads take part in a step. Where another program runs, a thread now and then loses its core with a
// piece of work in its hands, and all others wait for it at the next barrier, for milliseconds where the instruction takes
// microseconds: then fewer threads, which find a free core each, are faster. Long waits only raise the question; what decides
// is the time of steps, measured with and without the thread.
#pragma once
#include <algorithm>
#include <cstdint>

namespace hc {

// A wait of one thread for another that no instruction explains, in nanoseconds.
constexpr int64_t LONG_WAIT_NS = 300'000;

class Shedding {
 public:
  explicit Shedding(int threads) : most_(threads), threads_(threads) {}

  // Of the next step.
  int threads() const { return threads_; }

  // A step has ended: of so many tokens, with so many long waits. Steps of different tokens are not compared.
  void ended(int32_t tokens, int64_t nanoseconds, int64_t long_waits) {
    if (most_ == 1) return;
    if (tokens != tokens_) *this = Shedding(*this, tokens);
    window_.steps++, window_.time += nanoseconds, window_.long_waits += long_waits;
    if (window_.steps < WINDOW_STEPS || window_.time < WINDOW_NS) return;
    const double cost = static_cast<double>(window_.time) / window_.steps;
    const int64_t waits = window_.long_waits;
    window_ = {};
    if (before_ > 0) return decide(cost);
    since_less_++, since_more_++;
    if (waits >= WAITS && threads_ > 1 && since_less_ >= patience_less_) try_other(threads_ - 1, cost);
    else if (threads_ < most_ && since_more_ >= patience_more_) try_other(threads_ + 1, cost);
  }

 private:
  // Steps are judged by windows of them: long enough for a scheduler to have taken a core away several times.
  static constexpr int64_t WINDOW_NS = 30'000'000, WINDOW_STEPS = 4;
  static constexpr int64_t WAITS = 2;
  // Windows between two questions that were answered no; twice as many after every such answer.
  static constexpr int64_t LEAST_PATIENCE = 16, MOST_PATIENCE = 128;
  // What a number of threads must be faster by.
  static constexpr double GAIN = 0.97;

  struct Window {
    int64_t steps = 0, time = 0, long_waits = 0;
  };

  // The same number of threads, for steps of other sizes.
  Shedding(const Shedding& last, int32_t tokens) : most_(last.most_), threads_(last.settled()), tokens_(tokens) {}

  int settled() const { return before_ > 0 ? before_ : threads_; }

  void try_other(int threads, double cost) { before_ = threads_, cost_before_ = cost, threads_ = threads; }

  void decide(double cost) {
    const bool is_less = threads_ < before_, is_better = cost < GAIN * cost_before_;
    int64_t& patience = is_less ? patience_less_ : patience_more_;
    patience = is_better ? LEAST_PATIENCE : std::min(2 * patience, MOST_PATIENCE);
    if (!is_better) threads_ = before_;
    (is_less ? since_less_ : since_more_) = 0;
    if (is_better && is_less) since_more_ = 0, patience_more_ = LEAST_PATIENCE;
    before_ = 0;
  }

  int most_, threads_;
  int32_t tokens_ = 0;
  Window window_;
  int before_ = 0;  // threads, while others are tried
  double cost_before_ = 0;
  int64_t since_less_ = LEAST_PATIENCE, since_more_ = 0;  // windows
  int64_t patience_less_ = 1, patience_more_ = LEAST_PATIENCE;
};

}  // namespace hc
