// Quantising weights into the formats with subgroups (compiler/weights/format.ts), to nearest, and the error W - Wq.
//
// A row's factor makes its largest integer scale 0.95 of what its widest subgroup needs for its whole range. A subgroup then
// gets the (scale, zero) of least squared error among nine clipped ranges, each with the scale it rounds to; ranges reach to
// 0, ties go to the first. Lanes are the 16 rows of a block, so nothing is summed across lanes.
#include "quantize.h"

namespace hc::HC_ISA {
namespace {

constexpr float LARGEST_SCALE = 0.95f;
constexpr int CLIPS = 9;  // 1.05, 1.00, ..., 0.65

// The range of `count` inputs of 16 rows, widened to reach 0.
struct Span {
  F32x16 low, high;

  HC_INLINE Span(const float* w, int count) : low(zero()), high(zero()) {
    for (int j = 0; j < count; j++) {
      low = min(load(w + LANES * j), low);
      high = max(load(w + LANES * j), high);
    }
  }
  // The scale that has it in codes up to `most`.
  HC_INLINE F32x16 scale(float most) const { return mul(sub(high, low), set1(1.0f / most)); }
};

// Integer scales and zero points of one subgroup of 16 rows. Inlined for every format, it is most of this file's object.
__attribute__((noinline)) Best search(const float* w, int count, F32x16 factor, F32x16 inverse_factor, float most_scale, const Levels& levels) {
  const Span span(w, count);
  const F32x16 wanted = mul(span.scale(levels.high), inverse_factor);
  Best best;
  for (int i = 0; i < CLIPS; i++) {
    const F32x16 clip = set1(static_cast<float>(21 - i) / 20.0f);
    const F32x16 integer = min(max(round_small(mul(wanted, clip)), set1(1.0f)), set1(most_scale));
    const F32x16 scale = mul(integer, factor), inverse = inverse_of(scale);
    const F32x16 zero_point = min(round_small(mul(mul(neg(span.low), clip), inverse)), set1(levels.high));
    const F32x16 error = squared_error(w, count, scale, inverse, zero_point, levels);
    if (i == 0) best.start(error, integer, zero_point);
    else best.offer(error, integer, zero_point);
  }
  return best;
}

// Inputs of `group` from `first` on that the matrix has, at most `most`.
HC_INLINE int count_from(int64_t inputs, int64_t first, int most) {
  return static_cast<int>(inputs - first < most ? (inputs > first ? inputs - first : 0) : most);
}

template <Format format>
void pack_format(const PackArgs& args, int64_t block) {
  constexpr Levels levels = levels_of(format);
  constexpr float most_scale = (1 << scale_bits(format)) - 1;
  constexpr int64_t bytes = tile_bytes(format, SUBGROUPED);
  const int64_t inputs = args.source.inputs, groups = (inputs + SUBGROUPED - 1) / SUBGROUPED;
  uint8_t* tile = args.packed + block * block_bytes(format, SUBGROUPED, groups);
  alignas(64) float w[SUBGROUPED * LANES];
  F32x16 widest = zero();
  for (int64_t g = 0; g < groups; g++) {
    const int count = count_from(inputs, g * SUBGROUPED, SUBGROUPED);
    const int64_t bad = read_block(args.source, block, g * SUBGROUPED, count, LARGEST_F16, w);
    if (bad >= 0 && (args.bad[block] < 0 || bad < args.bad[block])) args.bad[block] = bad;
    for (int first = 0; first < count; first += SUBGROUP) {
      widest = max(widest, Span(w + LANES * first, count_from(count, first, SUBGROUP)).scale(levels.high));
    }
  }
  if (args.bad[block] >= 0) return;
  const F32x16 factor = through_f16(mul(widest, set1(LARGEST_SCALE / most_scale))), inverse_factor = inverse_of(factor);
  store(reinterpret_cast<float*>(tile), factor);
  tile += factor_bytes(format);
  for (int64_t g = 0; g < groups; g++, tile += bytes) {
    const int count = count_from(inputs, g * SUBGROUPED, SUBGROUPED);
    read_block(args.source, block, g * SUBGROUPED, count, LARGEST_F16, w);
    for (int j = count * LANES; j < SUBGROUPED * LANES; j++) w[j] = 0;
    I32x16 header = zero_i32();
    F32x16 inverse[SUBGROUPS], zero_point[SUBGROUPS];
    for (int s = SUBGROUPS; s-- > 0;) {
      const int first = s * SUBGROUP;
      const Best best = search(w + LANES * first, count_from(count, first, SUBGROUP), factor, inverse_factor, most_scale, levels);
      const F32x16 integer = load(best.scale);
      zero_point[s] = load(best.zero);
      inverse[s] = inverse_of(mul(integer, factor));
      header = or_(shl<8>(header), or_(round_to_i32(integer), shl<scale_bits(format)>(round_to_i32(zero_point[s]))));
      for (float error : best.error) args.error[block] += error;
    }
    store(reinterpret_cast<int32_t*>(tile), header);
    put_codes<format>(w, inverse, zero_point, SUBGROUPED, SUBGROUP, tile + header_bytes(format));
    add_squares(w, count * LANES, args.energy[block]);
  }
}

template <Format format>
void format_errors(const ErrorArgs& args, int64_t block) {
  constexpr int64_t bytes = tile_bytes(format, SUBGROUPED);
  constexpr int width = scale_bits(format);
  const int64_t inputs = args.source.inputs, groups = (inputs + SUBGROUPED - 1) / SUBGROUPED;
  const uint8_t* tile = args.packed + block * block_bytes(format, SUBGROUPED, groups);
  float factor[LANES], line[SUBGROUPED];
  std::memcpy(factor, tile, sizeof factor);
  tile += factor_bytes(format);
  uint8_t codes[SUBGROUPED / 4][4 * LANES];
  for (int64_t g = 0; g < groups; g++, tile += bytes) {
    const int count = count_from(inputs, g * SUBGROUPED, SUBGROUPED);
    load_codes<format>(tile + header_bytes(format), SUBGROUPED, codes);
    for (int row = 0; row < LANES && block * LANES + row < args.source.rows; row++) {
      read_row(args.source, block * LANES + row, g * SUBGROUPED, count, line);
      float* out = args.out + (block * LANES + row) * inputs + g * SUBGROUPED;
      for (int j = 0; j < count; j++) {
        const int byte = tile[SUBGROUPS * row + j / SUBGROUP], code = codes[j / 4][4 * row + j % 4];
        const int value = (byte & ((1 << width) - 1)) * (code - (byte >> width));
        out[j] = line[j] - factor[row] * static_cast<float>(value);
      }
    }
  }
}

}  // namespace

void pack_subgroups(const PackArgs& args, int64_t block) {
  switch (args.format) {
    case Format::q4s: return pack_format<Format::q4s>(args, block);
    case Format::q3s: return pack_format<Format::q3s>(args, block);
    default: return pack_format<Format::q2s>(args, block);
  }
}

void subgroup_errors(const ErrorArgs& args, int64_t block) {
  switch (args.format) {
    case Format::q4s: return format_errors<Format::q4s>(args, block);
    case Format::q3s: return format_errors<Format::q3s>(args, block);
    default: return format_errors<Format::q2s>(args, block);
  }
}

}  // namespace hc::HC_ISA
