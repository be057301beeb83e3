// What works on each element, or each group of them, by itself: a block computes a piece of a token's row.
#include "elementwise.h"
#include "parameters.h"

using namespace hc;

extern "C" __global__ void __launch_bounds__(PIECE_THREADS) quantize(const Quantize p, const Call call) {
  if (!begin(call)) return;
  const Piece piece = piece_of(p.width);
  if (piece.token < call.n) {
    const float* x = p.x;
    const Codes codes = codes_of(p, piece.token);
    quantize_four(codes, piece.first, load_four(x + piece.token * p.xStride, piece.first, p.width));
    if (piece.last) pad_codes(codes);
  }
  finish(call);
}

namespace {

template <bool WHOLE> HC_DEVICE Four gated(const Corrected& gate, const Corrected& up, int i, int width) {
  const Loading gates = load_four<WHOLE>(gate, i, width), ups = load_four<WHOLE>(up, i, width);
  Four product = value_of(gate, gates);
  const Four factor = value_of(up, ups);
#pragma unroll
  for (int k = 0; k < 4; k++) product.at[k] = silu(product.at[k]) * factor.at[k];
  return product;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(PIECE_THREADS) silu_mul(const SiluMul p, const Call call) {
  if (!begin(call)) return;
  const Piece piece = piece_of(p.width);
  if (piece.token < call.n) {
    const Corrected gate = row_of({p.gate, p.gateLowRank, p.gateSparse}, piece.token * p.gateStride);
    const Corrected up = row_of({p.up, p.upLowRank, p.upSparse}, piece.token * p.upStride);
    const bool whole = is_whole(gate, p.width) && is_whole(up, p.width);
    const Four product = whole ? gated<true>(gate, up, piece.first, p.width) : gated<false>(gate, up, piece.first, p.width);
    float* out = p.out;
    put_four(call, out + piece.token * p.width, piece.first, p.width, product);
    // What the row lacks was loaded as 0, and silu(0) * 0 is 0.
    const Codes codes = codes_of(p, piece.token);
    quantize_four(codes, piece.first, product);
    if (piece.last) pad_codes(codes);
  }
  finish(call);
}

enum class Kind : int32_t { add = 0, mul = 1, silu = 2, copy = 3 };

extern "C" __global__ void __launch_bounds__(PIECE_THREADS) elementwise(const Elementwise p, const Call call) {
  if (!begin(call)) return;
  const Piece piece = piece_of(p.width);
  if (piece.token < call.n) {
    const int64_t row = gathered(p.rows, piece.token, call.tokens);
    const auto kind = static_cast<Kind>(p.kind);
    const bool binary = kind == Kind::add || kind == Kind::mul;
    const Corrected a = row_of({p.a, p.aLowRank, p.aSparse}, row * p.aStride);
    const Corrected b = row_of({p.b, p.bLowRank, p.bSparse}, row * p.bStride);
    const Loading first = load_four(a, piece.first, p.width);
    Loading second;
    if (binary) second = load_four(b, piece.first, p.width);
    Four result = value_of(a, first);
    if (binary) {
      const Four other = value_of(b, second);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        result.at[k] = kind == Kind::add ? result.at[k] + other.at[k] : result.at[k] * other.at[k];
      }
    } else if (kind == Kind::silu) {
#pragma unroll
      for (int k = 0; k < 4; k++) result.at[k] = silu(result.at[k]);
    }
    float* out = p.out;
    put_four(call, out + piece.token * p.width, piece.first, p.width, result);
  }
  finish(call);
}
