// Loads with cache hints and atomic operations. Atomics are of system scope here, and relaxed, as CUDA's are.
#pragma once
#include <algorithm>
#include <cstdint>

template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> T __ldcg(const T* at) { return *at; }
template <class T> T __ldcv(const T* at) { return *static_cast<const volatile T*>(at); }
template <class T> void __stcs(T* at, T value) { *at = value; }
template <class T> void __stcg(T* at, T value) { *at = value; }

// Replaces *at by next(*at); the old value.
template <class T, class F> T sim_atomic_update(T* at, F next) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, next(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
#define SIM_ATOMIC(T) \
  inline T atomicAdd(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); } \
  inline T atomicExch(T* at, T value) { return __atomic_exchange_n(at, value, __ATOMIC_RELAXED); } \
  inline T atomicOr(T* at, T value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); } \
  inline T atomicAnd(T* at, T value) { return __atomic_fetch_and(at, value, __ATOMIC_RELAXED); } \
  inline T atomicMin(T* at, T value) { return sim_atomic_update(at, [=](T old) { return std::min(old, value); }); } \
  inline T atomicMax(T* at, T value) { return sim_atomic_update(at, [=](T old) { return std::max(old, value); }); } \
  inline T atomicCAS(T* at, T expected, T value) { \
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    return expected; \
  }
SIM_ATOMIC(int)
SIM_ATOMIC(unsigned)
SIM_ATOMIC(unsigned long long)
#undef SIM_ATOMIC
inline unsigned atomicInc(unsigned* at, unsigned limit) {
  return sim_atomic_update(at, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}
inline unsigned atomicDec(unsigned* at, unsigned limit) {
  return sim_atomic_update(at, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}
