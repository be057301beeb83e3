// y = x W^T over packed weights with int8 activations (quantised formats) or fp32 activations (bf16).
//
// Lanes are rows of W, so no sum crosses lanes. Per row and token, in this order whatever the number of tokens:
//   acc = 0; for each group g: acc = fma(fma(zero, -sum_g, float(dot_g)), scale * xscale_g, acc)
// dot_g, the products of codes, is an exact integer (q8: of code - 128, and no zero term). With subgroups scales and zero
// points are integers, too: acc = fma(float(sum_s scale_s * (dot_s - zero_s * sum_s)), xscale, acc), and y = factor * acc. Tokens
// stream the packed tiles through registers, FEW_TOKENS together, which beats reading unpacked codes four times as large;
// where a residual is added, or there are few registers, LINEAR_BLOCKS blocks are first unpacked into scratch and reused
// (linear_blocks.cpp).
//
// Bytes moved for one token: the packed matrix once; everything else stays in the caches.
#include <algorithm>

#include "linear.h"

namespace hc::HC_ISA {
namespace {

// ---- from the packed tiles: single tokens, and any number where the registers hold sums of several

// Packed tiles are read once, in order, faster than the hardware's prefetcher runs ahead of the work on them.
constexpr int PREFETCH_BYTES = 4096;

template <Format F, int Group>
HC_INLINE I32x16 dot_tile(const uint8_t* codes, const int8_t* x, int32_t sum) {
  // Four chains hide the latency of the dot product; eight quads later they are the same again, unrolled or not.
  I32x16 dots[4] = {F == Format::q8 ? set1(wrapping_product(-128, sum)) : zero_i32(), zero_i32(), zero_i32(), zero_i32()};
  for_each_quad<F, Group>(codes, [&](int q, U8x64 w) {
    I32x16& acc = dots[chain_of(q % 8, 4)];
    if constexpr (F == Format::q8) acc = dot_any(acc, w, x + 4 * q);
    else acc = dot_small(acc, w, x + 4 * q);
  });
  return add(add(dots[0], dots[1]), add(dots[2], dots[3]));
}

// sum_s scale_s * (dot_s - zero_s * sum_s). Codes are below 16 and sums of 16 products with them below 2^15, so that pairs
// of subgroups go on in 16-bit halves.
template <Format F>
HC_INLINE I32x16 dot_subgroups(const uint8_t* tile, const int8_t* x, const int16_t* sums16) {
  I32x16 dots[SUBGROUPS] = {zero_i32(), zero_i32(), zero_i32(), zero_i32()};
  for_each_quad<F, SUBGROUPED>(tile + header_bytes(F), [&](int q, U8x64 w) {
    I32x16& dot = dots[q / (SUBGROUP / 4)];
    dot = dot_small(dot, w, x + 4 * q);
  });
  const SubgroupPairs pairs = load_subgroups<F>(tile);
  I32x16 total = zero_i32();
  HC_UNROLL_ALL
  for (int i = 0; i < 2; i++) {
    int32_t sums;
    std::memcpy(&sums, sums16 + 2 * i, sizeof sums);
    total = dot16(total, sub16(pack16(dots[i], dots[i + 2]), mul16(pairs.zero[i], set1(sums))), pairs.scale[i]);
  }
  return total;
}

template <Format F, int Group>
void one_token(const LinearArgs& a, int64_t begin, int64_t end) {
  constexpr int tile = tile_bytes(F, Group), header = header_bytes(F);
  const int groups = a.quantized.groups;
  const uint8_t* p = a.packed + begin * block_bytes(F, Group, groups);
  for (int64_t block = begin; block < end; block++) {
    F32x16 acc = zero();
    const auto* factors = reinterpret_cast<const float*>(p);
    p += factor_bytes(F);
    for (int g = 0; g < groups; g++, p += tile) {
#pragma GCC unroll 20
      for (int line = 0; line < tile; line += 64) prefetch(p + PREFETCH_BYTES + line);
      if constexpr (has_subgroups(F)) {
        const I32x16 dot = dot_subgroups<F>(p, a.quantized.codes + g * Group, a.quantized.sums16 + g * SUBGROUPS);
        acc = fma(from_i32(dot), set1(a.quantized.scales[g]), acc);
        continue;
      }
      const int32_t sum = a.quantized.sums[g];
      F32x16 dot = from_i32(dot_tile<F, Group>(p + header, a.quantized.codes + g * Group, sum));
      const auto* halves = reinterpret_cast<const uint16_t*>(p);
      if constexpr (has_zero_point(F)) dot = fma(load_f16(halves + 16), set1(-static_cast<float>(sum)), dot);
      acc = accumulate(acc, dot, load_f16(halves), a.quantized.scales[g]);
    }
    if constexpr (has_subgroups(F)) acc = mul(acc, load(factors));
    store_n(a.y + block * 16, static_cast<int>(std::min<int64_t>(16, a.rows - block * 16)), acc);
  }
}

// Bytes of codes of activations that stay in the second-level cache while row blocks pass by.
constexpr int64_t CODES_AT_HAND = 256 * 1024;

template <int N>
HC_INLINE I32x16 sum_of(const I32x16 (&dots)[N]) {
  I32x16 sum = add(dots[0], dots[1]);
  if constexpr (N == 4) sum = add(sum, add(dots[2], dots[3]));
  return sum;
}

// One row block of M tokens from `token` on, from its packed tiles at `p`.
template <Format F, int Group, int M>
HC_INLINE void few_tokens_block(const LinearArgs& a, const uint8_t* p, int64_t block, int token) {
  constexpr int tile = tile_bytes(F, Group), header = header_bytes(F);
  // Several chains hide the latency of the dot product.
  constexpr int chains = M == 1 ? 4 : 2;
  const QuantizedRows& x = a.quantized;
  const int8_t* codes = x.codes + static_cast<int64_t>(token) * x.stride;
  const float* x_scales = x.scales + static_cast<int64_t>(token) * x.groups;
  const int32_t* sums = x.sums + static_cast<int64_t>(token) * x.groups;
  const int16_t* sums16 = has_subgroups(F) ? x.sums16 + static_cast<int64_t>(token) * x.groups * SUBGROUPS : nullptr;
  const auto* factors = reinterpret_cast<const float*>(p);
  p += factor_bytes(F);
  F32x16 acc[M];
  HC_UNROLL_ALL
  for (int m = 0; m < M; m++) acc[m] = zero();
  for (int g = 0; g < x.groups; g++, p += tile) {
#pragma GCC unroll 20
    for (int line = 0; line < tile; line += 64) prefetch(p + PREFETCH_BYTES + line);
    I32x16 dots[M][chains];
    HC_UNROLL_ALL
    for (int m = 0; m < M; m++) {
      HC_UNROLL_ALL
      for (int c = 0; c < chains; c++) dots[m][c] = zero_i32();
      if constexpr (F == Format::q8) dots[m][0] = set1(wrapping_product(-128, sums[m * x.groups + g]));
    }
    const auto multiply_add = [&](int q, U8x64 w) {
      HC_UNROLL_ALL
      for (int m = 0; m < M; m++) {
        I32x16& dot = dots[m][chain_of(q, chains)];
        const int8_t* x4 = codes + static_cast<int64_t>(m) * x.stride + g * Group + 4 * q;
        if constexpr (F == Format::q8 || has_subgroups(F)) dot = dot_any(dot, w, x4);
        else dot = dot_small(dot, w, x4);
      }
    };
    if constexpr (has_subgroups(F)) {
      const SubgroupPairs pairs = load_subgroups<F>(p);
      for_each_scaled_quad<F>(p, pairs, multiply_add);
      const I32x16 first = mul16(pairs.scale[0], pairs.zero[0]), second = mul16(pairs.scale[1], pairs.zero[1]);
      HC_UNROLL_ALL
      for (int m = 0; m < M; m++) {
        const int64_t at = int64_t{m} * x.groups + g;
        const I32x16 dot = sub(sum_of(dots[m]), zero_products(first, second, sums16 + at * SUBGROUPS));
        acc[m] = fma(from_i32(dot), set1(x_scales[at]), acc[m]);
      }
      continue;
    }
    for_each_quad<F, Group>(p + header, multiply_add);
    const auto* halves = reinterpret_cast<const uint16_t*>(p);
    const F32x16 scale = load_f16(halves);
    HC_UNROLL_ALL
    for (int m = 0; m < M; m++) {
      F32x16 dot = from_i32(sum_of(dots[m]));
      if constexpr (has_zero_point(F)) dot = fma(load_f16(halves + 16), set1(-static_cast<float>(sums[m * x.groups + g])), dot);
      acc[m] = accumulate(acc[m], dot, scale, x_scales[m * x.groups + g]);
    }
  }
  HC_UNROLL_ALL
  for (int m = 0; m < M; m++) {
    if constexpr (has_subgroups(F)) acc[m] = mul(acc[m], load(factors));
    store_n(a.y + static_cast<int64_t>(token + m) * a.y_stride + block * 16,
            static_cast<int>(std::min<int64_t>(16, a.rows - block * 16)), acc[m]);
  }
}

// Tokens [token, end), M at a time, then the rest: a block's tiles stay in the first-level cache meanwhile.
template <Format F, int Group, int M>
HC_INLINE void few_tokens_from(const LinearArgs& a, const uint8_t* p, int64_t block, int token, int end) {
  for (; token + M <= end; token += M) few_tokens_block<F, Group, M>(a, p, block, token);
  if constexpr (M > 1) {
    if (token < end) few_tokens_from<F, Group, M - 1>(a, p, block, token, end);
  }
}

template <Format F, int Group>
void few_tokens(const LinearArgs& a, int64_t begin, int64_t end) {
  const int64_t bytes = block_bytes(F, Group, a.quantized.groups);
  const int at_once = static_cast<int>(std::max<int64_t>(4, CODES_AT_HAND / a.quantized.stride / FEW_TOKENS)) * FEW_TOKENS;
  for (int first = 0; first < a.tokens; first += at_once) {
    const int last = std::min(a.tokens, first + at_once);
    for (int64_t block = begin; block < end; block++) {
      few_tokens_from<F, Group, FEW_TOKENS>(a, a.packed + block * bytes, block, first, last);
    }
  }
}

// ---- bf16: sums of even and odd pairs of inputs, ((e0 + e1) + (o0 + o1)), fused multiply-adds

constexpr int BF16_TOKENS = FEW_TOKENS;

template <int M>
void bf16_block(const LinearArgs& a, int64_t block, int token) {
  const int pairs = (a.inputs + 1) / 2;
  const uint8_t* p = a.packed + block * pairs * 64;
  const float* x = a.x + static_cast<int64_t>(token) * a.x_stride;
  const I32x16 high = set1(static_cast<int32_t>(0xFFFF0000u));
  F32x16 acc[M][4];
  for (int m = 0; m < M; m++)
    for (int c = 0; c < 4; c++) acc[m][c] = zero();
  const auto pair = [&](int i, bool odd_input) {
    const I32x16 words = load(reinterpret_cast<const int32_t*>(p + int64_t{64} * i));
    const F32x16 even = as_f32(shl<16>(words)), odd = as_f32(and_(words, high));
    const int c = 2 * (i & 1);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const float* xm = x + static_cast<int64_t>(m) * a.x_stride + 2 * i;
      acc[m][c] = fma(even, set1(xm[0]), acc[m][c]);
      if (odd_input) acc[m][c + 1] = fma(odd, set1(xm[1]), acc[m][c + 1]);
    }
  };
  const int whole = a.inputs / 2;
  int i = 0;
  for (; i + 2 <= whole; i += 2) {
    pair(i, true);
    pair(i + 1, true);
  }
  for (; i < pairs; i++) pair(i, 2 * i + 1 < a.inputs);
  for (int m = 0; m < M; m++) {
    const F32x16 y = add(add(acc[m][0], acc[m][2]), add(acc[m][1], acc[m][3]));
    store_n(a.y + static_cast<int64_t>(token + m) * a.y_stride + block * 16,
            static_cast<int>(std::min<int64_t>(16, a.rows - block * 16)), y);
  }
}

void linear_bf16(const LinearArgs& a, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; block++) {
    int token = 0;
    for (; token + BF16_TOKENS <= a.tokens; token += BF16_TOKENS) bf16_block<BF16_TOKENS>(a, block, token);
    for (; token < a.tokens; token++) bf16_block<1>(a, block, token);
  }
}

}  // namespace

void linear(const LinearArgs& a, int64_t begin, int64_t end) {
  if (a.format == Format::bf16) return linear_bf16(a, begin, end);
  if (a.residual.codes || (a.tokens > 1 && FEW_TOKENS == 1)) return linear_blocks(a, begin, end);
  for_format(a, [&](auto format, auto group) {
    if constexpr (FEW_TOKENS > 1) {
      if (a.tokens > 1) return few_tokens<format, group>(a, begin, end);
    }
    one_token<format, group>(a, begin, end);
  });
}

}  // namespace hc::HC_ISA
