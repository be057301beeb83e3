// Heads (norm, rotation, the key-value cache) and attention over the cache's pages.
//
// Attention computes a few query rows (token, head) of one key-value head at a time, so that they share the loads and
// the conversion of keys and values. Every row's result is a fixed sequence of operations of its own: a score sums
// over the dimensions in order, in the lane of its position; the softmax's sum runs over blocks of 16 positions, then
// one tree; an output sums over exactly the row's positions in order, in the lane of its dimension. So the result
// does not depend on which rows are computed together.
#include <array>
#include <atomic>
#include <utility>

#include "kernels_variant.h"
#include "rows.h"

namespace hc::HC_ISA {
namespace {

constexpr int ROWS = ATTENTION_ROWS;

// How many accumulators the registers hold, beside operands.
#if HC_ISA_NUMBER >= HC_IS_avx512
constexpr int ACCUMULATORS = 16, MOST_ROWS = 8;
#elif HC_ISA_NUMBER == HC_IS_neon
constexpr int ACCUMULATORS = 6, MOST_ROWS = 6;
#elif HC_ISA_NUMBER == HC_IS_avx2
constexpr int ACCUMULATORS = 6, MOST_ROWS = 4;
#else
constexpr int ACCUMULATORS = 2, MOST_ROWS = 2;
#endif
static_assert(MOST_ROWS <= ROWS);

constexpr int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

constexpr int PAGE_BLOCKS = CACHE_PAGE / LANES;
static_assert(CACHE_PAGE % LANES == 0);

// The pages of one sequence, of which one key-value head is read. Elements of f16; keys and values lie alike.
struct HeadPages {
  const int32_t* table;
  int64_t page_size, head;
  int64_t operator[](int page) const { return table[page] * page_size + head; }
};

// Scores of R rows lie as [block][R][16 positions], queries as [dimension][R].

// scores = scale * q k for B blocks of 16 positions, each [head_dim][16].
template <int R, int B>
HC_INLINE void score_blocks(const uint16_t* const (&k)[B], const float* q, int head_dim, float scale, float* scores) {
  F32x16 sums[B][R];
  HC_UNROLL_ALL
  for (int b = 0; b < B; b++) {
    HC_UNROLL_ALL
    for (int r = 0; r < R; r++) sums[b][r] = zero();
  }
  for (int d = 0; d < head_dim; d++) {
    HC_UNROLL_ALL
    for (int b = 0; b < B; b++) {
      const F32x16 keys = load_f16(k[b] + static_cast<int64_t>(d) * LANES);
      HC_UNROLL_ALL
      for (int r = 0; r < R; r++) sums[b][r] = fma(set1(q[d * R + r]), keys, sums[b][r]);
    }
  }
  const F32x16 factor = set1(scale);
  HC_UNROLL_ALL
  for (int b = 0; b < B; b++) {
    HC_UNROLL_ALL
    for (int r = 0; r < R; r++) store(scores + (b * R + r) * LANES, mul(sums[b][r], factor));
  }
}

// Replaces one row's scores of `positions` positions by exp(score - max), later lanes of the last block by zeros;
// gives their sum.
template <int R> HC_INLINE float soften(float* scores, int positions) {
  const int blocks = (positions + LANES - 1) / LANES;
  float* last = scores + (blocks - 1) * R * LANES;
  for (int lane = positions - (blocks - 1) * LANES; lane < LANES; lane++) last[lane] = -__builtin_inff();
  F32x16 top = load(scores);
  for (int b = 1; b < blocks; b++) top = max(top, load(scores + b * R * LANES));
  const F32x16 highest = set1(reduce_max(top));
  F32x16 total = zero();
  for (int b = 0; b < blocks; b++) {
    const F32x16 weight = exp(sub(load(scores + b * R * LANES), highest));
    total = add(total, weight);
    store(scores + b * R * LANES, weight);
  }
  return sum(total);
}

// out[r][offset..] += sum over positions [from, to) of weight * v, in order, for D vectors of dimensions; `v` is the cache
// from the first of them on. `weights` is the first of R rows, of STRIDE beside each other. Not WHOLE: D is 1 and only
// `lanes` dimensions exist, beyond which nothing may be read.
template <int R, int STRIDE, int D, bool WHOLE>
HC_INLINE void add_values(const uint16_t* v, const HeadPages& pages, int head_dim, const float* weights, int from, int to,
                          float* const* out, int offset, int lanes) {
  F32x16 sums[R][D];
  HC_UNROLL_ALL
  for (int r = 0; r < R; r++) {
    HC_UNROLL_ALL
    for (int d = 0; d < D; d++) {
      sums[r][d] = from == 0 ? zero() : load_n(out[r] + offset + d * LANES, WHOLE ? LANES : lanes);
    }
  }
  for (int t = from; t < to;) {
    const int page = t / CACHE_PAGE, end = to < (page + 1) * CACHE_PAGE ? to : (page + 1) * CACHE_PAGE;
    const uint16_t* row = v + pages[page] + static_cast<int64_t>(t % CACHE_PAGE) * head_dim;
    for (; t < end; t++, row += head_dim) {
      const float* weight = weights + t / LANES * (STRIDE * LANES) + t % LANES;
      F32x16 values[D];
      HC_UNROLL_ALL
      for (int d = 0; d < D; d++) values[d] = WHOLE ? load_f16(row + d * LANES) : load_f16_n(row, lanes);
      HC_UNROLL_ALL
      for (int r = 0; r < R; r++) {
        const F32x16 w = set1(weight[r * LANES]);
        HC_UNROLL_ALL
        for (int d = 0; d < D; d++) sums[r][d] = fma(w, values[d], sums[r][d]);
      }
    }
  }
  HC_UNROLL_ALL
  for (int r = 0; r < R; r++) {
    HC_UNROLL_ALL
    for (int d = 0; d < D; d++) store_n(out[r] + offset + d * LANES, WHOLE ? LANES : lanes, sums[r][d]);
  }
}

template <int R, int STRIDE>
HC_INLINE void add_all_values(const uint16_t* v, const HeadPages& pages, int head_dim, const float* weights, int from, int to,
                              float* const* out) {
  constexpr int D = clamp(ACCUMULATORS / R, 1, 8);
  int d = 0;
  for (; d + D * LANES <= head_dim; d += D * LANES) {
    add_values<R, STRIDE, D, true>(v + d, pages, head_dim, weights, from, to, out, d, LANES);
  }
  for (; d + LANES <= head_dim; d += LANES) {
    add_values<R, STRIDE, 1, true>(v + d, pages, head_dim, weights, from, to, out, d, LANES);
  }
  if (d < head_dim) add_values<R, STRIDE, 1, false>(v + d, pages, head_dim, weights, from, to, out, d, head_dim - d);
}

// Query rows that are computed together: R pairs of a token (ascending) and a head of the same key-value head.
struct Rows {
  const float* q[ROWS];
  float* out[ROWS];
  int positions[ROWS];  // each row sees [0, positions)
};

template <int R, int B>
HC_INLINE void score_pages(const uint16_t* cache, const HeadPages& pages, int block, const float* q, int head_dim, float scale, float* scores) {
  const uint16_t* k[B];
  HC_UNROLL_ALL
  for (int b = 0; b < B; b++) {
    k[b] = cache + pages[(block + b) / PAGE_BLOCKS] + static_cast<int64_t>((block + b) % PAGE_BLOCKS) * head_dim * LANES;
  }
  score_blocks<R, B>(k, q, head_dim, scale, scores + block * R * LANES);
}

template <int R>
void attend(const Rows& rows, const Cache& cache, const HeadPages& pages, int head_dim, float scale, float* scratch) {
  float* q = scratch;
  for (int d = 0; d < head_dim; d++) {
    for (int r = 0; r < R; r++) q[d * R + r] = rows.q[r][d];
  }
  float* scores = scratch + (ROWS * head_dim + LANES - 1) / LANES * LANES;
  const int blocks = (rows.positions[R - 1] + LANES - 1) / LANES;
  constexpr int B = clamp(ACCUMULATORS / R, 1, 4);
  int b = 0;
  for (; b + B <= blocks; b += B) score_pages<R, B>(cache.k, pages, b, q, head_dim, scale, scores);
  for (; b < blocks; b++) score_pages<R, 1>(cache.k, pages, b, q, head_dim, scale, scores);
  float sums[R];
  for (int r = 0; r < R; r++) sums[r] = soften<R>(scores + r * LANES, rows.positions[r]);
  const int shared = rows.positions[0];
  add_all_values<R, R>(cache.v, pages, head_dim, scores, 0, shared, rows.out);
  for (int r = 0; r < R; r++) {
    if (rows.positions[r] > shared) {
      add_all_values<1, R>(cache.v, pages, head_dim, scores + r * LANES, shared, rows.positions[r], rows.out + r);
    }
    for (int d = 0; d < head_dim; d += LANES) {
      const int lanes = head_dim - d < LANES ? head_dim - d : LANES;
      store_n(rows.out[r] + d, lanes, div(load_n(rows.out[r] + d, lanes), set1(sums[r])));
    }
  }
}

using Attend = void (*)(const Rows&, const Cache&, const HeadPages&, int, float, float*);
template <int... R> constexpr auto every_attend(std::integer_sequence<int, R...>) {
  return std::array<Attend, sizeof...(R)>{attend<R + 1>...};
}
constexpr auto ATTEND = every_attend(std::make_integer_sequence<int, MOST_ROWS>());

// What a head becomes on its way: normed where there is a weight, turned where there are cosines (of its position).
struct Turn {
  const float* weight;
  float epsilon;
  const float *cosines, *sines;
  Turn(const float* weight_, float epsilon_, const Rotation& rotation, int64_t position, int head_dim)
      : weight(weight_), epsilon(epsilon_), cosines(nullptr), sines(nullptr) {
    if (!rotation.cosines) return;
    cosines = rotation.cosines + position * (head_dim / 2), sines = rotation.sines + position * (head_dim / 2);
  }
};

// One head of a token to write(i, lanes, value).
template <class Write> HC_INLINE void turn_head(const Turn& turn, int head_dim, Row read, Write write) {
  const int half = head_dim / 2;
  const float* weight = turn.weight;
  F32x16 inverse = zero();
  if (weight) {
    F32x16 squares = zero();
    each_vector(head_dim, [&](int i, auto lanes) {
      const F32x16 value = read(i, lanes);
      squares = fma(value, value, squares);
    });
    inverse = set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(head_dim) + turn.epsilon));
  }
  auto normalised = [&](int i, auto lanes) {
    const F32x16 value = read(i, lanes);
    return weight ? mul(load_n(weight + i, lanes), mul(value, inverse)) : value;
  };
  if (!turn.cosines) {
    each_vector(head_dim, [&](int i, auto lanes) { write(i, lanes, normalised(i, lanes)); });
    return;
  }
  each_vector(half, [&](int i, auto lanes) {
    const F32x16 cosine = load_n(turn.cosines + i, lanes), sine = load_n(turn.sines + i, lanes);
    const F32x16 a = normalised(i, lanes), b = normalised(i + half, lanes);
    write(i, lanes, fma(a, cosine, neg(mul(b, sine))));
    write(i + half, lanes, fma(b, cosine, mul(a, sine)));
  });
}

