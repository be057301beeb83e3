// Packed tiles: what every piece of native code knows of the formats of weights. The layout, bit by bit, is described in
// compiler/weights/format.ts.
#pragma once
#include <cstdint>

// Always inlined: an inline function that the linker shares could come from a source compiled for another processor.
#define HC_INLINE inline __attribute__((always_inline))

namespace hc {

enum class Format : int32_t { bf16 = 0, q8 = 1, q4 = 2, q3 = 3, q2 = 4 };

constexpr int TILE_ROWS = 16;

HC_INLINE constexpr bool has_zero_point(Format f) { return f == Format::q4 || f == Format::q3 || f == Format::q2; }
HC_INLINE constexpr int bits_of(Format f) {
  return f == Format::q8 ? 8 : f == Format::q4 ? 4 : f == Format::q3 ? 3 : f == Format::q2 ? 2 : 16;
}
// Scales and zero points before the codes.
HC_INLINE constexpr int header_bytes(Format f) { return f == Format::bf16 ? 0 : has_zero_point(f) ? 64 : 32; }
// Inputs of a tile: a group, or a pair of bf16.
HC_INLINE constexpr int tile_inputs(Format f, int group) { return f == Format::bf16 ? 2 : group; }
HC_INLINE constexpr int tile_bytes(Format f, int group) { return header_bytes(f) + TILE_ROWS * tile_inputs(f, group) * bits_of(f) / 8; }

// One code, of byte 4 * row + input % 4 of quad input / 4.
HC_INLINE int code_at(Format f, const uint8_t* codes, int group, int quad, int byte) {
  switch (f) {
    case Format::q8: return codes[64 * quad + byte];
    case Format::q4: return codes[64 * (quad / 2) + byte] >> (4 * (quad % 2)) & 15;
    default: break;
  }
  const int low = codes[64 * (quad / 4) + byte] >> (2 * (quad % 4)) & 3;
  return f == Format::q2 ? low : low | (codes[4 * group + 64 * (quad / 8) + byte] >> (quad % 8) & 1) << 2;
}

}  // namespace hc
