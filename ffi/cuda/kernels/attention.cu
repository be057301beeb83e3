// Attention over the pages of the cache, in chunks of 256 positions.
//
// A unit of work is up to 8 query rows (token, head) of one tile that read the same key-value head; `attend_chunk` is what they
// see of one chunk: the highest score, the sum of exp(score - highest), and the sum of values so weighted. Chunks are merged in
// ascending order by `Merged`. Short and many contexts: one block walks over a unit's chunks (attend_walk). Few and long ones:
// one block a unit and chunk, partial results to scratch (attend_split), then one block a row merges them (attend_merge).
// Both forms do the same operations on the same numbers in the same order, and a row's are its own: a score sums over the
// dimensions in order; a chunk's weights are summed by thread (two positions), by butterfly, by warp; its values by group of
// threads (ascending positions), then by group. So a result depends on the row and its position alone, bit for bit.
//
// Threads: 4 warps, 4 pages of 64 positions. Scores: a thread owns 2 positions of its warp's page and reads 8 dimensions of
// each in a load of 16 bytes, 512 bytes a warp (pages.h); queries come from shared memory, the same ones for all threads: 16
// multiply-adds a dimension for two loads of 16 bytes. Values: headDim / 8 threads own a position's row, 16 bytes each: 64
// multiply-adds for one load of 16 bytes from the cache and two from shared memory.
//
// Bytes: 4 headDim a position and key-value head (128 KiB a block at headDim 128), read once by a unit; further units of a
// tile find them in the L2 cache. Blocks for one token and 8 key-value heads: 16 at a context of 512, 128 at 4k, 1,024 at 32k.
// A chip of 132 processors is not full below 4k; but 512 positions are 2 MiB a layer, of which a block reads 128 KiB in a
// few microseconds. Prefill of 2,048 tokens, 4 heads a key-value head: 8,192 blocks, longest first.
// 128 registers at most and 24.5 KiB of shared memory at headDim 128: 4 blocks a processor, 16 warps, each with 2 KiB of loads
// under way; 32 KiB a processor is more than an H100 needs (14 bytes a clock for some 700 clocks).
//
// Sums are fp32, of f16 keys and values and fp32 queries. Tensor cores would round queries and weights to 11 bits, and decode
// would have to do the same. Prefill of 2,048 tokens of Llama-3.1-8B's shape is 1.1 TFLOP here and 33 in the matrix products:
// at half of an H100's peaks, 33 ms (estimated, not measured) beside some 70.
#include "pages.h"
#include "parameters.h"

extern __shared__ float4 hc_shared[];

