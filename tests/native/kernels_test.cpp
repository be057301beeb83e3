// Elementwise, attention and sampling kernels against plain loops in double precision, on ragged shapes and odd
// values; and equality, bit by bit, of every grouping of items and of steps.
#include "../../ffi/simd/kernels_variant.h"

#include "check.h"

using namespace hc;
using check::expect, check::mix, check::near, check::random32, check::uniform, check::uniforms;
namespace isa = hc::HC_ISA;

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Quantised rows with memory of their own; -128 and -1 mark what no kernel wrote.
struct Quantized {
  std::vector<int8_t> codes;
  Floats scales;
  std::vector<int32_t> sums;
  QuantizedRows rows;
  Quantized(int tokens, int width, int group) {
    int groups = group ? (width + group - 1) / group : 0, stride = (width + 127) / 128 * 128;
    codes.assign(static_cast<size_t>(tokens) * stride, -128);
    scales.assign(static_cast<size_t>(tokens) * groups, -1);
    sums.assign(static_cast<size_t>(tokens) * groups, -1);
    rows = {codes.data(), scales.data(), sums.data(), group, groups, stride};
  }
  void verify(const float* x, int tokens, int width) const {
    mix(codes), mix(scales), mix(sums);
    if (!rows.group) return;
    for (int t = 0; t < tokens; t++) {
      const int8_t* row = &codes[static_cast<size_t>(t) * rows.stride];
      for (int i = width; i < rows.stride; i++) expect(row[i] == 0, "padding code", row[i]);
      for (int g = 0; g < rows.groups; g++) {
        float top = 0, scale = scales[static_cast<size_t>(t) * rows.groups + g];
        bool finite = true;
        int total = 0;
        for (int i = g * rows.group; i < width && i < (g + 1) * rows.group; i++) {
          float value = x[static_cast<size_t>(t) * width + i];
          finite = finite && std::isfinite(value);
          top = std::fmax(top, std::fabs(value));
          total += row[i];
        }
        if (!finite) {
          expect(std::isnan(scale), "scale of a group with NaN or infinity", scale);
          continue;
        }
        expect(scale == (top < 0x1p-100f ? 0 : top / 127), "scale", scale, top / 127);
        expect(sums[static_cast<size_t>(t) * rows.groups + g] == total, "sum of codes");
        for (int i = g * rows.group; i < width && i < (g + 1) * rows.group; i++) {
          float value = x[static_cast<size_t>(t) * width + i];
          expect(row[i] >= -127, "code of at least -127", row[i]);
          near(row[i] * static_cast<double>(scale), value, top / 254.0 * 1.0001 + 1e-30, "dequantised");
        }
      }
    }
  }
};

// A merged value in memory of its own with 0, 1 or 2 deltas.
struct MergedValue {
  Floats parts[3];
  Merged merged;
  int stride;
  MergedValue(int tokens, int width, int stride_, int deltas, int only = -1) : stride(stride_) {
    for (Floats& part : parts) part = uniforms(static_cast<size_t>(tokens) * stride, -2, 2);
    (void)width;
    merged = {parts[0].data(), {deltas > 0 ? parts[1].data() : nullptr, deltas > 1 ? parts[2].data() : nullptr}, stride};
    if (only == 1) merged.delta[0] = nullptr, merged.delta[1] = parts[2].data();
  }
  double at(int t, int i) const {
    size_t k = static_cast<size_t>(t) * stride + i;
    double delta = 0;
    for (int d = 0; d < 2; d++) if (merged.delta[d]) delta += merged.delta[d][k];
    return merged.base[k] + delta;
  }
};

