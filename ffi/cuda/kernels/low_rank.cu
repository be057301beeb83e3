// Factors of a window's error (compiler/weights/correction.ts) for many tokens: what a thread loads of a factor serves
// several of them. Sums are in fp32, and no sum knows of the tokens beside its own.
#include "elementwise.h"
#include "parameters.h"

using namespace hc;

namespace {

// Four neighbours of a factor's row; strides are multiples of 16 elements.
HC_DEVICE Four factor_at(const void* factor, bool bf16, int64_t element) {
  Four four;
  if (bf16) {
    const auto* words = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(factor) + element);
    const uint32_t low = words[0], high = words[1];
    four = {{bits<float>(low << 16), bits<float>(low & 0xffff0000u), bits<float>(high << 16), bits<float>(high & 0xffff0000u)}};
  } else {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(static_cast<const int8_t*>(factor) + element);
#pragma unroll
    for (int k = 0; k < 4; k++) four.at[k] = static_cast<float>(static_cast<int8_t>(word >> (8 * k)));
  }
  return four;
}

constexpr int DOWN_TOKENS = 4, DOWN_COMPONENTS = 4;  // of a warp
constexpr int DOWN_WARPS = 8;                        // of a block: they share the tokens' x

// hidden of 4 tokens and 4 components: lane l sums inputs 4 l to 4 l + 3 of every 128, then the lanes are added as a tree.
template <bool BF16> HC_DEVICE void down(const LowRankDown& p, int n, int token, int component) {
  const float *x = p.x, *scale = p.aScale;
  const void* factor = p.a.address;
  float sums[DOWN_TOKENS][DOWN_COMPONENTS] = {};
  for (int i = 4 * static_cast<int>(threadIdx.x % WARP); i < p.inputs; i += 4 * WARP) {
    Four own[DOWN_TOKENS];
#pragma unroll
    for (int t = 0; t < DOWN_TOKENS; t++) {
      own[t] = load_four(x + static_cast<int64_t>(token + t < n ? token + t : n - 1) * p.xStride, i, p.inputs);
    }
#pragma unroll
    for (int c = 0; c < DOWN_COMPONENTS; c++) {
      const int row = component + c < p.rank ? component + c : p.rank - 1;
      const Four by = factor_at(factor, BF16, static_cast<int64_t>(row) * p.aStride + i);
#pragma unroll
      for (int t = 0; t < DOWN_TOKENS; t++) {
#pragma unroll
        for (int k = 0; k < 4; k++) sums[t][c] = fmaf(by.at[k], own[t].at[k], sums[t][c]);
      }
    }
  }
  float* hidden = p.hidden;
#pragma unroll
  for (int t = 0; t < DOWN_TOKENS; t++) {
#pragma unroll
    for (int c = 0; c < DOWN_COMPONENTS; c++) {
      const float sum = warp_sum(sums[t][c]);
      if (threadIdx.x % WARP != 0 || token + t >= n || component + c >= p.rank) continue;
      hidden[static_cast<int64_t>(token + t) * p.hiddenStride + component + c] = sum * scale[component + c];
    }
  }
}

constexpr int UP_TOKENS = 8;
constexpr int UP_STAGED = 64;  // components whose factors are at hand

// delta of 8 tokens and 4 outputs a thread, components in their order.
template <bool BF16> HC_DEVICE void up(const LowRankUp& p, int n, int token, int output) {
  __shared__ float factors[UP_STAGED][UP_TOKENS];
  const float *hidden = p.hidden, *scale = p.bScale;
  const void* factor = p.b.address;
  float sums[UP_TOKENS][4] = {};
  for (int start = 0; start < p.rank; start += UP_STAGED) {
    const int count = p.rank - start < UP_STAGED ? p.rank - start : UP_STAGED;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < UP_TOKENS * UP_STAGED; i += static_cast<int>(blockDim.x)) {
      const int t = i / UP_STAGED, c = i % UP_STAGED;
      const bool exists = c < count && token + t < n;
      factors[c][t] = exists ? hidden[static_cast<int64_t>(token + t) * p.hiddenStride + start + c] * scale[start + c] : 0.0f;
    }
    __syncthreads();
    if (output >= p.outputs) continue;
    for (int c = 0; c < count; c++) {
      const Four by = factor_at(factor, BF16, static_cast<int64_t>(start + c) * p.bStride + output);
#pragma unroll
      for (int t = 0; t < UP_TOKENS; t++) {
#pragma unroll
        for (int k = 0; k < 4; k++) sums[t][k] = fmaf(by.at[k], factors[c][t], sums[t][k]);
      }
    }
  }
  float* delta = p.delta;
#pragma unroll
  for (int t = 0; t < UP_TOKENS; t++) {
    if (token + t >= n) continue;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (output + k < p.outputs) delta[static_cast<int64_t>(token + t) * p.deltaStride + output + k] = sums[t][k];
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(DOWN_WARPS * WARP) low_rank_down(const LowRankDown p, const Call call) {
  if (!begin(call)) return;
  constexpr int block = DOWN_COMPONENTS * DOWN_WARPS;
  const int blocks = (p.rank + block - 1) / block;
  const int token = static_cast<int>(blockIdx.x) / blocks * DOWN_TOKENS;
  const int component = static_cast<int>(blockIdx.x) % blocks * block + static_cast<int>(threadIdx.x / WARP) * DOWN_COMPONENTS;
  if (token < call.n && component < p.rank) {
    if (p.bf16) down<true>(p, call.n, token, component);
    else down<false>(p, call.n, token, component);
  }
  finish(call);
}

extern "C" __global__ void __launch_bounds__(PIECE_THREADS) low_rank_up(const LowRankUp p, const Call call) {
  if (!begin(call)) return;
  const Piece piece = piece_of(p.outputs);
  const int token = static_cast<int>(piece.token) * UP_TOKENS;
  if (token < call.n) {
    if (p.bf16) up<true>(p, call.n, token, piece.first);
    else up<false>(p, call.n, token, piece.first);
  }
  finish(call);
}
