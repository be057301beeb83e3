// Heads on their way to attention: norm, rotation, and keys and values into the cache.
//
// A warp takes one head of one token. A lane holds the dimensions (i, i + headDim / 2) that are turned together for i = lane,
// lane + 32, ...: loads and stores are rows of 128 bytes, and every input is read once. The sum of squares is a lane's terms
// in order, then a butterfly over the warp: a function of headDim alone.
//
// Moved per token, in bytes: 4 (read) + 4 or 2 (written) for each of (heads + 2 kvHeads) headDim values, and the deltas, which
// cross the bus; 40 KiB for 32 + 2 * 8 heads of 128. One token is 12 blocks of 4 warps: time is the latency of two
// dependent reads. 2,048 tokens are 24,576 blocks: time is bandwidth. 45 registers at most: 40 warps a processor.
#include "pages.h"
#include "parameters.h"

namespace hc {
namespace {

constexpr int WARPS = 4;  // kernels/heads.ts
constexpr int PAIRS = MOST_HEAD_DIM / 2 / 32;

// Which head this warp has, of all tokens' heads in a row.
HC_DEVICE int64_t warp_in_grid() { return static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32; }
HC_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32); }

class Head {
 public:
  HC_DEVICE Head(const Corrected& x, int64_t at, int head_dim) : half_(head_dim / 2) {
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
      const int i = lane() + 32 * k;
      first_[k] = i < half_ ? x[at + i] : 0.0f;
      second_[k] = i < half_ ? x[at + half_ + i] : 0.0f;
    }
  }

  HC_DEVICE void norm(const float* weight, float epsilon) {
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < PAIRS; k++) squares = fmaf(second_[k], second_[k], fmaf(first_[k], first_[k], squares));
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) squares += __shfl_xor_sync(~0u, squares, bit);
    const float inverse = 1.0f / sqrtf(squares / static_cast<float>(2 * half_) + epsilon);
    each([&](int i, float& first, float& second) {
      first = weight[i] * (first * inverse);
      second = weight[half_ + i] * (second * inverse);
    });
  }

  // By the angles of one position: cosines and sines [headDim / 2].
  HC_DEVICE void turn(const float* cosines, const float* sines) {
    each([&](int i, float& first, float& second) {
      const float a = first, b = second, cosine = cosines[i], sine = sines[i];
      first = fmaf(a, cosine, -(b * sine));
      second = fmaf(b, cosine, a * sine);
    });
  }

  // write(dimension, value) for every dimension.
  template <class Write> HC_DEVICE void store(Write write) {
    each([&](int i, float first, float second) { write(i, first), write(half_ + i, second); });
  }

 private:
  template <class F> HC_DEVICE void each(F f) {
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
      const int i = lane() + 32 * k;
      if (i < half_) f(i, first_[k], second_[k]);
    }
  }

  int half_;
  float first_[PAIRS], second_[PAIRS];
};

// The first key or value of a step that f16 does not hold, in the order of layers, then tokens, keys before values.
enum class CacheValue : uint64_t { key = 0, value = 1 };
HC_DEVICE uint64_t overflow_of(int32_t layer, int64_t token, CacheValue what) {
  return static_cast<uint64_t>(layer) << 32 | static_cast<uint64_t>(token) << 1 | static_cast<uint64_t>(what);
}

// From 65520 on f16 rounds to infinity. A NaN is no number below it.
HC_DEVICE bool fits_f16(float value) { return fabsf(value) < 65520.0f; }

// Whole warps come here.
HC_DEVICE void report_overflow(const Call& call, bool fits, int32_t layer, int64_t token, CacheValue what) {
  if (__all_sync(~0u, fits) || lane() != 0) return;
  atomicMin(reinterpret_cast<unsigned long long*>(&call.report->overflow), static_cast<unsigned long long>(overflow_of(layer, token, what)));
}