HC_INLINE bool within(int32_t number, int32_t count) { return number >= 0 && number < count; }

// The page of the cache that holds a token, -1 where there is none.
HC_INLINE int64_t page_of(const Pages& pages, int64_t token) {
  const int32_t sequence = pages.sequences[token], position = pages.positions[token];
  if (!within(sequence, pages.most_sequences) || !within(position, pages.context)) return -1;
  const int32_t page = pages.table[static_cast<int64_t>(sequence) * pages.most_pages + position / CACHE_PAGE];
  return within(page, pages.page_count) ? page : -1;
}

// The pages of a tile's tokens and of all positions before them; null where the tile is not of this step, or one of these
// lies outside the cache.
const int32_t* pages_of(const AttendArgs& args, int32_t first, int32_t count) {
  const Pages& pages = args.pages;
  if (!within(first, args.tokens) || count < 1 || count > ATTENTION_TILE || count > args.tokens - first) return nullptr;
  const int32_t sequence = pages.sequences[first], position = pages.positions[first];
  if (!within(sequence, pages.most_sequences) || !within(position, pages.context) || count > pages.context - position) return nullptr;
  const int32_t* table = pages.table + static_cast<int64_t>(sequence) * pages.most_pages;
  for (int page = 0; page <= (position + count - 1) / CACHE_PAGE; page++) {
    if (!within(table[page], pages.page_count)) return nullptr;
  }
  return table;
}

