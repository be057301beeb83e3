// Several tokens, from row blocks whose codes are first unpacked into scratch: where a residual is added, or there are few
// registers. See linear.cpp for the order of sums.
#include <algorithm>

#include "linear.h"

namespace hc::HC_ISA {
namespace {

// What is subtracted from codes: 128; a zero point of each group; a multiple of each subgroup's, whose codes are multiplied
// with its scale.
enum class Zeros { symmetric, groups, subgroups };

// One row block unpacked.
struct Block {
  const uint8_t* codes;  // [groups][group / 4][64]: quads; with subgroups scale * code
  const float* scales;   // [groups][16]; with subgroups the row's factor in each group
  const float* zeros;    // [groups][16]; unused when symmetric; with subgroups 16-bit pairs of scale * zero, [groups][2][16]
};

template <Format F, int Group>
void unpack(const uint8_t* packed, int groups, uint8_t* codes, float* scales, float* zeros) {
  const F32x16 factor = has_subgroups(F) ? load(reinterpret_cast<const float*>(packed)) : zero();
  packed += factor_bytes(F);
  for (int g = 0; g < groups; g++, packed += tile_bytes(F, Group), codes += 16 * Group) {
    if constexpr (has_subgroups(F)) {
      const SubgroupPairs pairs = load_subgroups<F>(packed);
      store(scales + 16 * g, factor);
      for (int i = 0; i < 2; i++) store(zeros + 16 * (2 * g + i), as_f32(mul16(pairs.scale[i], pairs.zero[i])));
      for_each_scaled_quad<F>(packed, pairs, [&](int q, U8x64 w) { store(codes + 64 * q, w); });
      continue;
    }
    const auto* halves = reinterpret_cast<const uint16_t*>(packed);
    store(scales + 16 * g, load_f16(halves));
    if constexpr (has_zero_point(F)) store(zeros + 16 * g, load_f16(halves + 16));
    for_each_quad<F, Group>(packed + header_bytes(F), [&](int q, U8x64 w) { store(codes + 64 * q, w); });
  }
}

// The zero points of unpacked codes of quad q of group g.
template <Format F>
HC_INLINE F32x16 zero_of(const float* zeros, int g, int q) {
  if constexpr (F == Format::q8) return set1(128.0f);
  if constexpr (!has_subgroups(F)) return load(zeros + 16 * g);
  const int s = q / (SUBGROUP / 4);
  const I32x16 pair = as_i32(load(zeros + 16 * (2 * g + s % 2)));
  return from_i32(s < 2 ? and_(pair, set1(0xFFFF)) : shr<16>(pair));
}

// Adds the residual's rows to one unpacked block and rounds the sum to 8 bits per row and group, symmetric:
// W' = scale * (code - zero) + output_scale * channel_scale * e;  scale' = max|W'| / 127, code' = round(W' / scale') + 128.
// The rounding error, at most max|W'| / 254, is far below that of a residual of 4 or 5 bits.
template <Format F, int Group>
void add_residual(const Residual& r, int64_t block, int groups, int inputs, uint8_t* codes, float* scales, const float* zeros) {
  const int per_word = 16 / r.width, n = static_cast<int>(block % per_word);
  const uint8_t* words = r.codes + block / per_word * 32;
  const I32x16 mask = set1(((1 << r.width) - 1) << (n * r.width)), byte = set1(0xFF);
  const F32x16 unit = set1(1.0f / static_cast<float>(1 << (n * r.width)));
  const F32x16 offset = set1(-static_cast<float>(1 << (r.width - 1)));
  const int rows = std::min(16, r.outputs - static_cast<int>(block) * 16);
  const F32x16 output_scale = load_n(r.output_scale + block * 16, rows);
  for (int g = 0; g < groups; g++, codes += 16 * Group) {
    const F32x16 scale = load(scales + 16 * g);
    alignas(64) float values[Group * 16];
    F32x16 largest = zero();
    for (int q = 0; q < Group / 4; q++) {
      const F32x16 zero_point = zero_of<F>(zeros, g, q);
      I32x16 four = load(reinterpret_cast<const int32_t*>(codes + 64 * q));
      for (int k = 0; k < 4; k++, four = shr<8>(four)) {
        const int j = g * Group + 4 * q + k;
        F32x16 w = mul(scale, sub(from_i32(and_(four, byte)), zero_point));
        if (j < inputs) {
          const uint8_t* row = words + j * r.row_bytes;
          const F32x16 e = fma(from_i32(and_(widen_u16(row), mask)), unit, offset);
          w = fma(mul(output_scale, set1(r.channel_scale[j])), e, w);
        }
        largest = max(largest, abs(w));
        store(values + 16 * (4 * q + k), w);
      }
    }
    store(scales + 16 * g, div(largest, set1(127.0f)));
    // 127 / 0 would be infinite; a group of zeros keeps codes of 128 with any finite factor.
    const F32x16 inverse = div(set1(127.0f), max(largest, set1(1e-30f)));
    const I32x16 centre = set1(128);
    for (int q = 0; q < Group / 4; q++) {
      const auto code = [&](int k) { return add(round_to_i32(mul(load(values + 16 * (4 * q + k)), inverse)), centre); };
      const I32x16 packed = or_(or_(code(0), shl<8>(code(1))), or_(shl<16>(code(2)), shl<24>(code(3))));
      store(reinterpret_cast<int32_t*>(codes + 64 * q), packed);
    }
  }
}

// Registers: M tokens x R row blocks of integer and of float accumulators.
#if HC_ISA_NUMBER == HC_IS_avx512vnni || HC_ISA_NUMBER == HC_IS_avx512
constexpr int TILE_TOKENS = 6, TILE_BLOCKS = 2;
#elif HC_ISA_NUMBER == HC_IS_avx2
constexpr int TILE_TOKENS = 3, TILE_BLOCKS = 1;
#else
constexpr int TILE_TOKENS = 2, TILE_BLOCKS = 1;
#endif

template <Zeros Z, int Group, int R, int M>
void multiply(const LinearArgs& a, const Block* blocks, int64_t first_block, int token) {
  const QuantizedRows& x = a.quantized;
  const int8_t* codes = x.codes + static_cast<int64_t>(token) * x.stride;
  const float* x_scales = x.scales + static_cast<int64_t>(token) * x.groups;
  const int32_t* sums = x.sums + static_cast<int64_t>(token) * x.groups;
  const int16_t* sums16 = Z == Zeros::subgroups ? x.sums16 + static_cast<int64_t>(token) * x.groups * SUBGROUPS : nullptr;
  F32x16 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = zero();
  for (int g = 0; g < x.groups; g++) {
    I32x16 dots[R][M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int64_t at = int64_t{m} * x.groups + g;
      for (int r = 0; r < R; r++) {
        if constexpr (Z == Zeros::subgroups) {
          const float* pairs = blocks[r].zeros + 32 * g;
          dots[r][m] = sub(zero_i32(), zero_products(as_i32(load(pairs)), as_i32(load(pairs + 16)), sums16 + at * SUBGROUPS));
        } else {
          dots[r][m] = Z == Zeros::symmetric ? set1(wrapping_product(-128, sums[at])) : zero_i32();
        }
      }
    }
    const int8_t* xg = codes + g * Group;
#pragma GCC unroll 2
    for (int q = 0; q < Group / 4; q++) {
      U8x64 w[R];
      for (int r = 0; r < R; r++) w[r] = load(blocks[r].codes + (g * (Group / 4) + q) * 64);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        for (int r = 0; r < R; r++) {
          const int8_t* x4 = xg + static_cast<int64_t>(m) * x.stride + 4 * q;
          dots[r][m] = Z == Zeros::groups ? dot_small(dots[r][m], w[r], x4) : dot_any(dots[r][m], w[r], x4);
        }
      }
    }
    for (int r = 0; r < R; r++) {
      const F32x16 scale = load(blocks[r].scales + 16 * g);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        F32x16 dot = from_i32(dots[r][m]);
        if constexpr (Z == Zeros::subgroups) {
          acc[r][m] = fma(dot, set1(x_scales[m * x.groups + g]), acc[r][m]);
          continue;
        }
        if constexpr (Z == Zeros::groups) dot = fma(load(blocks[r].zeros + 16 * g), set1(-static_cast<float>(sums[m * x.groups + g])), dot);
        acc[r][m] = accumulate(acc[r][m], dot, scale, x_scales[m * x.groups + g]);
      }
    }
  }
  for (int r = 0; r < R; r++) {
    const int64_t row = (first_block + r) * 16;
    for (int m = 0; m < M; m++) {
      const F32x16 y = Z == Zeros::subgroups ? mul(acc[r][m], load(blocks[r].scales)) : acc[r][m];
      store_n(a.y + static_cast<int64_t>(token + m) * a.y_stride + row, static_cast<int>(std::min<int64_t>(16, a.rows - row)), y);
    }
  }
}