static void norms() {
  for (int width : {4, 16, 20, 32, 64, 576, 1000, 1024, 1030}) {
    for (int group : {0, 32, 64, 128}) {
      for (int deltas = -1; deltas <= 3; deltas++) {  // -1: nothing merged; 3: only the second delta
        const int tokens = 3;
        MergedValue value(tokens, width, width + 16, deltas == 3 ? 2 : deltas, deltas == 3 ? 1 : -1);
        if (deltas < 0) value.merged.base = nullptr;
        Floats residual = uniforms(static_cast<size_t>(tokens) * width, -3, 3), weight = uniforms(width, 0.5, 2);
        Floats total(residual.size(), -7), out(residual.size(), -7);
        Quantized quantized(tokens, width, group);
        NormArgs args = {residual.data(), value.merged, weight.data(), 1e-5f, width, total.data(), out.data(), quantized.rows};
        isa::norm(args, 0, tokens);
        mix(total), mix(out);
        for (int t = 0; t < tokens; t++) {
          Doubles sum(width);
          double squares = 0;
          for (int i = 0; i < width; i++) {
            sum[i] = residual[static_cast<size_t>(t) * width + i] + (deltas < 0 ? 0 : value.at(t, i));
            squares += sum[i] * sum[i];
          }
          for (int i = 0; i < width; i++) {
            size_t k = static_cast<size_t>(t) * width + i;
            near(total[k], sum[i], 2e-6, "norm: sum");
            near(out[k], weight[i] * sum[i] / std::sqrt(squares / width + 1e-5), 3e-6, "norm: out");
          }
        }
        quantized.verify(out.data(), tokens, width);
        // In place, without `sum`, and one token at a time: the same bits.
        Floats again(out.size()), in_place = residual;
        Quantized requantized(tokens, width, group);
        args.out = again.data(), args.sum = nullptr, args.quantized = requantized.rows;
        for (int t = tokens; t-- > 0;) isa::norm(args, t, t + 1);
        expect(again == out && requantized.codes == quantized.codes, "norm: grouping");
        args.residual = in_place.data(), args.sum = in_place.data();
        isa::norm(args, 0, tokens);
        expect(again == out && in_place == total, "norm: in place");
      }
    }
  }
}

static void quantization() {
  for (int width : {1, 20, 32, 100, 128, 576, 1536}) {
    for (int group : {32, 64, 128}) {
      const int tokens = 4;
      Floats x = uniforms(static_cast<size_t>(tokens) * width, -5, 5);
      for (int i = 0; i < width && i < group; i++) x[i] = 0;                    // a group of zeros
      for (int i = 0; i < width; i++) x[width + i] *= 1e-36f;                   // tiny: counts as zero
      for (int i = 0; i < width; i++) x[2 * width + i] *= 6e37f;                // huge
      x[3 * width] = NAN;
      if (width > 1) x[3 * width + width - 1] = -INFINITY;
      Quantized quantized(tokens, width, group);
      isa::quantize({x.data(), width, quantized.rows}, 0, tokens);
      quantized.verify(x.data(), tokens, width);
    }
  }
  // Halves round to even.
  Floats x(32);
  for (int i = 0; i < 32; i++) x[i] = i % 2 ? i - 15.5f : 127;
  Quantized quantized(1, 32, 32);
  isa::quantize({x.data(), 32, quantized.rows}, 0, 1);
  for (int i = 1; i < 32; i += 2) expect(quantized.codes[i] == std::nearbyint(x[i]), "ties to even", quantized.codes[i], x[i]);
}

