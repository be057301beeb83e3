// Corrections of a token: the sum of chosen residual rows, and low-rank factors. Layouts: compiler/weights/correction.ts.
#include <algorithm>
#include <climits>
#include <limits>

#include "kernels_variant.h"
#include "simd.h"

namespace hc::HC_ISA {
namespace {

// ---- sparse_residual: choice of channels

alignas(64) constexpr int32_t ZERO_TO_FIFTEEN[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Keys are bits of non-negative floats, so they compare as integers. Arrays of them are padded with PAD to whole vectors.
constexpr int32_t PAD = -1;

HC_INLINE int count_at_least(const int32_t* keys, int n, int32_t bound) {
  const I32x16 bounds = set1(bound);
  int count = 0;
  for (int i = 0; i < n; i += LANES) count += __builtin_popcount(at_least(load(keys + i), bounds));
  return count;
}

// What of `keys` lies in [low, high), padded; returns how many. `out` may be `keys`.
int keep_between(const int32_t* keys, int n, int32_t low, int32_t high, int32_t* out) {
  const I32x16 lows = set1(low), highs = set1(high);
  int kept = 0;
  for (int i = 0; i < n; i += LANES) {
    const I32x16 some = load(keys + i);
    kept += compress(out + kept, some, at_least(some, lows) & ~at_least(some, highs));
  }
  store(out + kept, set1(PAD));
  return kept;
}

struct Bound {
  int32_t key;
  int count;  // keys that reach it: k, or more where several equal it
};

// The bound that the k largest of n keys reach, 0 < k <= n: a bisection that ends as soon as exactly k keys do, over
// ever fewer keys, those still in question.
Bound bound_of_largest(const int32_t* keys, int n, int k, int32_t* candidates) {
  int32_t low = 0, high = INT32_MAX;          // count(low) >= k > count(high); no key is above infinity's bits
  int reach_low = n, reach_high = 0;          // keys >= low, >= high
  const int32_t* pool = keys;
  int size = n, above = 0;                    // keys in question, and those above all of them
  while (reach_low != k && high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const int reach = above + count_at_least(pool, size, middle);
    if (reach >= k) low = middle, reach_low = reach;
    else high = middle, reach_high = reach;
    if (2 * (reach_low - reach_high) < size) {
      size = keep_between(pool, size, low, high, candidates);
      pool = candidates;
      above = reach_high;
    }
  }
  return {low, reach_low};
}

// Coefficients are int16; their products with codes of `width` bits must not leave int32 when all are summed.
int32_t largest_coefficient(int width, int channels) {
  const int64_t bound = ((int64_t{1} << 31) - 1) / (((int64_t{1} << width) - 1) * channels);
  return static_cast<int32_t>(std::min<int64_t>(32767, bound));
}

// Indices of the k largest keys, ascending; of keys equal to the last of them, the first ones.
void choose(const int32_t* keys, int n, int k, const Bound& bound, int32_t* index, int32_t* all) {
  const I32x16 lanes = load(ZERO_TO_FIFTEEN), bounds = set1(bound.key);
  int chosen = 0;
  for (int i = 0; i < n; i += LANES) chosen += compress(all + chosen, add(lanes, set1(i)), at_least(load(keys + i), bounds));
  int excess = bound.count - k;
  if (excess == 0) {
    std::copy_n(all, k, index);
    return;
  }
  for (int c = chosen - 1, at = k - 1; c >= 0; c--) {  // the last ties go
    if (excess > 0 && keys[all[c]] == bound.key) excess--;
    else index[at--] = all[c];
  }
}

void select_token(const SparseSelectArgs& a, int64_t token) {
  const Residual& r = a.residual;
  const int n = r.inputs, k = std::min(a.selection.channels, n), padded = (n + 63) / 64 * 64 + 64;
  const float* x = a.x + token * n;
  auto* keys = reinterpret_cast<int32_t*>(a.scratch);
  int32_t* spare = keys + padded;
  const F32x16 infinity = set1(std::numeric_limits<float>::infinity());
  for (int i = 0; i < n; i += LANES) {
    const int lanes = std::min(LANES, n - i);
    // min: a NaN counts as infinite.
    store(keys + i, as_i32(min(abs(mul(load_n(x + i, lanes), load_n(r.norm + i, lanes))), infinity)));
  }
  for (int i = n; i % LANES != 0; i++) keys[i] = PAD;
  int32_t* index = a.selection.index + token * a.selection.channels;
  choose(keys, n, k, bound_of_largest(keys, n, k, spare), index, spare);

  auto* values = reinterpret_cast<float*>(spare);
  for (int c = 0; c < k; c++) values[c] = x[index[c]] * r.channel_scale[index[c]];
  F32x16 most = zero();
  for (int c = 0; c < k; c += LANES) most = max(abs(load_n(values + c, k - c)), most);
  const float largest = reduce_max(most);
  const auto top = static_cast<float>(largest_coefficient(r.width, k));
  const F32x16 inverse = set1(largest > 0 ? top / largest : 0.0f), least = set1(-top), limit = set1(top);
  int16_t* coefficient = a.selection.coefficient + token * a.selection.channels;
  int32_t sum = 0;
  for (int c = 0; c < k; c += LANES) {
    int32_t rounded[LANES];
    store(rounded, round_to_i32(min(max(mul(load_n(values + c, k - c), inverse), least), limit)));
    for (int i = 0; i < std::min(LANES, k - c); i++) {
      coefficient[c + i] = static_cast<int16_t>(rounded[i]);
      sum += rounded[i];
    }
  }
  for (int c = k; c < a.selection.channels; c++) index[c] = 0, coefficient[c] = 0;
  a.selection.scale[token] = largest / top;
  a.selection.sum[token] = sum;
}

// ---- sparse_residual: sum of the chosen rows

// How far ahead rows are fetched: they lie far apart, which no hardware prefetcher follows.
constexpr int ROWS_AHEAD = 12;

// `blocks` <= SPARSE_BLOCKS blocks of 32 bytes of every chosen row, two rows at a time: a 32-bit lane holds a word of
// each, so one 16-bit product adds both. Sums are exact integers.
template <int Width, int Blocks>
void sum_blocks(const Residual& r, const int32_t* index, const int16_t* coefficient, int channels, int64_t first_block, I32x16* sums) {
  constexpr int per_word = 16 / Width;
  const I32x16 mask = set1(((1 << Width) - 1) * 0x00010001);
  I32x16 acc[Blocks][per_word];
  for (int b = 0; b < Blocks; b++)
    for (int n = 0; n < per_word; n++) acc[b][n] = zero_i32();
  const uint8_t* codes = r.codes + first_block * 32;
  for (int c = 0; c < channels; c += 2) {
    if (c + ROWS_AHEAD + 1 < channels) {
      for (int row = 0; row < 2; row++) {
        const uint8_t* ahead = codes + index[c + ROWS_AHEAD + row] * r.row_bytes;
        prefetch(ahead);
        if (Blocks > 2) prefetch(ahead + 64);
      }
    }
    const bool pair = c + 1 < channels;
    const uint8_t* first = codes + index[c] * r.row_bytes;
    const uint8_t* second = pair ? codes + index[c + 1] * r.row_bytes : first;
    const auto low = static_cast<uint16_t>(coefficient[c]);
    const auto high = static_cast<uint16_t>(pair ? coefficient[c + 1] : 0);
    const I32x16 factors = set1(static_cast<int32_t>(low | static_cast<uint32_t>(high) << 16));
#pragma GCC unroll 4
    for (int b = 0; b < Blocks; b++) {
      I32x16 words = or_(widen_u16(first + 32 * b), shl<16>(widen_u16(second + 32 * b)));
#pragma GCC unroll 8
      for (int n = 0; n < per_word; n++, words = shr<Width>(words)) acc[b][n] = dot16(acc[b][n], and_(words, mask), factors);
    }
  }
  for (int b = 0; b < Blocks; b++)
    for (int n = 0; n < per_word; n++) sums[b * per_word + n] = acc[b][n];
}

template <int Width>
void sum_width(const SparseSumArgs& a, int64_t begin, int64_t end) {
  constexpr int per_word = 16 / Width;
  const Residual& r = a.residual;
  const int64_t blocks = r.row_bytes / 32;
  for (int64_t item = begin; item < end; item++) {
    const int64_t token = item / a.chunks, first = item % a.chunks * SPARSE_BLOCKS;
    const int count = static_cast<int>(std::min<int64_t>(SPARSE_BLOCKS, blocks - first));
    const int channels = a.selection.channels;
    const int32_t* index = a.selection.index + token * channels;
    const int16_t* coefficient = a.selection.coefficient + token * channels;
    I32x16 sums[SPARSE_BLOCKS * per_word];
    switch (count) {
      case 1: sum_blocks<Width, 1>(r, index, coefficient, channels, first, sums); break;
      case 2: sum_blocks<Width, 2>(r, index, coefficient, channels, first, sums); break;
      case 3: sum_blocks<Width, 3>(r, index, coefficient, channels, first, sums); break;
      default: sum_blocks<Width, 4>(r, index, coefficient, channels, first, sums); break;
    }
    const I32x16 offset = set1(a.selection.sum[token] * (1 << (Width - 1)));
    const F32x16 scale = set1(a.selection.scale[token]);
    for (int n = 0; n < count * per_word; n++) {
      const int64_t output = (first * per_word + n) * 16;
      const int lanes = static_cast<int>(std::min<int64_t>(16, r.outputs - output));
      if (lanes <= 0) break;
      const F32x16 value = mul(from_i32(sub(sums[n], offset)), mul(load_n(r.output_scale + output, lanes), scale));
      store_n(a.delta + token * a.delta_stride + output, lanes, value);
    }
  }
}

// ---- low_rank

template <bool Bf16>
HC_INLINE F32x16 load_factor(const void* base, int64_t element) {
  if constexpr (Bf16) return load_bf16(static_cast<const uint16_t*>(base) + element);
  else return from_i32(widen_i8(static_cast<const int8_t*>(base) + element));
}

template <bool Bf16>
void down(const LowRankDownArgs& a, int64_t item) {
  const LowRank& f = a.factors;
  const int64_t token = item / a.chunks;
  const int first = static_cast<int>(item % a.chunks) * LOW_RANK_DOWN, count = std::min(LOW_RANK_DOWN, f.rank - first);
  const float* x = a.x + token * f.inputs;
  F32x16 acc[LOW_RANK_DOWN];
  for (F32x16& sum : acc) sum = zero();
  const auto column = [&](int j, F32x16 values, int components) {
    for (int c = 0; c < components; c++) {
      acc[c] = fma(load_factor<Bf16>(f.a, static_cast<int64_t>(first + c) * f.a_stride + j), values, acc[c]);
    }
  };
  int j = 0;
  if (count == LOW_RANK_DOWN) {
    for (; j + LANES <= f.inputs; j += LANES) column(j, load(x + j), LOW_RANK_DOWN);
  }
  for (; j < f.inputs; j += LANES) column(j, load_n(x + j, f.inputs - j), count);
  for (int c = 0; c < count; c++) a.hidden[token * a.hidden_stride + first + c] = sum(acc[c]) * f.a_scale[first + c];
}

template <bool Bf16>
void up(const LowRankUpArgs& a, int64_t item) {
  constexpr int vectors = LOW_RANK_UP / LANES, part = 8;  // vectors a pass: eight accumulators suit every register file
  const LowRank& f = a.factors;
  const int64_t token = item / a.chunks;
  const float* hidden = a.hidden + token * a.hidden_stride;
  for (int v = 0; v < vectors; v += part) {
    const int64_t first = item % a.chunks * LOW_RANK_UP + v * LANES;
    const auto count = static_cast<int>(std::min<int64_t>(part, (f.b_stride - first) / LANES));
    F32x16 acc[part];
    for (F32x16& sum : acc) sum = zero();
    for (int c = 0; c < f.rank; c++) {
      const F32x16 factor = set1(hidden[c] * f.b_scale[c]);
      for (int n = 0; n < count; n++) {
        acc[n] = fma(load_factor<Bf16>(f.b, static_cast<int64_t>(c) * f.b_stride + first + n * LANES), factor, acc[n]);
      }
    }
    for (int n = 0; n < count; n++) {
      const int64_t output = first + n * LANES;
      const int lanes = static_cast<int>(std::min<int64_t>(LANES, f.outputs - output));
      if (lanes > 0) store_n(a.delta + token * a.delta_stride + output, lanes, acc[n]);
    }
  }
}

}  // namespace

void sparse_select(const SparseSelectArgs& a, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; token++) select_token(a, token);
}

void sparse_sum(const SparseSumArgs& a, int64_t begin, int64_t end) {
  switch (a.residual.width) {
    case 2: return sum_width<2>(a, begin, end);
    case 3: return sum_width<3>(a, begin, end);
    case 4: return sum_width<4>(a, begin, end);
    case 5: return sum_width<5>(a, begin, end);
    case 8: return sum_width<8>(a, begin, end);
  }
}

void low_rank_down(const LowRankDownArgs& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; item++) a.factors.bf16 ? down<true>(a, item) : down<false>(a, item);
}

void low_rank_up(const LowRankUpArgs& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; item++) a.factors.bf16 ? up<true>(a, item) : up<false>(a, item);
}

}  // namespace hc::HC_ISA
