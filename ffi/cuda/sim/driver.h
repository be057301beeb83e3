// What the driver's functions share. One mutex guards all of it, and is never held while work runs.
//
// Nothing here is ever destroyed: at the program's exit the streams' threads may still run, and destroying what they wait for
// would hang it.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "driver_api.h"
#include "grid.h"

#define API extern "C" __attribute__((visibility("default"))) CUresult
// The start of every function that can fail: takes the lock, and leaves with the error that stands in the way.
#define ENTER                                    \
  sim::Lock lock(sim::mutex);                    \
  if (const CUresult failure = sim::enter(__func__)) return failure
// Of functions that allocate, load or wait, which the driver may refuse to a thread that captures.
#define ENTER_UNCAPTURED                         \
  ENTER;                                         \
  if (sim::capture_forbids()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

namespace sim {

using Lock = std::unique_lock<std::mutex>;
extern std::mutex& mutex;
extern std::condition_variable& changed;

// ---- contexts (device.cpp) ----

extern CUresult device_error;  // once set it stays until the context is reset
// The error that every call answers with (not initialised, no context on this thread, a fault of an earlier kernel), or the
// one that CUDA_SIM_FAIL asks for.
CUresult enter(const char* function);

// ---- memory (memory.cpp) ----

enum class Kind { device, pinned };
struct Allocation {
  size_t size;
  Kind kind;
  char* map = nullptr;
  size_t map_size = 0;
};
// The allocation that has all of [address, address + size), or null.
const Allocation* find_allocation(uintptr_t address, size_t size);
// The allocations next to an address, in words.
std::string describe(uintptr_t address);
size_t device_bytes_total();
void release_memory();

// ---- streams and events (stream.cpp) ----

// Whether a piece of work is done, and since when.
struct Signal {
  bool done = false;
  std::chrono::steady_clock::time_point time;
};
using SignalRef = std::shared_ptr<Signal>;
using Work = std::function<CUresult()>;

// A captured graph: work, and what each piece comes after. The order of capture is one in which it can run.
struct Graph {
  struct Node {
    Work work;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
};

struct Stream;
struct Capture {
  Graph graph;
  Stream* origin;
  CUstreamCaptureMode mode;
  std::thread::id thread;
};

// An OS thread that does the stream's work in order.
struct Stream {
  struct Item {
    Work work;
    SignalRef done;
  };
  explicit Stream(unsigned flags);
  ~Stream();  // ends the work first; without the lock
  void run();

  const unsigned flags;
  bool stopping = false;
  std::deque<Item> queue;
  SignalRef last = std::make_shared<Signal>(Signal{true, {}});  // of the latest work submitted
  Capture* capture = nullptr;
  std::vector<size_t> tails;  // nodes of the capture that the next one comes after
  std::minstd_rand random;
  std::thread worker;
};

struct Event {
  unsigned flags;
  SignalRef signal;  // of the latest cuEventRecord
  Capture* capture = nullptr;
  std::vector<size_t> tails;
};

extern std::set<Stream*>& streams;
extern std::set<Event*>& events;
extern std::set<Capture*>& captures;
Stream* stream_of(CUstream handle);  // null: no stream
// Gives the stream work: it captures it, or does it in its turn.
CUresult submit(Stream* stream, Work work);
void wait_for(Lock& lock, const SignalRef& signal);
void wait_for_all(Lock& lock);
// A capture is under way that forbids this thread to allocate, or to wait.
bool capture_forbids();
void release_streams(Lock& lock);

// ---- graphs and modules (graph.cpp, module.cpp) ----

void release_graphs();
void release_modules();

}  // namespace sim