static void products() {
  for (int width : {12, 64, 96, 512, 576, 1536, 3072}) {
    for (int deltas : {0, 1, 2}) {
      const int tokens = 3, chunks = (width + SILU_CHUNK - 1) / SILU_CHUNK;
      MergedValue gate(tokens, width, width + 32, deltas), up(tokens, width, width + 48, 2 - deltas);
      gate.parts[0][0] = -200, gate.parts[0][1] = 200, gate.parts[0][2] = -90;
      Floats out(static_cast<size_t>(tokens) * width, -7), again = out;
      Quantized quantized(tokens, width, 64), requantized(tokens, width, 64);
      SiluMulArgs args = {gate.merged, up.merged, width, chunks, out.data(), quantized.rows};
      isa::silu_mul(args, 0, static_cast<int64_t>(tokens) * chunks);
      mix(out);
      for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < width; i++) {
          double g = gate.at(t, i), expected = g / (1 + std::exp(-g)) * up.at(t, i);
          near(out[static_cast<size_t>(t) * width + i], expected, 2e-6 * (1 + std::fabs(expected)), "silu_mul");
        }
      }
      quantized.verify(out.data(), tokens, width);
      args.out = again.data(), args.quantized = requantized.rows;
      for (int64_t item = static_cast<int64_t>(tokens) * chunks; item-- > 0;) isa::silu_mul(args, item, item + 1);
      expect(again == out && requantized.codes == quantized.codes && requantized.sums == quantized.sums, "silu_mul: grouping");

      isa::elementwise({Elementwise::add, gate.merged, up.merged, width, out.data()}, 0, tokens), mix(out);
      for (int i = 0; i < width; i++) near(out[width + i], gate.at(1, i) + up.at(1, i), 4e-6, "add");
      isa::elementwise({Elementwise::mul, gate.merged, up.merged, width, out.data()}, 0, tokens), mix(out);
      for (int i = 0; i < width; i++) near(out[width + i], gate.at(1, i) * up.at(1, i), 2e-5, "mul");
      isa::elementwise({Elementwise::silu, gate.merged, {}, width, out.data()}, 0, tokens), mix(out);
      for (int i = 0; i < width; i++) near(out[width + i], gate.at(1, i) / (1 + std::exp(-gate.at(1, i))), 2e-6, "silu");
    }
  }
}

static void embeddings() {
  struct Kind { Format format; int bits, header; };
  for (Kind kind : {Kind{Format::bf16, 16, 0}, {Format::q8, 8, 32}, {Format::q4, 4, 64}, {Format::q3, 3, 64}, {Format::q2, 2, 64}}) {
    for (int group : {32, 64, 128}) {
      for (int width : {20, 64, 200}) {
        const int rows = 37, unit = kind.bits == 16 ? 2 : group, groups = (width + unit - 1) / unit;
        const size_t tile = kind.header + 2 * unit * kind.bits;
        std::vector<uint8_t> packed(static_cast<size_t>((rows + 15) / 16) * groups * tile);
        Doubles expected(static_cast<size_t>(rows) * width);
        for (int r = 0; r < rows; r++) {
          for (int g = 0; g < groups; g++) {
            uint8_t* at = packed.data() + (static_cast<size_t>(r / 16) * groups + g) * tile;
            int lane = r % 16;
            uint16_t scale = static_cast<uint16_t>(0x2000 + random32() % 0x1000), zero = static_cast<uint16_t>(0x3C00 + random32() % 0x800);
            if (kind.header) std::memcpy(at + 2 * lane, &scale, 2);
            if (kind.header == 64) std::memcpy(at + 32 + 2 * lane, &zero, 2);
            for (int i = 0; i < unit; i++) {
              double value;
              if (kind.bits == 16) {
                uint16_t word = static_cast<uint16_t>(0x3D00 + random32() % 0x400);
                std::memcpy(at + 4 * lane + 2 * i, &word, 2);
                value = isa::bits<float>(static_cast<uint32_t>(word) << 16);
              } else {
                int quad = i / 4, byte = 4 * lane + i % 4, code = static_cast<int>(random32() % (1u << kind.bits));
                uint8_t* codes = at + kind.header;
                if (kind.bits == 8) codes[64 * quad + byte] = static_cast<uint8_t>(code);
                if (kind.bits == 4) codes[64 * (quad / 2) + byte] |= static_cast<uint8_t>(code << 4 * (quad % 2));
                if (kind.bits < 4) codes[64 * (quad / 4) + byte] |= static_cast<uint8_t>((code & 3) << 2 * (quad % 4));
                if (kind.bits == 3) codes[4 * group + 64 * (quad / 8) + byte] |= static_cast<uint8_t>(code >> 2 << quad % 8);
                value = static_cast<double>(isa::f16_to_f32(scale)) * (code - (kind.bits == 8 ? 128.0 : isa::f16_to_f32(zero)));
              }
              if (unit * g + i < width) expected[static_cast<size_t>(r) * width + unit * g + i] = value;
            }
          }
        }
        const int32_t tokens[] = {0, 36, 15, 16, 3, 3};
        Floats out(6 * static_cast<size_t>(width));
        isa::embed({tokens, packed.data(), kind.format, group, rows, width, out.data()}, 0, 6);
        mix(out);
        for (int t = 0; t < 6; t++) {
          for (int i = 0; i < width; i++) {
            double value = expected[static_cast<size_t>(tokens[t]) * width + i];
            near(out[static_cast<size_t>(t) * width + i], value, std::fabs(value) * 2e-7, "embed");
          }
        }
      }
    }
  }
}