// The page of the cache that holds a token, -1 where there is none.
HC_DEVICE int32_t page_of(const Append& p, int64_t token, int32_t position) {
  const int32_t sequence = static_cast<const int32_t*>(p.sequences)[token];
  if (!within(sequence, p.mostSequences)) return -1;
  const int32_t page = static_cast<const int32_t*>(p.pages)[static_cast<int64_t>(sequence) * p.mostPages + position / PAGE];
  return within(page, p.pageCount) ? page : -1;
}

HC_DEVICE void rope_head(const Rope& p, const Call& call) {
  const int64_t item = warp_in_grid(), token = item / p.heads, head = item % p.heads;
  if (token >= call.n) return;
  const int32_t position = static_cast<const int32_t*>(p.positions)[token];
  if (!within(position, p.context)) return;
  Head x(Corrected{p.x, p.xLowRank, p.xSparse}, token * p.xStride + head * p.headDim, p.headDim);
  const int64_t angles = static_cast<int64_t>(position) * (p.headDim / 2);
  const float *cosines = p.cosines, *sines = p.sines;
  x.turn(cosines + angles, sines + angles);
  float* out = p.out;
  x.store([&](int i, float value) { put(call, out + item * p.headDim + i, value); });
}

HC_DEVICE void append_head(const Append& p, const Call& call) {
  const int32_t per_token = p.heads + 2 * p.kvHeads;
  const int64_t token = warp_in_grid() / per_token;
  int32_t head = static_cast<int32_t>(warp_in_grid() % per_token);
  if (token >= call.n) return;
  const int32_t position = static_cast<const int32_t*>(p.positions)[token];
  if (!within(position, p.context)) return;
  const int64_t angles = static_cast<int64_t>(position) * (p.headDim / 2);
  const float *cosines = p.cosines, *sines = p.sines;
  const auto prepared = [&](const Corrected& x, int64_t at, const float* weight, float epsilon) {
    Head values(x, at, p.headDim);
    if (weight != nullptr) values.norm(weight, epsilon);
    if (cosines != nullptr) values.turn(cosines + angles, sines + angles);
    return values;
  };
  if (head < p.heads) {
    float* out = static_cast<float*>(p.out) + (token * p.heads + head) * p.headDim;
    prepared(Corrected{p.q, p.qLowRank, p.qSparse}, token * p.qStride + static_cast<int64_t>(head) * p.headDim, p.qNorm, p.qEpsilon)
        .store([&](int i, float value) { put(call, out + i, value); });
    return;
  }
  head -= p.heads;
  const int32_t page = page_of(p, token, position);
  if (page < 0) return;
  bool fits = true;
  const bool is_key = head < p.kvHeads;
  if (is_key) {
    half* keys = static_cast<half*>(p.cacheK) + head_of_page(page, p.kvHeads, head, p.headDim);
    prepared(Corrected{p.k, p.kLowRank, p.kSparse}, token * p.kStride + static_cast<int64_t>(head) * p.headDim, p.kNorm, p.kEpsilon)
        .store([&](int i, float value) {
          fits = fits && fits_f16(value);
          keys[key_at(p.headDim, position % PAGE, i)] = __float2half(value);
        });
  } else {
    head -= p.kvHeads;
    half* values = static_cast<half*>(p.cacheV) + head_of_page(page, p.kvHeads, head, p.headDim) + position % PAGE * p.headDim;
    Head(Corrected{p.v, p.vLowRank, p.vSparse}, token * p.vStride + static_cast<int64_t>(head) * p.headDim, p.headDim)
        .store([&](int i, float value) {
          fits = fits && fits_f16(value);
          values[i] = __float2half(value);
        });
  }
  report_overflow(call, fits, p.layer, token, is_key ? CacheValue::key : CacheValue::value);
}

}  // namespace
}  // namespace hc

using hc::Append, hc::Call, hc::Rope;

extern "C" __global__ void rope(const Rope p, const Call call) {
  if (!hc::begin(call)) return;
  hc::rope_head(p, call);
  hc::finish(call);
}

extern "C" __global__ void append(const Append p, const Call call) {
  if (!hc::begin(call)) return;
  hc::append_head(p, call);
  hc::finish(call);
}