namespace hc {
namespace {

constexpr int WARPS = 4, THREADS = 32 * WARPS;  // kernels/attention.ts, as are the next three
constexpr int CHUNK = WARPS * PAGE;
constexpr int TILE = 8;        // tokens of a tile, at most
constexpr int UNIT_ROWS = 8;   // rows that share loads, at most
constexpr int REDUCED = 4;     // rows whose sums of values lie in shared memory at the same time
constexpr float LOG2_E = 1.4426950408889634f;

HC_DEVICE float lowest() { return -__int_as_float(0x7f800000); }

// f16 as they lie in memory, low half first.
HC_DEVICE float2 floats(uint32_t bits) {
  half2 pair;
  memcpy(&pair, &bits, sizeof pair);
  return __half22float2(pair);
}

struct Eight {
  float x[8];
};
// `width` (even) of eight f16; those beyond are 0. `vectors`: all eight exist and are aligned to 16 bytes.
HC_DEVICE Eight load_eight(const half* at, int width, bool vectors) {
  uint4 bits = make_uint4(0, 0, 0, 0);
  if (vectors) {
    bits = *reinterpret_cast<const uint4*>(at);
  } else {
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(at);
    if (width > 0) bits.x = pairs[0];
    if (width > 2) bits.y = pairs[1];
    if (width > 4) bits.z = pairs[2];
    if (width > 6) bits.w = pairs[3];
  }
  const float2 a = floats(bits.x), b = floats(bits.y), c = floats(bits.z), d = floats(bits.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

// Softmax over chunks, as far as it has come. Every form starts with none and takes the chunks in ascending order.
struct Merged {
  float highest = lowest(), total = 0.0f;
  // What the sums so far, and those of the chunk, are multiplied by.
  HC_DEVICE float2 add(float chunk_highest, float chunk_total) {
    const float both = fmaxf(highest, chunk_highest);
    const float2 factors = make_float2(exp2f(highest - both), exp2f(chunk_highest - both));
    highest = both;
    total = fmaf(chunk_total, factors.y, total * factors.x);
    return factors;
  }
};
HC_DEVICE float merge(float sum, float chunk_sum, float2 factors) { return fmaf(chunk_sum, factors.y, sum * factors.x); }

// A tile whose tokens and pages exist: `count` tokens from `first` on, the first of which stands at `position`.
struct Tile {
  const int32_t* table;  // pages of its sequence; null: the tile is left out
  int32_t first, count, position;
};

// Whether pages [from, to) of a table lie in the cache; every warp looks for itself.
HC_DEVICE bool pages_exist(const int32_t* table, int32_t from, int32_t to, int32_t page_count) {
  bool exist = true;
  for (int32_t page = from + static_cast<int32_t>(threadIdx.x % 32); page < to; page += 32) exist = exist && within(table[page], page_count);
  return __all_sync(~0u, exist);
}

// Whether its pages are of the cache is not looked at.
HC_DEVICE Tile tile_of(const Attend& p, const Call& call, int32_t number) {
  const Tile none = {nullptr, 0, 0, 0};
  if (!within(number, call.tiles)) return none;
  const int32_t* tiles = p.tiles;
  const int32_t first = tiles[2 * number], count = tiles[2 * number + 1];
  if (!within(first, call.tokens) || count < 1 || count > TILE || count > call.tokens - first) return none;
  const int32_t sequence = static_cast<const int32_t*>(p.sequences)[first], position = static_cast<const int32_t*>(p.positions)[first];
  if (!within(sequence, p.mostSequences) || !within(position, p.context) || count > p.context - position) return none;
  return {static_cast<const int32_t*>(p.pages) + static_cast<int64_t>(sequence) * p.mostPages, first, count, position};
}
HC_DEVICE int32_t pages_of(const Tile& tile) { return (tile.position + tile.count - 1) / PAGE + 1; }

// Rows [first_row, first_row + rows) of a tile and a key-value head; row = token * group + head of the group.
struct Unit {
  Tile tile;
  int32_t kv_head, group, first_row, rows;  // rows <= 0: nothing to do
  HC_DEVICE int64_t head_row(const Attend& p, int row) const {
    return static_cast<int64_t>(tile.first + (first_row + row) / group) * p.heads + kv_head * group + (first_row + row) % group;
  }
  // Positions that a row sees. Rows that do not exist see what the last one sees.
  HC_DEVICE int32_t seen(int row) const { return tile.position + (first_row + min(row, rows - 1)) / group + 1; }
};

// Of this block. Tiles are taken from the last on: it has the longest context.
HC_DEVICE Unit unit_of_block(const Attend& p, const Call& call) {
  const int32_t block = static_cast<int32_t>(blockIdx.x), parts = static_cast<int32_t>(gridDim.x) / (max(call.tiles, 1) * p.kvHeads);
  const int32_t group = p.heads / p.kvHeads, first_row = block % parts * UNIT_ROWS;
  const Tile tile = tile_of(p, call, call.tiles - 1 - block / (parts * p.kvHeads));
  return {tile, block / parts % p.kvHeads, group, first_row, min(tile.count * group - first_row, UNIT_ROWS)};
}

// Dynamic shared memory of a block.
struct Shared {
  float* queries;  // [headDim, ROWS], times scale and log2(e)
  float* merged;   // [ROWS, headDim]
  int32_t* seen;   // [UNIT_ROWS]: positions that a row sees
  float* weights;  // [CHUNK, ROWS], dead before `sums` are written to the same place
  float* sums;     // [REDUCED, groups of threads, headDim]
  HC_DEVICE explicit Shared(int head_dim) {
    queries = reinterpret_cast<float*>(hc_shared);
    merged = queries + UNIT_ROWS * head_dim;
    seen = reinterpret_cast<int32_t*>(merged + UNIT_ROWS * head_dim);
    weights = sums = merged + UNIT_ROWS * head_dim + UNIT_ROWS;
  }
};

// What `attend_chunk` reads; a barrier must follow.
template <int ROWS> HC_DEVICE void stage(const Attend& p, const Unit& unit, const Shared& shared) {
  const float* q = p.q;
  const float factor = p.scale * LOG2_E;
  for (int i = static_cast<int>(threadIdx.x); i < ROWS * p.headDim; i += THREADS) {
    const int row = i / p.headDim, d = i % p.headDim;
    shared.queries[d * ROWS + row] = row < unit.rows ? factor * q[unit.head_row(p, row) * p.headDim + d] : 0.0f;
    shared.merged[i] = 0.0f;
  }
  if (threadIdx.x < ROWS) shared.seen[threadIdx.x] = unit.seen(static_cast<int>(threadIdx.x));
}

// N floats of shared memory, aligned to 16 bytes.
template <int N> HC_DEVICE void load_row(const float* from, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
  }
}

template <int N> HC_DEVICE void store_row(float* to, const float (&from)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
}

// scores[s][r] of positions `slot` and `slot` + 32 of a page, whose head begins at `keys`.
template <int ROWS>
HC_DEVICE void score(const half* keys, const float* queries, int head_dim, int slot, float (&scores)[2][ROWS]) {
  const auto add = [&](int block, const Eight& first, const Eight& second, int width) {
#pragma unroll
    for (int d = 0; d < 8; d++) {
      if (d >= width) break;
      float q[ROWS];
      load_row(queries + (block * 8 + d) * ROWS, q);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        scores[0][r] = fmaf(q[r], first.x[d], scores[0][r]);
        scores[1][r] = fmaf(q[r], second.x[d], scores[1][r]);
      }
    }
  };
  const int whole = head_dim / 8, rest = head_dim % 8;
#pragma unroll(ROWS == 4 ? 4 : 2)
  for (int block = 0; block < whole; block++) {
    add(block, load_eight(keys + key_block(slot, block, 8), 8, true), load_eight(keys + key_block(slot + 32, block, 8), 8, true), 8);
  }
  if (rest > 0) {
    add(whole, load_eight(keys + key_block(slot, whole, rest), rest, false), load_eight(keys + key_block(slot + 32, whole, rest), rest, false), rest);
  }
}

// What a unit sees of the chunk that begins at position `start`, `seen` positions of it and at least one.
// rows(row, highest, total) is called for every row by the thread of that number, then take(row, dimension, sum) for every row
// that sees any of it and every dimension, by any thread; a barrier lies between.
template <int ROWS, class Rows, class Take>
HC_DEVICE void attend_chunk(const Attend& p, const Unit& unit, const Shared& shared, int32_t start, int seen, Rows rows, Take take) {
  __shared__ float highest_of[WARPS][UNIT_ROWS], total_of[WARPS][UNIT_ROWS];
  const int head_dim = p.headDim, thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t* table = unit.tile.table + start / PAGE;
  const auto head_of = [&](int page) { return head_of_page(table[page], p.kvHeads, unit.kv_head, head_dim); };

  float scores[2][ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) scores[0][r] = scores[1][r] = 0.0f;
  if (warp * PAGE < seen) score<ROWS>(static_cast<const half*>(p.cacheK) + head_of(warp), shared.queries, head_dim, lane, scores);
  const int positions[2] = {warp * PAGE + lane, warp * PAGE + lane + 32};
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int s = 0; s < 2; s++) {
      if (start + positions[s] >= shared.seen[r]) scores[s][r] = lowest();
    }
    float highest = fmaxf(scores[0][r], scores[1][r]);
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, bit));
    if (lane == 0) highest_of[warp][r] = highest;
  }
  __syncthreads();
  const auto highest_in_block = [&](int r) {
    return fmaxf(fmaxf(highest_of[0][r], highest_of[1][r]), fmaxf(highest_of[2][r], highest_of[3][r]));
  };
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float highest = highest_in_block(r);
#pragma unroll
    for (int s = 0; s < 2; s++) scores[s][r] = exp2f(scores[s][r] - highest);
    float total = scores[0][r] + scores[1][r];
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) total += __shfl_xor_sync(~0u, total, bit);
    if (lane == 0) total_of[warp][r] = total;
  }