struct Shape { int heads, kv_heads, head_dim; bool norm, rope; };

// A whole sequence through `heads` and `attention` in steps of the given sizes; gives all outputs.
static Floats attend(const Shape& s, int tokens, int step, bool item_by_item, const Floats& q, const Floats& k,
                     const Floats& v, const Floats& q_norm, const Floats& k_norm, const Floats& cosines,
                     const Floats& sines, Floats* rotated) {
  const int capacity = (tokens + 15) / 16 * 16 + 16;
  // What was not appended is NaN and must not be read into a result.
  std::vector<uint16_t> keys(static_cast<size_t>(s.kv_heads) * capacity * s.head_dim, 0x7E00), values = keys;
  Cache cache = {keys.data(), values.data(), capacity};
  const int q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  Floats out(static_cast<size_t>(tokens) * q_width, -7), heads_out(out.size(), -7);
  Floats scratch(attention_scratch_floats(s.head_dim, capacity), NAN);
  for (int start = 0; start < tokens; start += step) {
    const int n = tokens - start < step ? tokens - start : step;
    HeadsArgs h = {};
    h.q = {q.data() + static_cast<size_t>(start) * q_width, {nullptr, nullptr}, q_width};
    h.k = {k.data() + static_cast<size_t>(start) * kv_width, {nullptr, nullptr}, kv_width};
    h.v = {v.data() + static_cast<size_t>(start) * kv_width, {nullptr, nullptr}, kv_width};
    h.q_norm = s.norm ? q_norm.data() : nullptr, h.k_norm = s.norm ? k_norm.data() : nullptr;
    h.epsilon = 1e-6f;
    h.cosines = s.rope ? cosines.data() : nullptr, h.sines = s.rope ? sines.data() : nullptr;
    h.heads = s.heads, h.kv_heads = s.kv_heads, h.head_dim = s.head_dim, h.position = start;
    h.q_out = heads_out.data() + static_cast<size_t>(start) * q_width;
    h.cache = cache;
    const int64_t items = static_cast<int64_t>(n) * (s.heads + 2 * s.kv_heads);
    if (item_by_item) for (int64_t i = items; i-- > 0;) isa::heads(h, i, i + 1);
    else isa::heads(h, 0, items);
    AttentionArgs a = {h.q_out, cache, n, s.heads, s.kv_heads, s.head_dim, start, 1 / std::sqrt(static_cast<float>(s.head_dim)),
                       out.data() + static_cast<size_t>(start) * q_width, scratch.data()};
    const int64_t tiles = static_cast<int64_t>(n + ATTENTION_TILE - 1) / ATTENTION_TILE * s.kv_heads;
    if (item_by_item) for (int64_t i = tiles; i-- > 0;) isa::attention(a, i, i + 1);
    else isa::attention(a, 0, tiles);
  }
  *rotated = heads_out;
  return out;
}