template <Zeros Z, int Group, int R, int M>
void multiply_all(const LinearArgs& a, const Block* blocks, int64_t first_block, int token) {
  for (; token + M <= a.tokens; token += M) multiply<Z, Group, R, M>(a, blocks, first_block, token);
  if constexpr (M > 1) {
    if (token < a.tokens) multiply_all<Z, Group, R, M - 1>(a, blocks, first_block, token);
  }
}

template <Zeros Z, int Group>
void multiply_blocks(const LinearArgs& a, const Block* blocks, int64_t first_block, int count) {
  int r = 0;
  for (; r + TILE_BLOCKS <= count; r += TILE_BLOCKS) {
    multiply_all<Z, Group, TILE_BLOCKS, TILE_TOKENS>(a, blocks + r, first_block + r, 0);
  }
  for (; r < count; r++) multiply_all<Z, Group, 1, TILE_TOKENS>(a, blocks + r, first_block + r, 0);
}

template <Format F, int Group>
void multiply_unpacked(const LinearArgs& a, int64_t begin, int64_t end) {
  const int groups = a.quantized.groups;
  const int64_t code_bytes = int64_t{16} * Group * groups, scale_floats = int64_t{16} * groups;
  const int64_t zero_floats = (has_subgroups(F) ? 2 : 1) * scale_floats;
  const int64_t unpacked_bytes = code_bytes + 4 * (scale_floats + zero_floats);
  const bool corrected = a.residual.codes;
  // Blocks whose codes share the residual's words are unpacked together, so that each word is fetched once.
  const int per_word = corrected ? 16 / a.residual.width : LINEAR_BLOCKS;
  for (int64_t first = begin; first < end;) {
    const auto count = static_cast<int>(std::min<int64_t>({LINEAR_BLOCKS, end - first, per_word - first % per_word}));
    Block blocks[LINEAR_BLOCKS];
    for (int b = 0; b < count; b++) {
      uint8_t* codes = a.scratch + b * unpacked_bytes;
      auto* scales = reinterpret_cast<float*>(codes + code_bytes);
      float* zeros = scales + scale_floats;
      unpack<F, Group>(a.packed + (first + b) * block_bytes(F, Group, groups), groups, codes, scales, zeros);
      if (corrected) add_residual<F, Group>(a.residual, first + b, groups, a.inputs, codes, scales, zeros);
      blocks[b] = {codes, scales, zeros};
    }
    constexpr Zeros zeros = F == Format::q8 ? Zeros::symmetric : has_subgroups(F) ? Zeros::subgroups : Zeros::groups;
    if (corrected) multiply_blocks<Zeros::symmetric, Group>(a, blocks, first, count);
    else if constexpr (FEW_TOKENS == 1) multiply_blocks<zeros, Group>(a, blocks, first, count);
    first += count;
  }
}

}  // namespace

void linear_blocks(const LinearArgs& a, int64_t begin, int64_t end) {
  for_format(a, [&](auto format, auto group) { multiply_unpacked<format, group>(a, begin, end); });
}

}  // namespace hc::HC_ISA
