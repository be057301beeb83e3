// Kernels with one fault each, by which the simulator's checks are tested.
#include "device.h"

extern __shared__ float4 hc_shared[];

extern "C" __global__ void write_at(float* values, long long i) { values[i] = 1; }
extern "C" __global__ void read_at(const float* values, long long i, float* out) { *out = values[i]; }
// Reads 16 bytes from an address that is no multiple of 16.
extern "C" __global__ void read_vector_at(const char* bytes, int i, uint4* out) {
  *out = *reinterpret_cast<const uint4*>(bytes + i);
}
extern "C" __global__ void shift_by(int* values, int by) { values[0] = 1 << by; }
extern "C" __global__ void static_shared_at(int i, float* out) {
  __shared__ float values[8];
  values[i] = 1;
  *out = values[0];
}
extern "C" __global__ void dynamic_shared_at(int i, float* out) {
  float* values = reinterpret_cast<float*>(hc_shared);
  values[i] = 1;
  *out = values[0];
}
extern "C" __global__ void missing_barrier(float* out) {
  __shared__ float values[64];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];
}
// Right only if threads run in a certain order: what a seed exposes.
extern "C" __global__ void last_thread_wins(int* out) {
  __syncthreads();
  *out = static_cast<int>(threadIdx.x);
}
extern "C" __global__ void last_block_wins(int* out) { *out = static_cast<int>(blockIdx.x); }
extern "C" __global__ void divergent_barrier(int) {
  if (threadIdx.x < 16) __syncthreads();
  else __shfl_xor_sync(~0u, 1, 1);
}
extern "C" __global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 16);
}
extern "C" __global__ void mask_without_caller(int* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 1); }
extern "C" __global__ void trap(int) { __trap(); }
extern "C" __global__ void spin(volatile unsigned* flag) {
  while (*flag == 0) __nanosleep(100);
}
extern "C" __global__ void spin_without_pause(volatile unsigned* flag) {
  while (*flag == 0) {}
}
__device__ __noinline__ int recursion(int n) {
  volatile char frame[4096];
  frame[0] = static_cast<char>(n);
  return n ? recursion(n - 1) + frame[0] : 0;
}
extern "C" __global__ void recurse(int n, int* out) { *out = recursion(n); }
extern "C" __global__ void masks_differ(int* out) { *out = __shfl_xor_sync(threadIdx.x == 0 ? ~0u : 3u, 1, 1); }