static void attentions() {
  const Shape shapes[] = {{3, 1, 64, false, true}, {4, 2, 32, true, true}, {8, 4, 128, true, true}, {2, 2, 20, false, true},
                          {7, 1, 36, true, false}, {9, 1, 16, false, true}, {1, 1, 4, false, false}, {5, 1, 100, true, true}};
  for (const Shape& s : shapes) {
    const int tokens = 53, q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim, half = s.head_dim / 2;
    Floats q = uniforms(static_cast<size_t>(tokens) * q_width, -3, 3), k = uniforms(static_cast<size_t>(tokens) * kv_width, -3, 3);
    Floats v = uniforms(static_cast<size_t>(tokens) * kv_width), q_norm = uniforms(s.head_dim, 0.5, 2), k_norm = uniforms(s.head_dim, 0.5, 2);
    Floats cosines(static_cast<size_t>(tokens) * half), sines = cosines;
    for (int p = 0; p < tokens; p++) {
      for (int i = 0; i < half; i++) {
        double angle = p * std::pow(10000.0, -static_cast<double>(i) / half);
        cosines[static_cast<size_t>(p) * half + i] = static_cast<float>(std::cos(angle));
        sines[static_cast<size_t>(p) * half + i] = static_cast<float>(std::sin(angle));
      }
    }
    Floats rotated, rotated_again;
    Floats whole = attend(s, tokens, tokens, false, q, k, v, q_norm, k_norm, cosines, sines, &rotated);
    mix(whole), mix(rotated);
    for (int step : {1, 3, 8, 16, 20}) {
      Floats parts = attend(s, tokens, step, step % 2 == 0, q, k, v, q_norm, k_norm, cosines, sines, &rotated_again);
      expect(std::memcmp(parts.data(), whole.data(), whole.size() * 4) == 0 && rotated_again == rotated, "attention: grouping", step);
    }
    // The reference, in double; keys and values rounded to f16 as the cache does.
    auto prepare = [&](const Floats& x, int width, int t, int head, const Floats& weight) {
      Doubles row(s.head_dim), turned(s.head_dim);
      double squares = 0;
      for (int i = 0; i < s.head_dim; i++) {
        row[i] = x[static_cast<size_t>(t) * width + head * s.head_dim + i];
        squares += row[i] * row[i];
      }
      if (s.norm) for (int i = 0; i < s.head_dim; i++) row[i] *= weight[i] / std::sqrt(squares / s.head_dim + 1e-6);
      if (!s.rope) return row;
      for (int i = 0; i < half; i++) {
        double c = cosines[static_cast<size_t>(t) * half + i], n = sines[static_cast<size_t>(t) * half + i];
        turned[i] = row[i] * c - row[i + half] * n, turned[i + half] = row[i + half] * c + row[i] * n;
      }
      return turned;
    };
    auto rounded = [](double x) { return static_cast<double>(isa::f16_to_f32(isa::f32_to_f16(static_cast<float>(x)))); };
    std::vector<Doubles> keys;
    for (int t = 0; t < tokens; t++) {
      for (int h = 0; h < s.kv_heads; h++) {
        keys.push_back(prepare(k, kv_width, t, h, k_norm));
        for (double& x : keys.back()) x = rounded(x);
      }
    }
    for (int t = 0; t < tokens; t++) {
      for (int h = 0; h < s.heads; h++) {
        const int kv = h / (s.heads / s.kv_heads);
        Doubles query = prepare(q, q_width, t, h, q_norm), weights(t + 1), expected(s.head_dim);
        for (int i = 0; i < s.head_dim; i++) {
          near(rotated[static_cast<size_t>(t) * q_width + h * s.head_dim + i], query[i], 4e-6, "heads: query");
        }
        double top = -INFINITY, total = 0;
        for (int p = 0; p <= t; p++) {
          for (int i = 0; i < s.head_dim; i++) weights[p] += query[i] * keys[static_cast<size_t>(p) * s.kv_heads + kv][i];
          weights[p] /= std::sqrt(s.head_dim);
          top = std::fmax(top, weights[p]);
        }
        for (double& w : weights) total += w = std::exp(w - top);
        for (int i = 0; i < s.head_dim; i++) {
          for (int p = 0; p <= t; p++) {
            expected[i] += weights[p] / total * rounded(v[static_cast<size_t>(p) * kv_width + kv * s.head_dim + i]);
          }
          // A key that lies on the border of two f16 values may have been rounded to the other one.
          near(whole[static_cast<size_t>(t) * q_width + h * s.head_dim + i], expected[i], s.norm ? 2e-3 : 1e-4, "attention");
        }
      }
    }
  }
}