// Magnitudes, as the bits of floats, from which on f16 rounds to infinity: 65520. Those of infinities and NaNs are larger.
constexpr int32_t TOO_LARGE = 0x477FF000;

HC_INLINE void check_f16(const AppendArgs& args, int64_t token, CacheValue what, I32x16 largest) {
  if (reduce_max(largest) < TOO_LARGE) return;
  std::atomic_ref<uint64_t> first(*args.overflow);
  const uint64_t found = overflow_of(args.layer, token, what);
  for (uint64_t seen = first.load(); found < seen && !first.compare_exchange_weak(seen, found);) {}
}

}  // namespace

void rope(const RopeArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; item++) {
    const int64_t token = item / args.heads, head = item % args.heads;
    const int32_t position = args.positions[token];
    if (!within(position, args.context)) continue;
    float* out = args.out + item * args.head_dim;
    turn_head(Turn(nullptr, 0, args.rotation, position, args.head_dim), args.head_dim, Row(args.x, token, head * args.head_dim),
              [&](int i, auto lanes, F32x16 value) { store_n(out + i, lanes, value); });
  }
}

void append(const AppendArgs& args, int64_t begin, int64_t end) {
  const int64_t head_dim = args.head_dim, per_token = args.heads + 2 * args.kv_heads;
  for (int64_t item = begin; item < end; item++) {
    const int64_t token = item / per_token;
    const int32_t position = args.pages.positions[token];
    if (!within(position, args.pages.context)) continue;
    int64_t head = item % per_token;
    if (head < args.heads) {
      float* out = args.out + (token * args.heads + head) * head_dim;
      turn_head(Turn(args.q_norm, args.q_epsilon, args.rotation, position, args.head_dim), args.head_dim,
                Row(args.q, token, head * head_dim), [&](int i, auto lanes, F32x16 value) { store_n(out + i, lanes, value); });
      continue;
    }
    head -= args.heads;
    const int64_t page = page_of(args.pages, token), slot = position % CACHE_PAGE;
    if (page < 0) continue;
    I32x16 largest = zero_i32();
    if (head < args.kv_heads) {
      uint16_t* out = args.cache.k + ((page * args.kv_heads + head) * CACHE_PAGE + slot / LANES * LANES) * head_dim + slot % LANES;
      turn_head(Turn(args.k_norm, args.k_epsilon, args.rotation, position, args.head_dim), args.head_dim,
                Row(args.k, token, head * head_dim), [&](int i, auto lanes, F32x16 value) {
                  largest = max(largest, as_i32(abs(value)));
                  uint16_t halves[LANES];
                  store_f16(halves, value);
                  for (int d = 0; d < lanes; d++) out[(i + d) * LANES] = halves[d];
                });
      check_f16(args, token, CacheValue::key, largest);
      continue;
    }
    head -= args.kv_heads;
    uint16_t* out = args.cache.v + ((page * args.kv_heads + head) * CACHE_PAGE + slot) * head_dim;
    const Row read(args.v, token, head * head_dim);
    each_vector(args.head_dim, [&](int i, auto lanes) {
      const F32x16 value = read(i, lanes);
      largest = max(largest, as_i32(abs(value)));
      store_f16_n(out + i, lanes, value);
    });
    check_f16(args, token, CacheValue::value, largest);
  }
}

