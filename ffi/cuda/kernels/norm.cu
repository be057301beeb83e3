// rms_norm of a [+ b], on the critical path of every layer when a step has one token: a block computes a row, and waits for
// its threads once.
#include "elementwise.h"
#include "parameters.h"

using namespace hc;

namespace {

constexpr int MOST_THREADS = 512;  // norm.ts
constexpr int KEPT = 4;            // times four elements that a thread keeps at hand: rows of 8192; more are read again

// Toward the caches, whenever it comes; nothing waits for it.
HC_DEVICE void prefetch(const void* at) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#else
  __builtin_prefetch(at);
#endif
}

// In an order that the number of threads decides.
HC_DEVICE float block_sum(float x) {
  __shared__ float of_warps[MOST_THREADS / WARP];
  const unsigned lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  x = warp_sum(x);
  if (lane == 0) of_warps[threadIdx.x / WARP] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warps[lane] : 0.0f);
}

HC_DEVICE float sum_of_squares(const Four& x, float sum) {
#pragma unroll
  for (int k = 0; k < 4; k++) sum = fmaf(x.at[k], x.at[k], sum);
  return sum;
}

// Adds b's part to a's.
HC_DEVICE Four total_of(const Corrected& a, const Loading& of_a, const Corrected& b, const Loading& of_b) {
  Four total = value_of(a, of_a);
  if (b.base == nullptr) return total;
  const Four more = value_of(b, of_b);
#pragma unroll
  for (int k = 0; k < 4; k++) total.at[k] += more.at[k];
  return total;
}

// The first elements of a thread, all loads before the first use, and their weights; 0 beyond the width.
template <bool WHOLE>
HC_DEVICE void load_row(const Corrected& a, const Corrected& b, const float* weight, int width, Four (&totals)[KEPT], Four (&weights)[KEPT]) {
  const int first = 4 * static_cast<int>(threadIdx.x), step = 4 * static_cast<int>(blockDim.x);
  Loading of_a[KEPT], of_b[KEPT];
#pragma unroll
  for (int n = 0; n < KEPT; n++) {
    of_a[n] = load_four<WHOLE>(a, first + n * step, width);
    if (b.base) of_b[n] = load_four<WHOLE>(b, first + n * step, width);
  }
#pragma unroll
  for (int n = 0; n < KEPT; n++) totals[n] = total_of(a, of_a[n], b, of_b[n]);
#pragma unroll
  for (int n = 0; n < KEPT; n++) weights[n] = load_four<WHOLE>(weight, first + n * step, width);
}

HC_DEVICE void norm_row(const Norm& p, const Call& call, int64_t item) {
  const int width = p.width, first = 4 * static_cast<int>(threadIdx.x), step = 4 * static_cast<int>(blockDim.x);
  const int64_t row = gathered(p.rows, item / p.heads, call.tokens), column = item % p.heads * width;
  const Corrected a = row_of({p.a, p.aLowRank, p.aSparse}, row * p.aStride + column);
  const Corrected b = row_of({p.b, p.bLowRank, p.bSparse}, row * p.bStride + column);
  const float* weight = p.weight;
  float *out = p.out, *sum = p.sum;
  out += item * width;
  if (sum) sum += item * width;

  Four kept[KEPT], weights[KEPT];
  if (is_whole(a, width) && is_whole(b, width) && takes_four(weight)) load_row<true>(a, b, weight, width, kept, weights);
  else load_row<false>(a, b, weight, width, kept, weights);
  float squares = 0.0f;
#pragma unroll
  for (int n = 0; n < KEPT; n++) {
    squares = sum_of_squares(kept[n], squares);
    if (sum) put_four(call, sum, first + n * step, width, kept[n]);
  }
  // What is read again lies where the thread itself wrote it.
  float* again = sum ? sum : out;
  for (int i = first + KEPT * step; i < width; i += step) {
    const Loading more_a = load_four(a, i, width);
    Loading more_b;
    if (b.base) more_b = load_four(b, i, width);
    const Four total = total_of(a, more_a, b, more_b);
    squares = sum_of_squares(total, squares);
    put_four(call, again, i, width, total);
  }

  const float mean = block_sum(squares) / static_cast<float>(width);
  const float inverse = 1.0f / sqrtf(mean + p.epsilon);
  const Codes codes = codes_of(p, item);
  const auto store = [&](int i, const Four& total, const Four& by) {
    Four normed;
#pragma unroll
    for (int k = 0; k < 4; k++) normed.at[k] = i + k < width ? by.at[k] * (total.at[k] * inverse) : 0.0f;
    put_four(call, out, i, width, normed);
    quantize_four(codes, i, normed);
  };
  // Whole warps take each turn, also where the row has ended.
#pragma unroll
  for (int n = 0; n < KEPT; n++) {
    if (n * step < width) store(first + n * step, kept[n], weights[n]);
  }
  for (int start = KEPT * step; start < width; start += step) {
    store(first + start, load_four(again, first + start, width), load_four(weight, first + start, width));
  }
  if (codes.group > 0) pad_codes(codes);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(MOST_THREADS) rms_norm(const Norm p, const Call call) {
  // The weight depends on nobody: it comes while the kernel waits.
  const float* weight = p.weight;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < p.width; i += 4 * static_cast<int>(blockDim.x)) prefetch(weight + i);
  if (!begin(call)) return;
  if (blockIdx.x < static_cast<int64_t>(call.n) * p.heads) norm_row(p, call, blockIdx.x);
  finish(call);
}