#pragma unroll
  for (int s = 0; s < 2; s++) store_row(shared.weights + positions[s] * ROWS, scores[s]);
  __syncthreads();
  if (thread < ROWS) {
    rows(thread, highest_in_block(thread), (total_of[0][thread] + total_of[1][thread]) + (total_of[2][thread] + total_of[3][thread]));
  }

  const int vectors = (head_dim + 7) / 8, groups = THREADS / vectors, vector = thread % vectors, group = thread / vectors;
  float sums[ROWS][8];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int d = 0; d < 8; d++) sums[r][d] = 0.0f;
  }
  const half* cache = static_cast<const half*>(p.cacheV) + vector * 8;
  const auto add = [&](int position, auto sees) {
    const Eight values = load_eight(cache + head_of(position / PAGE) + position % PAGE * head_dim, head_dim - vector * 8, head_dim % 8 == 0);
    float weights[ROWS];
    load_row(shared.weights + position * ROWS, weights);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (!sees(r)) continue;
#pragma unroll
      for (int d = 0; d < 8; d++) sums[r][d] = fmaf(weights[r], values.x[d], sums[r][d]);
    }
  };
  // Positions that every row sees, then those that only later tokens see: a weight of 0 times a value that was never written, or
  // is infinite, would be NaN.
  int position = group < groups ? group : CHUNK;
  const int all_see = min(shared.seen[0] - start, seen);
