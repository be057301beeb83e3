// The largest logits of each row: every block sorts out those of its slice, then one block a row merges the blocks' lists.
//
// A logit and its place make one key, and no two keys are equal: the next largest is the largest key below the last one, and
// the result is the same however the work is divided.
#include "elementwise.h"
#include "sampling.h"

using namespace hc;

namespace {

constexpr int THREADS = 256, OWN = 16, SLICE = THREADS * OWN;  // sampling.ts
constexpr uint64_t NOTHING = 0;                                // below every key

// Grows with the logit and falls with the index. -0 equals 0, and a NaN is below -inf; as in argmax of ffi/simd/sampling.cpp.
HC_DEVICE uint64_t key_of(float logit, int index) {
  const uint32_t word = bits<uint32_t>(logit + 0.0f);
  const uint32_t order = logit != logit ? 0 : word & 0x80000000u ? ~word : word | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(index);
}
HC_DEVICE int index_of(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

HC_DEVICE uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
HC_DEVICE uint64_t warp_largest(uint64_t key) {
#pragma unroll
  for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
    key = larger(key, __shfl_xor_sync(ALL_LANES, static_cast<unsigned long long>(key), lanes));
  }
  return key;
}

// Calls store(rank, key) in thread 0 for the k largest keys of the block. own(last): the largest of the thread's own keys
// below `last`, or NOTHING; asked again only when the last one was the thread's.
template <class Own, class Store> HC_DEVICE void largest_of_block(int k, Own own, Store store) {
  __shared__ uint64_t of_warps[2][THREADS / WARP];  // two, so that one barrier a turn is enough
  const unsigned lane = threadIdx.x % WARP;
  uint64_t best = own(~uint64_t{0});
  for (int rank = 0; rank < k; rank++) {
    uint64_t* shared = of_warps[rank % 2];
    const uint64_t of_warp = warp_largest(best);
    if (lane == 0) shared[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    const uint64_t next = warp_largest(lane < THREADS / WARP ? shared[lane] : NOTHING);
    if (threadIdx.x == 0) store(rank, next);
    if (best == next) best = own(next);
  }
}

}  // namespace

// Block (row, slice): the slice's k largest keys, descending, to scratch u64 [n, chunks, k]; NOTHING where there are fewer.
extern "C" __global__ void __launch_bounds__(THREADS) top_k_of_slice(const TopK p, const Call call) {
  if (!begin(call)) return;
  const int row = static_cast<int>(blockIdx.x) / call.chunks, slice = static_cast<int>(blockIdx.x) % call.chunks;
  if (row < call.n) {
    const float* logits = p.logits;
    logits += static_cast<int64_t>(row) * p.vocabulary;
    uint64_t keys[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const int index = slice * SLICE + i * THREADS + static_cast<int>(threadIdx.x);
      keys[i] = index < p.vocabulary ? key_of(logits[index], index) : NOTHING;
    }
    uint64_t* list = static_cast<uint64_t*>(call.scratch) + static_cast<int64_t>(blockIdx.x) * p.k;
    largest_of_block(
        p.k,
        [&](uint64_t last) {
          uint64_t best = NOTHING;
#pragma unroll
          for (int i = 0; i < OWN; i++) best = keys[i] < last ? larger(best, keys[i]) : best;
          return best;
        },
        [&](int rank, uint64_t key) { list[rank] = key; });
  }
  finish(call);
}

// Block (row): merges the slices' lists, one a thread.
extern "C" __global__ void __launch_bounds__(THREADS) top_k_of_row(const TopK p, const Call call) {
  if (!begin(call)) return;
  const int row = static_cast<int>(blockIdx.x), slice = static_cast<int>(threadIdx.x);
  if (row < call.n) {
    const float* logits = p.logits;
    const uint64_t* list = static_cast<const uint64_t*>(call.scratch) + (static_cast<int64_t>(row) * call.chunks + slice) * p.k;
    int32_t* indices = p.indices;
    float* values = p.values;
    int used = 0;
    largest_of_block(
        p.k, [&](uint64_t) { return slice < call.chunks && used < p.k ? list[used++] : NOTHING; },
        [&](int rank, uint64_t key) {
          const int64_t at = static_cast<int64_t>(row) * p.k + rank;
          indices[at] = index_of(key);
          values[at] = logits[static_cast<int64_t>(row) * p.vocabulary + index_of(key)];
        });
  }
  finish(call);
}
