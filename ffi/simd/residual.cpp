// Packing a window's error E as output_scale[o] * channel_scale[j] * code with few bits a code, for least squared
// error (layout: compiler/weights/correction.ts). Output scales start at each row's root mean square; then, in
// turns, every channel's scale is searched over clipping thresholds and refitted by least squares, and every
// output's scale is refitted by least squares. The codes are rounded again with the final scales.
#include "simd.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "packing.h"

namespace hc::HC_ISA {
namespace {

constexpr int CLIPS = 16;  // thresholds from 1.00 down to 0.25 of the largest value, in steps of 0.05

HC_INLINE F32x16 round_small(F32x16 x) {
  const F32x16 magic = set1(12582912.0f);
  return sub(add(x, magic), magic);
}

float inverse(float x) { return x > 0 ? 1.0f / x : 0.0f; }

HC_INLINE F32x16 inverse(F32x16 x) {
  float lanes[LANES];
  store(lanes, x);
  for (float& lane : lanes) lane = inverse(lane);
  return load(lanes);
}

float largest_code(int width) { return static_cast<float>((1 << (width - 1)) - 1); }

HC_INLINE F32x16 code_of(F32x16 x, F32x16 inverse_channel, F32x16 most) {
  return round_small(min(max(mul(x, inverse_channel), neg(most)), most));
}

int width_of(const ResidualArgs& args, int64_t item) {
  const int64_t rest = args.inputs - item * LANES;
  return static_cast<int>(rest < LANES ? rest : LANES);
}

// 16 channels of E in units of the output scales: values[LANES * o + lane].
void load_channels(const ResidualArgs& args, int64_t item, std::vector<float>& values) {
  const int count = width_of(args, item);
  values.resize(static_cast<size_t>(args.outputs) * LANES);
  for (int64_t o = 0; o < args.outputs; o++) {
    const F32x16 e = mul(load_n(args.error + o * args.inputs + item * LANES, count), set1(args.gain));
    store(values.data() + LANES * o, mul(e, set1(inverse(args.output_scale[o]))));
  }
}

// Sum over outputs of (output_scale * (x - channel * code))^2: the error these channels would have.
F32x16 squared_error(const ResidualArgs& args, const float* values, F32x16 channel, F32x16 most) {
  const F32x16 inverse_channel = inverse(channel);
  F32x16 total = zero();
  for (int64_t o = 0; o < args.outputs; o++) {
    const F32x16 x = load(values + LANES * o);
    const F32x16 d = mul(sub(x, mul(channel, code_of(x, inverse_channel, most))), set1(args.output_scale[o]));
    total = add(total, mul(d, d));
  }
  return total;
}

// The channel scales of least squared error for the codes that `channel` gives; `channel` where codes are all 0.
F32x16 refit(const ResidualArgs& args, const float* values, F32x16 channel, F32x16 most) {
  const F32x16 inverse_channel = inverse(channel);
  F32x16 products = zero(), squares = zero();
  for (int64_t o = 0; o < args.outputs; o++) {
    const F32x16 x = load(values + LANES * o), code = code_of(x, inverse_channel, most);
    const F32x16 weighted = mul(code, set1(args.output_scale[o] * args.output_scale[o]));
    products = add(products, mul(weighted, x));
    squares = add(squares, mul(weighted, code));
  }
  float p[LANES], s[LANES], c[LANES];
  store(p, products), store(s, squares), store(c, channel);
  for (int i = 0; i < LANES; i++) c[i] = s[i] > 0 ? p[i] / s[i] : c[i];
  return load(c);
}

struct Best {
  float error[LANES], channel[LANES];

