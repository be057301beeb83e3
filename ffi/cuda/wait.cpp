// The one wait for the device that leaves JavaScript's thread free: see Stream.finished in ffi/cuda/stream.ts.
#include <cstdint>

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

using SetCurrent = int32_t (*)(uint64_t context);
using Synchronize = int32_t (*)(uint64_t stream);

// Waits for a stream on the calling thread, which knows no context yet: contexts are current for one thread each. The
// functions are the driver's cuCtxSetCurrent and cuStreamSynchronize. Returns their CUresult.
HC_EXPORT int32_t hc_device_wait(SetCurrent set_current, Synchronize synchronize, uint64_t context, uint64_t stream) {
  const int32_t status = set_current(context);
  return status != 0 ? status : synchronize(stream);
}
