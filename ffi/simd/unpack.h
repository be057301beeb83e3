// Codes of packed tiles as operands of dot products, for every format (layouts: compiler/weights/format.ts).
#pragma once
#include "simd.h"
#include "tile.h"

namespace hc::HC_ISA {

// Calls visit(quad, codes) for the quads of one tile; quad is a compile-time constant after unrolling. Of every 8, which are two
// subgroups, it takes one of each in turns, so that sums of a subgroup do not wait for each other.
template <Format F, int Group, typename Visit>
HC_INLINE void for_each_quad(const uint8_t* codes, Visit visit) {
  constexpr int eights = Group / 32, bits = bits_of(F);
#if HC_ISA_NUMBER == HC_IS_scalar
#pragma GCC unroll 2  // lanes are loops themselves: more is only slower
#else
#pragma GCC unroll 4
#endif
  for (int i = 0; i < eights; i++) {
    const uint8_t* from = codes + 64 * bits * i;
    if constexpr (bits == 8) {
      HC_UNROLL_ALL
      for (int q = 0; q < 4; q++) {
        visit(8 * i + q, load(from + 64 * q));
        visit(8 * i + 4 + q, load(from + 64 * (4 + q)));
      }
    } else if constexpr (bits == 4) {
      const U8x64 low = set1(uint8_t{0x0F});
      HC_UNROLL_ALL
      for (int k = 0; k < 2; k++) {
        const U8x64 a = load(from + 64 * k), b = load(from + 64 * (2 + k));
        visit(8 * i + 2 * k, and_(a, low));
        visit(8 * i + 4 + 2 * k, and_(b, low));
        visit(8 * i + 2 * k + 1, and_(shr<4>(a), low));
        visit(8 * i + 4 + 2 * k + 1, and_(shr<4>(b), low));
      }
    } else {
      const U8x64 low = set1(uint8_t{0x03});
      const U8x64 a = load(codes + 128 * i), b = load(codes + 128 * i + 64);
      if constexpr (bits == 2) {
        visit(8 * i, and_(a, low));
        visit(8 * i + 4, and_(b, low));
        visit(8 * i + 1, and_(shr<2>(a), low));
        visit(8 * i + 5, and_(shr<2>(b), low));
        visit(8 * i + 2, and_(shr<4>(a), low));
        visit(8 * i + 6, and_(shr<4>(b), low));
        visit(8 * i + 3, and_(shr<6>(a), low));
        visit(8 * i + 7, and_(shr<6>(b), low));
      } else {
        const U8x64 three = set1(uint8_t{0x07}), top = load(codes + 4 * Group + 64 * i);
        visit(8 * i, and_(select(low, a, shl<2>(top)), three));
        visit(8 * i + 4, and_(select(low, b, shr<2>(top)), three));
        visit(8 * i + 1, and_(select(low, shr<2>(a), shl<1>(top)), three));
        visit(8 * i + 5, and_(select(low, shr<2>(b), shr<3>(top)), three));
        visit(8 * i + 2, and_(select(low, shr<4>(a), top), three));
        visit(8 * i + 6, and_(select(low, shr<4>(b), shr<4>(top)), three));
        visit(8 * i + 3, and_(select(low, shr<6>(a), shr<1>(top)), three));
        visit(8 * i + 7, and_(select(low, shr<6>(b), shr<5>(top)), three));
      }
    }
  }
}

// One of `chains` sums that a quad is added to: neighbours in the order above go to different ones.
HC_INLINE constexpr int chain_of(int quad, int chains) { return (quad + quad / 4 * (chains / 2)) % chains; }

// What a tile's header of subgroups says, as 16-bit pairs for dot16: of subgroups 0 and 2, and of 1 and 3.
struct SubgroupPairs {
  I32x16 scale[2], zero[2];
};

template <Format F>
HC_INLINE SubgroupPairs load_subgroups(const uint8_t* tile) {
  constexpr int bits = scale_bits(F), scale_mask = (1 << bits) - 1, zero_mask = (1 << (8 - bits)) - 1;
  const I32x16 header = load(reinterpret_cast<const int32_t*>(tile));
  const I32x16 scales = set1(scale_mask | scale_mask << 16), zeros = set1(zero_mask | zero_mask << 16);
  return {{and_(header, scales), and_(shr<8>(header), scales)}, {and_(shr<bits>(header), zeros), and_(shr<8 + bits>(header), zeros)}};
}

// As for_each_quad, for codes multiplied with their subgroup's scale: below 256, so that no product of one byte reaches the next.
template <Format F, typename Visit>
HC_INLINE void for_each_scaled_quad(const uint8_t* tile, const SubgroupPairs& pairs, Visit visit) {
  const I32x16 low = set1(0xFFFF);
  I32x16 scale[SUBGROUPS];
  HC_UNROLL_ALL
  for (int i = 0; i < 2; i++) {
    scale[i] = or_(and_(pairs.scale[i], low), shl<16>(pairs.scale[i]));
    const I32x16 high = shr<16>(pairs.scale[i]);
    scale[i + 2] = or_(high, shl<16>(high));
  }
  for_each_quad<F, SUBGROUPED>(tile + header_bytes(F), [&](int q, U8x64 w) {
    visit(q, bits<U8x64>(mul16(bits<I32x16>(w), scale[q / (SUBGROUP / 4)])));
  });
}

// Sum over a group of scale * zero * x: what its products of scaled codes are too large by. Two pairs of scale * zero and of sums.
HC_INLINE I32x16 zero_products(I32x16 first, I32x16 second, const int16_t* sums16) {
  int32_t sums[2];
  std::memcpy(sums, sums16, sizeof sums);
  return dot16(dot16(zero_i32(), first, set1(sums[0])), second, set1(sums[1]));
}

}  // namespace hc::HC_ISA