  void offer(F32x16 new_error, F32x16 new_channel) {
    float e[LANES], c[LANES];
    store(e, new_error), store(c, new_channel);
    for (int i = 0; i < LANES; i++) {
      const bool better = e[i] < error[i];
      error[i] = better ? e[i] : error[i];
      channel[i] = better ? c[i] : channel[i];
    }
  }
};

}  // namespace

void start(const ResidualArgs& args, int64_t output) {
  double total = 0;
  for (int64_t j = 0; j < args.inputs; j++) {
    const double e = static_cast<double>(args.error[output * args.inputs + j]) * args.gain;
    total += e * e;
  }
  args.output_scale[output] = static_cast<float>(std::sqrt(total / static_cast<double>(args.inputs)));
}

void channels(const ResidualArgs& args, int64_t item) {
  thread_local std::vector<float> values;
  load_channels(args, item, values);
  const F32x16 most = set1(largest_code(args.width));
  F32x16 largest = zero();
  for (int64_t o = 0; o < args.outputs; o++) largest = max(largest, abs(load(values.data() + LANES * o)));
  const F32x16 whole = mul(largest, set1(1.0f / largest_code(args.width)));
  Best best;
  store(best.error, squared_error(args, values.data(), whole, most)), store(best.channel, whole);
  for (int clip = 1; clip < CLIPS; clip++) {
    const F32x16 channel = mul(whole, set1(static_cast<float>(20 - clip) / 20.0f));
    best.offer(squared_error(args, values.data(), channel, most), channel);
  }
  const F32x16 refitted = refit(args, values.data(), load(best.channel), most);
  best.offer(squared_error(args, values.data(), refitted, most), refitted);
  store_n(args.channel_scale + item * LANES, width_of(args, item), load(best.channel));
}

void outputs(const ResidualArgs& args, int64_t output) {
  const F32x16 most = set1(largest_code(args.width)), gain = set1(args.gain);
  const F32x16 inverse_output = set1(inverse(args.output_scale[output]));
  F32x16 products = zero(), squares = zero();
  for (int64_t j = 0; j < args.inputs; j += LANES) {
    const int count = static_cast<int>(args.inputs - j < LANES ? args.inputs - j : LANES);
    const F32x16 e = mul(load_n(args.error + output * args.inputs + j, count), gain);
    const F32x16 channel = load_n(args.channel_scale + j, count);
    const F32x16 fitted = mul(channel, code_of(mul(e, inverse_output), inverse(channel), most));
    products = add(products, mul(e, fitted));
    squares = add(squares, mul(fitted, fitted));
  }
  const float total = sum(squares);
  // A scale of 0 or below would lose the row for good.
  if (total > 0 && sum(products) > 0) args.output_scale[output] = sum(products) / total;
}

void codes(const ResidualArgs& args, int64_t item) {
  thread_local std::vector<float> values;
  load_channels(args, item, values);
  const int count = width_of(args, item), width = args.width, per_word = 16 / width;
  const F32x16 most = set1(largest_code(width));
  const F32x16 before = load_n(args.channel_scale + item * LANES, count);
  Best best;
  store(best.error, squared_error(args, values.data(), before, most)), store(best.channel, before);
  const F32x16 refitted = refit(args, values.data(), before, most);
  best.offer(squared_error(args, values.data(), refitted, most), refitted);
  store_n(args.channel_scale + item * LANES, count, load(best.channel));

  double squares[LANES] = {};
  const F32x16 inverse_channel = inverse(load(best.channel));
  const int32_t offset = 1 << (width - 1);
  const int64_t blocks = args.row_bytes / 32;
  for (int64_t block = 0; block < blocks; block++) {
    uint16_t words[LANES][16] = {};  // [channel][word]
    for (int n = 0; n < per_word; n++) {
      for (int i = 0; i < 16; i++) {
        const int64_t o = (block * per_word + n) * 16 + i;
        int32_t code[LANES] = {};
        if (o < args.outputs) {
          store(code, round_to_i32(code_of(load(values.data() + LANES * o), inverse_channel, most)));
        }
        for (int channel = 0; channel < LANES; channel++) {
          words[channel][i] |= static_cast<uint16_t>((code[channel] + offset) << (n * width));
        }
      }
    }
    for (int channel = 0; channel < count; channel++) {
      std::memcpy(args.codes + (item * LANES + channel) * args.row_bytes + 32 * block, words[channel], 32);
    }
  }
  for (int64_t o = 0; o < args.outputs; o++) {
    for (int channel = 0; channel < count; channel++) {
      const double e = static_cast<double>(args.error[o * args.inputs + item * LANES + channel]);
      squares[channel] += e * e;
    }
  }
  for (int channel = 0; channel < count; channel++) {
    args.norm[item * LANES + channel] = static_cast<float>(std::sqrt(squares[channel]));
  }
}

}  // namespace hc::HC_ISA
