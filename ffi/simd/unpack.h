// Codes of packed tiles as operands of dot products, for every format (layouts: compiler/weights/format.ts).
#pragma once
#include "simd.h"
#include "tile.h"

namespace hc::HC_ISA {

// Calls visit(quad, codes) for the quads of one tile in order; quad is a compile-time constant after unrolling.
template <Format F, int Group, typename Visit>
HC_INLINE void for_each_quad(const uint8_t* codes, Visit visit) {
  constexpr int quads = Group / 4;
  if constexpr (F == Format::q8) {
#pragma GCC unroll 32
    for (int q = 0; q < quads; q++) visit(q, load(codes + 64 * q));
  } else if constexpr (F == Format::q4) {
    const U8x64 low = set1(uint8_t{0x0F});
#pragma GCC unroll 16
    for (int i = 0; i < quads / 2; i++) {
      const U8x64 pair = load(codes + 64 * i);
      visit(2 * i, and_(pair, low));
      visit(2 * i + 1, and_(shr<4>(pair), low));
    }
  } else if constexpr (F == Format::q2) {
    const U8x64 low = set1(uint8_t{0x03});
#pragma GCC unroll 8
    for (int i = 0; i < quads / 4; i++) {
      const U8x64 four = load(codes + 64 * i);
      visit(4 * i, and_(four, low));
      visit(4 * i + 1, and_(shr<2>(four), low));
      visit(4 * i + 2, and_(shr<4>(four), low));
      visit(4 * i + 3, and_(shr<6>(four), low));
    }
  } else {
    static_assert(F == Format::q3);
    const U8x64 low = set1(uint8_t{0x03}), three = set1(uint8_t{0x07});
    const uint8_t* third = codes + 4 * Group;
#pragma GCC unroll 4
    for (int i = 0; i < quads / 8; i++) {
      const U8x64 a = load(codes + 128 * i), b = load(codes + 128 * i + 64), top = load(third + 64 * i);
      visit(8 * i, and_(select(low, a, shl<2>(top)), three));
      visit(8 * i + 1, and_(select(low, shr<2>(a), shl<1>(top)), three));
      visit(8 * i + 2, and_(select(low, shr<4>(a), top), three));
      visit(8 * i + 3, and_(select(low, shr<6>(a), shr<1>(top)), three));
      visit(8 * i + 4, and_(select(low, b, shr<2>(top)), three));
      visit(8 * i + 5, and_(select(low, shr<2>(b), shr<3>(top)), three));
      visit(8 * i + 6, and_(select(low, shr<4>(b), shr<4>(top)), three));
      visit(8 * i + 7, and_(select(low, shr<6>(b), shr<5>(top)), three));
    }
  }
}

}  // namespace hc::HC_ISA
