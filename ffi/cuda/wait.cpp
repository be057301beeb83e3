// The waits for the device that leave JavaScript's thread free: Stream.finished in ffi/cuda/stream.ts, and Engine.stepBeside in
// ffi/engine.ts; and the device's wait for the CPU that leaves its kernels free (ffi/cuda/event_wait.ts).
#include <chrono>
#include <cstdint>
#include <thread>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

// ffi/simd/engine.cpp
extern "C" int32_t hc_engine_step(void* engine, int32_t tokens, int32_t rows, int32_t tiles, int32_t mode);
extern "C" void hc_engine_ended(void* engine);

using SetCurrent = int32_t (*)(uint64_t context);
using Synchronize = int32_t (*)(uint64_t stream);

// Waits for a stream on the calling thread, which knows no context yet: contexts are current for one thread each. The
// functions are the driver's cuCtxSetCurrent and cuStreamSynchronize. Returns their CUresult.
static int32_t device_wait(SetCurrent set_current, Synchronize synchronize, uint64_t context, uint64_t stream) {
  const int32_t status = set_current(context);
  return status != 0 ? status : synchronize(stream);
}

// `left` is set when the driver is not called any more: the stream may then be destroyed.
HC_EXPORT int32_t hc_device_wait(SetCurrent set_current, Synchronize synchronize, uint64_t context, uint64_t stream, int32_t* left) {
  const int32_t status = device_wait(set_current, synchronize, context, stream);
  __atomic_store_n(left, 1, __ATOMIC_RELEASE);
  return status;
}

// A step of the engine beside one that was ordered on the device, which is waited for then: a step has one call like this.
// Where the engine does not come to its end, `abort` is set first, for kernels that wait for it. Returns the engine's status;
// `driver` receives the wait's CUresult.
HC_EXPORT int32_t hc_device_step(void* engine, int32_t tokens, int32_t rows, int32_t tiles, int32_t mode, SetCurrent set_current,
                                 Synchronize synchronize, uint64_t context, uint64_t stream, uint32_t* abort, int32_t* driver) {
  constexpr int32_t done = 0, overflow = 2;  // STEP_STATUS of ffi/symbols.ts
  const int32_t status = hc_engine_step(engine, tokens, rows, tiles, mode);
  if (status != done && status != overflow) __atomic_store_n(abort, 1u, __ATOMIC_RELEASE);
  *driver = device_wait(set_current, synchronize, context, stream);
  // Not before: who destroys the engine gives back the flag and the stream next.
  hc_engine_ended(engine);
  return status;
}

struct EventWait {
  const uint64_t* event;
  const uint64_t* number;
  const uint32_t* abort;
};

// What cuLaunchHostFunc calls, on a thread of the driver: returns when the event has the step's number, or the step is aborted.
HC_EXPORT void hc_await_event(void* wait) {
  const auto& [event, number, abort] = *static_cast<const EventWait*>(wait);
  while (__atomic_load_n(event, __ATOMIC_ACQUIRE) < *number && __atomic_load_n(abort, __ATOMIC_RELAXED) == 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}
