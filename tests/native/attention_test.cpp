// Heads, rope and attention against plain loops in double precision, with pages anywhere in the cache; and equality, bit by
// bit, of every grouping of items, cut of the prompt, size of tiles, order of pages and mix of sequences.
#include <algorithm>
#include <numeric>

#include "../../ffi/simd/kernels_variant.h"

#include "check.h"
#include "merged.h"

using namespace hc;
using check::expect, check::mix, check::near, check::random32, check::uniforms;
namespace isa = hc::HC_ISA;

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Integers = std::vector<int32_t>;

struct Shape { int heads, kv_heads, head_dim; bool norm, rope; };

struct Sequence {
  int tokens;
  Floats q, k, v;
  Sequence(const Shape& s, int tokens_) : tokens(tokens_) {
    q = uniforms(static_cast<size_t>(tokens) * s.heads * s.head_dim, -3, 3);
    k = uniforms(static_cast<size_t>(tokens) * s.kv_heads * s.head_dim, -3, 3);
    v = uniforms(static_cast<size_t>(tokens) * s.kv_heads * s.head_dim);
  }
};

struct Weights { Floats q_norm, k_norm, cosines, sines; };

static void rotations(int context, int half, Floats& cosines, Floats& sines) {
  cosines.resize(static_cast<size_t>(context) * half), sines = cosines;
  for (int p = 0; p < context; p++) {
    for (int i = 0; i < half; i++) {
      const double angle = p * std::pow(10000.0, -static_cast<double>(i) / half);
      cosines[static_cast<size_t>(p) * half + i] = static_cast<float>(std::cos(angle));
      sines[static_cast<size_t>(p) * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

// How sequences go through: the most tokens of one in a step, tokens of a tile, the order of pages.
struct Way { int step, tile; bool item_by_item, shuffled; };

struct Result { Floats out, rotated; };

// The page table of sequences of these lengths, and how many pages there are. Places that need none are no pages.
static Integers page_table(const std::vector<Sequence>& sequences, int most_pages, int page_count, bool shuffled) {
  Integers order(page_count), table(sequences.size() * most_pages, INT32_MAX);
  std::iota(order.begin(), order.end(), 0);
  for (int i = page_count; shuffled && i-- > 1;) std::swap(order[i], order[random32() % (i + 1)]);
  int used = 0;
  for (size_t s = 0; s < sequences.size(); s++) {
    for (int page = 0; page * CACHE_PAGE < sequences[s].tokens; page++) table[s * most_pages + page] = order[used++];
  }
  return table;
}

template <class Args, class Kernel> static void run(Kernel kernel, const Args& args, int64_t items, bool one_by_one) {
  if (!one_by_one) return kernel(args, 0, items);
  for (int64_t item = items; item-- > 0;) kernel(args, item, item + 1);
}

// Whole sequences, side by side, through `heads` and `attention`.
static std::vector<Result> attend(const Shape& s, const std::vector<Sequence>& sequences, const Weights& weights, const Way& way) {
  const int q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  int context = 0;
  for (const Sequence& sequence : sequences) context = std::max(context, sequence.tokens);
  const int most_pages = (context + CACHE_PAGE - 1) / CACHE_PAGE + 1, page_count = static_cast<int>(sequences.size()) * most_pages;
  const Integers table = page_table(sequences, most_pages, page_count, way.shuffled);
  // What was not appended is NaN and must not be read into a result.
  std::vector<uint16_t> keys(static_cast<size_t>(page_count) * kv_width * CACHE_PAGE, 0x7E00), values = keys;
  Floats scratch(static_cast<size_t>(attention_scratch_floats(s.head_dim, context)), NAN);
  std::vector<Result> results(sequences.size());
  std::vector<int> done(sequences.size(), 0);
  uint64_t overflow = NO_OVERFLOW;
  for (bool more = true; more;) {
    more = false;
    Floats q, k, v;
    Integers positions, owners, tiles;
    for (size_t n = 0; n < sequences.size(); n++) {
      const Sequence& sequence = sequences[n];
      const int start = done[n], count = std::min(way.step, sequence.tokens - start), first = static_cast<int>(positions.size());
      const auto append = [&](Floats& to, const Floats& from, int width) {
        to.insert(to.end(), from.begin() + static_cast<int64_t>(start) * width, from.begin() + static_cast<int64_t>(start + count) * width);
      };
      append(q, sequence.q, q_width), append(k, sequence.k, kv_width), append(v, sequence.v, kv_width);
      for (int t = 0; t < count; t++) positions.push_back(start + t), owners.push_back(static_cast<int>(n));
      for (int t = 0; t < count; t += way.tile) tiles.push_back(first + t), tiles.push_back(std::min(way.tile, count - t));
      done[n] += count;
      more = more || done[n] < sequence.tokens;
    }
    const auto tokens = static_cast<int>(positions.size());
    Floats rotated(q.size(), -7), out(q.size(), -7);
    const Pages pages = {positions.data(), owners.data(), table.data(), page_count, static_cast<int>(sequences.size()), most_pages, context};
    const Cache cache = {keys.data(), values.data()};
    const Rotation rotation = {s.rope ? weights.cosines.data() : nullptr, s.rope ? weights.sines.data() : nullptr};
    const auto merged = [](const Floats& x, int width) { return Corrected{x.data(), {nullptr, nullptr}, width}; };
    const AppendArgs heads = {merged(q, q_width), merged(k, kv_width), merged(v, kv_width), s.norm ? weights.q_norm.data() : nullptr,
                             s.norm ? weights.k_norm.data() : nullptr, 1e-6f, 2e-6f, rotation, pages, s.heads, s.kv_heads, s.head_dim,
                             rotated.data(), cache, 0, &overflow};
    run(isa::append, heads, static_cast<int64_t>(tokens) * (s.heads + 2 * s.kv_heads), way.item_by_item);
    const AttendArgs attention = {rotated.data(), cache, tiles.data(), pages, tokens, s.heads, s.kv_heads, s.head_dim,
                                     1 / std::sqrt(static_cast<float>(s.head_dim)), out.data(), scratch.data()};
    run(isa::attend, attention, static_cast<int64_t>(tiles.size() / 2) * s.kv_heads, way.item_by_item);
    for (int t = 0; t < tokens; t++) {
      Result& result = results[owners[t]];
      result.out.insert(result.out.end(), out.begin() + static_cast<int64_t>(t) * q_width, out.begin() + static_cast<int64_t>(t + 1) * q_width);
      result.rotated.insert(result.rotated.end(), rotated.begin() + static_cast<int64_t>(t) * q_width, rotated.begin() + static_cast<int64_t>(t + 1) * q_width);
    }
  }
  expect(overflow == NO_OVERFLOW, "heads: no overflow");
  return results;
}

// One head of a token, in double.
static Doubles prepared(const Shape& s, const Weights& weights, const Floats& x, int width, int t, int head, const Floats& weight, double epsilon) {
  const int half = s.head_dim / 2;
  Doubles row(s.head_dim), turned(s.head_dim);
  double squares = 0;
  for (int i = 0; i < s.head_dim; i++) {
    row[i] = x[static_cast<size_t>(t) * width + head * s.head_dim + i];
    squares += row[i] * row[i];
  }
  if (s.norm) for (int i = 0; i < s.head_dim; i++) row[i] *= weight[i] / std::sqrt(squares / s.head_dim + epsilon);
  if (!s.rope) return row;
  for (int i = 0; i < half; i++) {
    const double c = weights.cosines[static_cast<size_t>(t) * half + i], n = weights.sines[static_cast<size_t>(t) * half + i];
    turned[i] = row[i] * c - row[i + half] * n, turned[i + half] = row[i + half] * c + row[i] * n;
  }
  return turned;
}

static double rounded(double x) { return isa::f16_to_f32(isa::f32_to_f16(static_cast<float>(x))); }

static void compare(const Shape& s, const Sequence& sequence, const Weights& weights, const Result& result) {
  const int q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  std::vector<Doubles> keys;
  for (int t = 0; t < sequence.tokens; t++) {
    for (int h = 0; h < s.kv_heads; h++) {
      keys.push_back(prepared(s, weights, sequence.k, kv_width, t, h, weights.k_norm, 2e-6));
      for (double& x : keys.back()) x = rounded(x);
    }
  }
  for (int t = 0; t < sequence.tokens; t++) {
    for (int h = 0; h < s.heads; h++) {
      const int kv = h / (s.heads / s.kv_heads);
      const Doubles query = prepared(s, weights, sequence.q, q_width, t, h, weights.q_norm, 1e-6);
      Doubles scores(t + 1), expected(s.head_dim);
      const size_t at = static_cast<size_t>(t) * q_width + h * s.head_dim;
      double top = -INFINITY, total = 0;
      for (int p = 0; p <= t; p++) {
        for (int i = 0; i < s.head_dim; i++) scores[p] += query[i] * keys[static_cast<size_t>(p) * s.kv_heads + kv][i];
        scores[p] /= std::sqrt(s.head_dim);
        top = std::fmax(top, scores[p]);
      }
      for (double& w : scores) total += w = std::exp(w - top);
      for (int i = 0; i < s.head_dim; i++) {
        near(result.rotated[at + i], query[i], 4e-6, "heads: query");
        for (int p = 0; p <= t; p++) {
          expected[i] += scores[p] / total * rounded(sequence.v[static_cast<size_t>(p) * kv_width + kv * s.head_dim + i]);
        }
        // A key that lies on the border of two f16 values may have been rounded to the other one.
        near(result.out[at + i], expected[i], s.norm ? 2e-3 : 1e-4, "attention");
      }
    }
  }
}

static bool same(const Result& a, const Result& b) {
  return a.out.size() == b.out.size() && std::memcmp(a.out.data(), b.out.data(), a.out.size() * 4) == 0 && a.rotated == b.rotated;
}

static void attentions() {
  const Shape shapes[] = {{3, 1, 64, false, true}, {4, 2, 32, true, true}, {8, 4, 128, true, true}, {2, 2, 20, false, true},
                          {7, 1, 36, true, false}, {9, 1, 16, false, true}, {1, 1, 4, false, false}, {5, 1, 100, true, true}};
  for (const Shape& s : shapes) {
    const int tokens = 2 * CACHE_PAGE + 9;  // crosses a page's end twice
    const std::vector<Sequence> one = {Sequence(s, tokens)};
    Weights weights = {uniforms(s.head_dim, 0.5, 2), uniforms(s.head_dim, 0.5, 2), {}, {}};
    rotations(tokens, s.head_dim / 2, weights.cosines, weights.sines);
    const Result whole = attend(s, one, weights, {tokens, ATTENTION_TILE, false, false})[0];
    mix(whole.out), mix(whole.rotated);
    compare(s, one[0], weights, whole);
    for (const Way& way : {Way{1, 1, false, true}, {3, 8, true, true}, {16, 5, false, true}, {tokens, 1, true, true}, {CACHE_PAGE, 8, true, false}}) {
      expect(same(attend(s, one, weights, way)[0], whole), "attention: grouping", way.step);
    }
    // Beside others, which begin at pages and lengths of their own.
    const std::vector<Sequence> several = {Sequence(s, 5), one[0], Sequence(s, CACHE_PAGE)};
    const std::vector<Result> beside = attend(s, several, weights, {20, 8, false, true});
    expect(same(beside[1], whole), "attention: beside other sequences");
    compare(s, several[0], weights, beside[0]), compare(s, several[2], weights, beside[2]);
    mix(beside[0].out), mix(beside[2].out);
  }
}

// A step of 5 tokens at position 60, over a page's end, in the second of two sequences.
struct Small {
  static constexpr int HEADS = 4, KV_HEADS = 2, HEAD_DIM = 24, TOKENS = 5, PAGES = 3;
  MergedValue q{TOKENS, HEADS * HEAD_DIM, 112, 2}, k{TOKENS, KV_HEADS * HEAD_DIM, 64, 1}, v{TOKENS, KV_HEADS * HEAD_DIM, 64, 2, 1};
  std::vector<uint16_t> keys = std::vector<uint16_t>(PAGES * KV_HEADS * HEAD_DIM * CACHE_PAGE, 0x1234), values = keys;
  Integers positions{60, 61, 62, 63, 64}, sequences = Integers(TOKENS, 1), table{-1, -1, 2, 0};
  Floats out = Floats(TOKENS * HEADS * HEAD_DIM, -7);
  uint64_t overflow = NO_OVERFLOW;

  Pages pages() const { return {positions.data(), sequences.data(), table.data(), PAGES, 2, 2, 100}; }
  void heads() {
    const AppendArgs args = {q.merged, k.merged, v.merged, nullptr, nullptr, 0, 0, {}, pages(), HEADS, KV_HEADS, HEAD_DIM,
                            out.data(), {keys.data(), values.data()}, 3, &overflow};
    isa::append(args, 0, TOKENS * (HEADS + 2 * KV_HEADS));
  }
  void attention(int32_t first, int32_t count) {
    const int32_t tile[] = {first, count};
    Floats queries(out.size(), 0.5f), scratch(static_cast<size_t>(attention_scratch_floats(HEAD_DIM, 100)), NAN);
    isa::attend({queries.data(), {keys.data(), values.data()}, tile, pages(), TOKENS, HEADS, KV_HEADS, HEAD_DIM, 1, out.data(), scratch.data()}, 0, KV_HEADS);
  }
  bool untouched() const { return std::all_of(out.begin(), out.end(), [](float x) { return x == -7; }); }
};

static void merged_heads() {  // deltas of q, k and v are added before anything else
  Small step;
  step.heads();
  mix(step.out), mix(step.keys), mix(step.values);
  expect(step.overflow == NO_OVERFLOW, "merged heads: no overflow");
  for (int t = 0; t < Small::TOKENS; t++) {
    for (int i = 0; i < Small::HEADS * Small::HEAD_DIM; i++) near(step.out[t * Small::HEADS * Small::HEAD_DIM + i], step.q.at(t, i), 2e-6, "merged q");
    const int page = t < 4 ? 2 : 0, slot = (60 + t) % CACHE_PAGE;
    for (int h = 0; h < Small::KV_HEADS; h++) {
      for (int d = 0; d < Small::HEAD_DIM; d++) {
        const int head = (page * Small::KV_HEADS + h) * CACHE_PAGE * Small::HEAD_DIM;
        const double key = isa::f16_to_f32(step.keys[head + (slot / 16 * Small::HEAD_DIM + d) * 16 + slot % 16]);
        const double value = isa::f16_to_f32(step.values[head + slot * Small::HEAD_DIM + d]);
        near(key, step.k.at(t, h * Small::HEAD_DIM + d), 2.1e-3, "merged k");
        near(value, step.v.at(t, h * Small::HEAD_DIM + d), 2.1e-3, "merged v");
      }
    }
  }
  size_t written = 0;
  for (const uint16_t half : step.keys) written += half != 0x1234;
  for (const uint16_t half : step.values) written += half != 0x1234;
  expect(written == 2 * Small::TOKENS * Small::KV_HEADS * Small::HEAD_DIM, "heads: nothing else is written", static_cast<double>(written));
}

static void overflows() {  // the first that f16 does not hold, in the order of tokens, keys before values
  const auto with = [](int token, bool value, float x) {
    Small step;
    (value ? step.v : step.k).parts[0][token * 64 + 31] = x;
    step.heads();
    return step.overflow;
  };
  expect(with(2, false, 65000) == NO_OVERFLOW && with(2, true, -65000) == NO_OVERFLOW, "heads: large, but f16 holds it");
  for (const float x : {65530.0f, -1e30f, INFINITY, -INFINITY, NAN}) {
    expect(with(2, false, x) == overflow_of(3, 2, CacheValue::key), "heads: overflow of a key", x);
    expect(with(4, true, x) == overflow_of(3, 4, CacheValue::value), "heads: overflow of a value", x);
  }
}

// Numbers that name no place: what they belong to is left out, and nothing outside the operands is touched.
static void nowhere() {
  for (const int32_t wrong : {-1, 100, INT32_MAX, INT32_MIN}) {
    for (const int which : {0, 1, 2}) {
      Small step;
      (which == 0 ? step.positions[4] : which == 1 ? step.sequences[4] : step.table[3]) = wrong;
      step.heads();
      const auto zeroth = static_cast<int64_t>(Small::KV_HEADS) * CACHE_PAGE * Small::HEAD_DIM;
      const auto untouched = [&](const std::vector<uint16_t>& x) { return std::all_of(x.begin(), x.begin() + zeroth, [](uint16_t half) { return half == 0x1234; }); };
      expect(untouched(step.keys) && untouched(step.values), "heads: a token that stands nowhere", wrong);
      const float before = step.out[Small::HEADS * Small::HEAD_DIM * 4];
      expect(which == 0 ? before == -7 : before != -7, "heads: its query", before);

      Small tile;
      tile.heads();
      (which == 0 ? tile.positions[0] : which == 1 ? tile.sequences[0] : tile.table[2]) = wrong;
      std::fill(tile.out.begin(), tile.out.end(), -7);
      tile.attention(0, 5);
      expect(tile.untouched(), "attention: a tile that stands nowhere", wrong);
    }
    Small tile;
    tile.attention(wrong, 1), tile.attention(0, wrong), tile.attention(wrong, wrong);
    tile.attention(3, 3), tile.attention(0, 0), tile.attention(0, ATTENTION_TILE + 1);
    tile.positions[0] = 96;  // ends beyond the context
    tile.attention(0, 5);
    expect(tile.untouched(), "attention: no such tile", wrong);
  }
}

static void ropes() {
  for (const int head_dim : {4, 20, 64, 100}) {
    const int heads = 3, tokens = 4, width = heads * head_dim, context = 50, half = head_dim / 2;
    MergedValue x(tokens, width, width + 5, 2);
    Weights weights;
    rotations(context, half, weights.cosines, weights.sines);
    const int32_t positions[] = {49, 0, 7, 50};  // the last lies beyond
    Floats out(tokens * width, -7), again = out;
    RopeArgs args = {x.merged, positions, {weights.cosines.data(), weights.sines.data()}, context, heads, head_dim, out.data()};
    run(isa::rope, args, tokens * heads, false);
    args.out = again.data();
    run(isa::rope, args, tokens * heads, true);
    expect(out == again, "rope: grouping");
    mix(out);
    for (int t = 0; t < tokens; t++) {
      for (int i = 0; i < width; i++) {
        const int d = i % head_dim, pair = d < half ? i + half : i - half;
        if (positions[t] >= context) {
          expect(out[t * width + i] == -7, "rope: beyond the context");
          continue;
        }
        const double c = weights.cosines[positions[t] * half + d % half], n = weights.sines[positions[t] * half + d % half];
        near(out[t * width + i], x.at(t, i) * c + (d < half ? -1 : 1) * x.at(t, pair) * n, 4e-6, "rope");
      }
    }
  }
}

int main() {
  attentions();
  merged_heads();
  overflows();
  nowhere();
  ropes();
  return check::finish("attention_test " HC_ISA_TEXT);
}