static void merged_heads() {  // deltas of q, k and v are added before anything else
  const int heads = 4, kv_heads = 2, head_dim = 24, tokens = 5, capacity = 16;
  MergedValue q(tokens, heads * head_dim, 112, 2), k(tokens, kv_heads * head_dim, 64, 1), v(tokens, kv_heads * head_dim, 64, 2, 1);
  std::vector<uint16_t> keys(kv_heads * capacity * head_dim), values = keys;
  Floats out(tokens * heads * head_dim);
  HeadsArgs args = {};
  args.q = q.merged, args.k = k.merged, args.v = v.merged;
  args.heads = heads, args.kv_heads = kv_heads, args.head_dim = head_dim, args.position = 7;
  args.q_out = out.data(), args.cache = {keys.data(), values.data(), capacity};
  isa::heads(args, 0, tokens * (heads + 2 * kv_heads));
  mix(out), mix(keys), mix(values);
  for (int t = 0; t < tokens; t++) {
    for (int i = 0; i < heads * head_dim; i++) near(out[t * heads * head_dim + i], q.at(t, i), 2e-6, "merged q");
    for (int h = 0; h < kv_heads; h++) {
      for (int d = 0; d < head_dim; d++) {
        double key = isa::f16_to_f32(keys[static_cast<size_t>(h * head_dim + d) * 16 + 7 + t]);
        double value = isa::f16_to_f32(values[static_cast<size_t>(h * capacity + 7 + t) * head_dim + d]);
        near(key, k.at(t, h * head_dim + d), 2.1e-3, "merged k");
        near(value, v.at(t, h * head_dim + d), 2.1e-3, "merged v");
      }
    }
  }
}

static void sampling() {
  for (int64_t n : {1, 5, 16, 100, 1024, 1025, 49152}) {
    Floats logits = uniforms(n, -10, 10), reference = logits;
    for (float& x : reference) x += uniform(-0.3f, 0.3f);
    int64_t best = 0;
    for (int64_t i = 0; i < n; i++) if (logits[i] > logits[best]) best = i;
    expect(isa::argmax(logits.data(), n) == best, "argmax");
    Floats odd = logits;
    odd[n / 2] = odd[n - 1] = 20;
    if (n > 4) odd[1] = NAN;
    expect(isa::argmax(odd.data(), n) == n / 2, "argmax: lowest of equals, not NaN", isa::argmax(odd.data(), n));
    expect(isa::argmax(Floats(n, NAN).data(), n) == 0 && isa::argmax(Floats(n, -INFINITY).data(), n) == 0, "argmax of nothing");

    double nll, kl, none = -1, z = 0, reference_z = 0, expected = 0;
    isa::token_loss(logits.data(), reference.data(), n, n / 3, &nll, &kl);
    for (int64_t i = 0; i < n; i++) z += std::exp(static_cast<double>(logits[i])), reference_z += std::exp(static_cast<double>(reference[i]));
    for (int64_t i = 0; i < n; i++) {
      double p = std::exp(static_cast<double>(reference[i])) / reference_z;
      expected += p * (static_cast<double>(reference[i]) - std::log(reference_z) - logits[i] + std::log(z));
    }
    near(nll, std::log(z) - logits[n / 3], 2e-7, "token_loss: nll");
    near(kl, expected, 2e-7, "token_loss: kl");
    Floats digest = {static_cast<float>(nll), static_cast<float>(kl)};
    mix(digest);
    isa::token_loss(logits.data(), nullptr, n, n / 3, &nll, &none);
    expect(none == 0, "token_loss without reference", none);
  }
}

int main() {
  norms();
  quantization();
  products();
  embeddings();
  attentions();
  merged_heads();
  sampling();
  return check::finish("kernels_test " HC_ISA_TEXT);
}