#pragma unroll(ROWS == 4 ? 4 : 2)
  for (; position < all_see; position += groups) add(position, [](int) { return true; });
#pragma unroll 1
  for (; position < seen; position += groups) add(position, [&](int r) { return start + position < shared.seen[r]; });

#pragma unroll
  for (int from = 0; from < ROWS; from += REDUCED) {
    __syncthreads();
    if (group < groups) {
#pragma unroll
      for (int r = 0; r < REDUCED; r++) {
        float* to = shared.sums + (r * groups + group) * head_dim + vector * 8;
        if (head_dim % 8 == 0) {
          store_row(to, sums[from + r]);
        } else {
#pragma unroll
          for (int d = 0; d < 8; d++) {
            if (vector * 8 + d < head_dim) to[d] = sums[from + r][d];
          }
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < REDUCED * head_dim; i += THREADS) {
      const int row = from + i / head_dim;
      if (row >= unit.rows || shared.seen[row] <= start) continue;
      float sum = 0.0f;
      for (int g = 0; g < groups; g++) sum += shared.sums[(i / head_dim * groups + g) * head_dim + i % head_dim];
      take(row, i % head_dim, sum);
    }
  }
}

template <int ROWS> HC_DEVICE void walk(const Attend& p, const Call& call, const Unit& unit) {
  __shared__ float2 factors[UNIT_ROWS];
  __shared__ float totals[UNIT_ROWS];
  const Shared shared(p.headDim);
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t end = unit.seen(unit.rows - 1);
  Merged merged;  // of the row that has this thread's number
  stage<ROWS>(p, unit, shared);
  for (int32_t start = 0; start < end; start += CHUNK) {
    __syncthreads();
    attend_chunk<ROWS>(
        p, unit, shared, start, min(end - start, CHUNK),
        [&](int row, float highest, float total) {
          if (shared.seen[row] > start) factors[row] = merged.add(highest, total);
        },
        [&](int row, int d, float sum) {
          float& at = shared.merged[row * p.headDim + d];
          at = merge(at, sum, factors[row]);
        });
  }
  if (thread < ROWS) totals[thread] = merged.total;
  __syncthreads();
  float* out = p.out;
  for (int i = thread; i < unit.rows * p.headDim; i += THREADS) {
    const int row = i / p.headDim, d = i % p.headDim;
    put(call, out + unit.head_row(p, row) * p.headDim + d, shared.merged[i] / totals[row]);
  }
}

// Scratch of the split form: for each chunk and row of q its sums of values, then its highest score and sum of weights.
struct Partial {
  float* sums;     // [chunks, tokens * heads, headDim]
  float2* softmax;  // [chunks, tokens * heads]
  int64_t rows;
  HC_DEVICE Partial(const Attend& p, const Call& call) : rows(static_cast<int64_t>(call.tokens) * p.heads) {
    sums = static_cast<float*>(call.scratch);
    softmax = reinterpret_cast<float2*>(sums + call.chunks * rows * p.headDim);
  }
  HC_DEVICE int64_t at(int32_t chunk, int64_t row) const { return chunk * rows + row; }
};

template <int ROWS> HC_DEVICE void split(const Attend& p, const Call& call, const Unit& unit, int32_t chunk) {
  const Shared shared(p.headDim);
  const Partial partial(p, call);
  const int32_t start = chunk * CHUNK, seen = min(unit.seen(unit.rows - 1) - start, CHUNK);
  stage<ROWS>(p, unit, shared);
  __syncthreads();
  attend_chunk<ROWS>(
      p, unit, shared, start, seen,
      [&](int row, float highest, float total) {
        if (row < unit.rows) partial.softmax[partial.at(chunk, unit.head_row(p, row))] = make_float2(highest, total);
      },
      [&](int row, int d, float sum) { partial.sums[partial.at(chunk, unit.head_row(p, row)) * p.headDim + d] = sum; });
}

// Blocks: units.
HC_DEVICE void walk_unit(const Attend& p, const Call& call) {
  const Unit unit = unit_of_block(p, call);
  if (unit.rows <= 0 || !pages_exist(unit.tile.table, 0, pages_of(unit.tile), p.pageCount)) return;
  if (unit.rows <= 4) walk<4>(p, call, unit);
  else walk<8>(p, call, unit);
}

// Blocks: units, chunks. A tile of which other pages do not exist is left out by who merges.
HC_DEVICE void split_unit(const Attend& p, const Call& call) {
  const Unit unit = unit_of_block(p, call);
  const int32_t chunk = static_cast<int32_t>(blockIdx.y), page = chunk * WARPS;
  if (unit.rows <= 0 || unit.seen(unit.rows - 1) <= chunk * CHUNK) return;
  if (!pages_exist(unit.tile.table, page, min(pages_of(unit.tile), page + WARPS), p.pageCount)) return;
  if (unit.rows <= 4) split<4>(p, call, unit, chunk);
  else split<8>(p, call, unit, chunk);
}

// Blocks: tiles and heads, tokens of a tile.
HC_DEVICE void merge_row(const Attend& p, const Call& call) {
  const int32_t head = static_cast<int32_t>(blockIdx.x) % p.heads, token = static_cast<int32_t>(blockIdx.y);
  const Tile tile = tile_of(p, call, static_cast<int32_t>(blockIdx.x) / p.heads);
  if (token >= tile.count || !pages_exist(tile.table, 0, pages_of(tile), p.pageCount)) return;
  const int32_t chunks = (tile.position + token) / CHUNK + 1;
  if (chunks > call.chunks) return;
  const Partial partial(p, call);
  const int64_t row = static_cast<int64_t>(tile.first + token) * p.heads + head;
  float* out = p.out;
  for (int d = static_cast<int>(threadIdx.x); d < p.headDim; d += THREADS) {
    Merged merged;
    float sum = 0.0f;
#pragma unroll 4
    for (int32_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t at = partial.at(chunk, row);
      const float2 softmax = partial.softmax[at];
      sum = merge(sum, partial.sums[at * p.headDim + d], merged.add(softmax.x, softmax.y));
    }
    put(call, out + row * p.headDim + d, sum / merged.total);
  }
}

}  // namespace
}  // namespace hc

using hc::Attend, hc::Call, hc::THREADS;

extern "C" __global__ void __launch_bounds__(THREADS, 4) attend_walk(const Attend p, const Call call) {
  if (!hc::begin(call)) return;
  hc::walk_unit(p, call);
  hc::finish(call);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) attend_split(const Attend p, const Call call) {
  if (!hc::begin(call)) return;
  hc::split_unit(p, call);
  hc::finish(call);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) attend_merge(const Attend p, const Call call) {
  if (!hc::begin(call)) return;
  hc::merge_row(p, call);
  hc::finish(call);
}