void attend(const AttendArgs& args, int64_t begin, int64_t end) {
  const int head_dim = args.head_dim, group = args.heads / args.kv_heads;
  const int64_t head_size = int64_t{CACHE_PAGE} * head_dim;
  for (int64_t item = begin; item < end; item++) {
    const int64_t kv_head = item % args.kv_heads;
    const int32_t* tile = args.tiles + item / args.kv_heads * 2;
    const int first = tile[0], tokens = tile[1];
    const int32_t* table = pages_of(args, first, tokens);
    if (!table) continue;
    const HeadPages pages = {table, args.kv_heads * head_size, kv_head * head_size};
    const int before = args.pages.positions[first];
    for (int start = 0, count = tokens * group; start < count; start += MOST_ROWS) {
      const int n = count - start < MOST_ROWS ? count - start : MOST_ROWS;
      Rows rows;
      for (int r = 0; r < n; r++) {
        const int token = (start + r) / group;
        const int64_t head = kv_head * group + (start + r) % group;
        const int64_t at = (static_cast<int64_t>(first + token) * args.heads + head) * head_dim;
        rows.q[r] = args.q + at, rows.out[r] = args.out + at, rows.positions[r] = before + token + 1;
      }
      ATTEND[static_cast<size_t>(n - 1)](rows, args.cache, pages, head_dim, args.scale, args.scratch);
    }
  }
}

}  // namespace hc::HC_ISA
