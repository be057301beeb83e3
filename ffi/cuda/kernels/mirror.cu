// Copies a value to the other lane's memory. A few blocks saturate the bus.
#include "elementwise.h"
#include "parameters.h"

using namespace hc;

extern "C" __global__ void mirror(const Mirror p, const Call call) {
  if (!begin(call)) return;
  const char* from = p.from;
  char* to = p.to;
  const int64_t bytes = static_cast<int64_t>(call.n) * p.rowBytes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t done = 0;
  if (((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 15) == 0) {
    done = bytes / 16 * 16;
    for (int64_t i = first; i < bytes / 16; i += step) reinterpret_cast<Four*>(to)[i] = reinterpret_cast<const Four*>(from)[i];
  }
  for (int64_t i = done + first; i < bytes; i += step) to[i] = from[i];
  finish(call);
}
