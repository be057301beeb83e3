// Half precision: storage and conversions. Arithmetic on it is not offered: kernels compute in float.
#pragma once
#include <cstdint>
#include <cstring>

#include "vectors.h"

#ifdef __aarch64__
inline uint16_t sim_to_half(float value) {
  const __fp16 half = value;
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}
inline float sim_from_half(uint16_t bits) {
  __fp16 half;
  memcpy(&half, &bits, 2);
  return half;
}
#else
#include <immintrin.h>  // -mf16c
inline uint16_t sim_to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
inline float sim_from_half(uint16_t bits) { return _cvtsh_ss(bits); }
#endif

struct __half {
  uint16_t bits;
  operator float() const { return sim_from_half(bits); }
};
struct alignas(4) __half2 { __half x, y; };
using half = __half;
using half2 = __half2;

inline half __float2half(float value) { return {sim_to_half(value)}; }
inline half __float2half_rn(float value) { return {sim_to_half(value)}; }
inline float __half2float(half value) { return sim_from_half(value.bits); }
inline half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(half value) { return value.bits; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half __low2half(half2 pair) { return pair.x; }
inline half __high2half(half2 pair) { return pair.y; }
inline float __low2float(half2 pair) { return __half2float(pair.x); }
inline float __high2float(half2 pair) { return __half2float(pair.y); }
inline half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
