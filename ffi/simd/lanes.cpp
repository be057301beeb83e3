// Lanes wait for each other's events. Whether they ever end is known from their programs: it does not depend on timing,
// because a lane runs in order and an event, once signalled, stays so for the step.
#include <map>
#include <string>

#include "program.h"

namespace hc {
namespace {

std::string place(size_t lane, size_t n) { return "lane " + std::to_string(lane) + ", instruction " + std::to_string(n); }

// Runs every lane up to the wait it is stuck at. Throws where one does not reach its end. What no lane signals, the partner
// does.
void simulate(const std::vector<std::vector<BoundInstruction>>& lanes, const std::map<const uint64_t*, std::string>& signals, Mode mode) {
  const Step step = {1, 1, 1, mode};
  std::map<const uint64_t*, bool> signalled;
  std::vector<size_t> at(lanes.size(), 0);
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t lane = 0; lane < lanes.size(); lane++) {
      for (; at[lane] < lanes[lane].size(); at[lane]++, moved = true) {
        const BoundInstruction& bound = lanes[lane][at[lane]];
        if (bound.items(step) == 0) continue;
        if (const auto* signal = std::get_if<Signal>(&bound.arguments)) signalled[signal->event] = true;
        const auto* wait = std::get_if<Wait>(&bound.arguments);
        if (wait && !signalled[wait->event] && signals.contains(wait->event)) break;
      }
    }
  }
  for (size_t lane = 0; lane < lanes.size(); lane++) {
    if (at[lane] == lanes[lane].size()) continue;
    const auto* wait = std::get_if<Wait>(&lanes[lane][at[lane]].arguments);
    throw Refusal(place(lane, at[lane]) + " waits for ever in a " + (mode == Mode::decode ? "decode" : "prefill") + " step: the signal at " +
                  signals.at(wait->event) + " is not reached");
  }
}

}  // namespace

void check_lanes(const std::vector<std::vector<BoundInstruction>>& lanes, bool partner) {
  std::map<const uint64_t*, std::string> signals;
  for (size_t lane = 0; lane < lanes.size(); lane++) {
    for (size_t n = 0; n < lanes[lane].size(); n++) {
      const auto* signal = std::get_if<Signal>(&lanes[lane][n].arguments);
      if (!signal) continue;
      const auto [first, added] = signals.try_emplace(signal->event, place(lane, n));
      if (!added) throw Refusal(place(lane, n) + " signals the event that " + first->second + " signals");
    }
  }
  for (size_t lane = 0; lane < lanes.size() && !partner; lane++) {
    for (size_t n = 0; n < lanes[lane].size(); n++) {
      const auto* wait = std::get_if<Wait>(&lanes[lane][n].arguments);
      if (wait && !signals.contains(wait->event)) throw Refusal(place(lane, n) + " waits for an event that no lane signals");
    }
  }
  simulate(lanes, signals, Mode::prefill);
  simulate(lanes, signals, Mode::decode);
}

}  // namespace hc
