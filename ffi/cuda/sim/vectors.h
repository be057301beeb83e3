// CUDA's vector types and their make_ functions, with CUDA's alignment: a misaligned vector access traps.
#pragma once
#include <cstdint>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

#define SIM_VECTOR2(name, T) \
  struct alignas(2 * sizeof(T)) name { T x, y; }; \
  inline name make_##name(T x, T y) { return {x, y}; }
#define SIM_VECTOR4(name, T) \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name { T x, y, z, w; }; \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

SIM_VECTOR2(char2, signed char)
SIM_VECTOR4(char4, signed char)
SIM_VECTOR2(uchar2, unsigned char)
SIM_VECTOR4(uchar4, unsigned char)
SIM_VECTOR2(short2, short)
SIM_VECTOR4(short4, short)
SIM_VECTOR2(ushort2, unsigned short)
SIM_VECTOR4(ushort4, unsigned short)
SIM_VECTOR2(int2, int)
SIM_VECTOR4(int4, int)
SIM_VECTOR2(uint2, unsigned)
SIM_VECTOR4(uint4, unsigned)
SIM_VECTOR2(longlong2, long long)
SIM_VECTOR2(ulonglong2, unsigned long long)
SIM_VECTOR2(float2, float)
SIM_VECTOR4(float4, float)
SIM_VECTOR2(double2, double)

#undef SIM_VECTOR2
#undef SIM_VECTOR4
