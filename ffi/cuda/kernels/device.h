// The one place that knows who compiles: nvcc for a GPU, or the host's compiler for the simulator (ffi/cuda/sim).
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define HC_DEVICE __device__ __forceinline__
#else
#include "../sim/cuda_sim.h"
#define HC_DEVICE inline __attribute__((always_inline))
#endif

namespace hc {

HC_DEVICE unsigned thread_in_block() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

template <typename T> HC_DEVICE T load_volatile(const T* at) { return *static_cast<const volatile T*>(at); }
template <typename T> HC_DEVICE void store_volatile(T* at, T value) { *static_cast<volatile T*>(at) = value; }

#ifdef __CUDACC__

HC_DEVICE uint64_t load_acquire_system(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
HC_DEVICE uint32_t load_acquire_system(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
HC_DEVICE void store_release_system(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
HC_DEVICE float load_past_caches(const float* at) {
  float value;
  asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(value) : "l"(at) : "memory");
  return value;
}
HC_DEVICE uint64_t clock_ns() {
  uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

#else

template <typename T> HC_DEVICE T load_acquire_system(const T* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
HC_DEVICE void store_release_system(uint64_t* at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
HC_DEVICE float load_past_caches(const float* at) { return *static_cast<const volatile float*>(at); }
HC_DEVICE uint64_t clock_ns() { return sim_clock_ns(); }

#endif

}  // namespace hc
