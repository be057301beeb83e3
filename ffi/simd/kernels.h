// The kernels of one step, as a table of functions that every instruction-set variant fills (see isa.h).
//
// All activations and accumulators are fp32, row-major [tokens, n]. A kernel works on a range of items [begin, end)
// of its instruction, so that any number of threads can share one; no result depends on how items are grouped, on
// the number of tokens of the step, or on the instruction set: sums run in a fixed order over 16 lanes (simd.h) and
// integer sums are exact. That is what makes logits bit-identical across thread counts and prompt chunks.
#pragma once
#include <cstdint>

namespace hc {

// Formats of weights; layouts in compiler/weights/format.ts.
enum class Format : int32_t { bf16 = 0, q8 = 1, q4 = 2, q3 = 3, q2 = 4 };

// int8 activations: per group of the weight's group size, code = round(x * 127 / absmax) in [-127, 127].
// Error per element: at most absmax / 254 of its group.
struct QuantizedRows {
  int8_t* codes;   // [tokens, stride], stride = inputs rounded up to 128; padding codes are 0
  float* scales;   // [tokens, groups]: absmax / 127 (0 for a group of zeros)
  int32_t* sums;   // [tokens, groups]: sum of the group's codes
  int32_t group;   // 32, 64 or 128; 0: nothing is written (the consumer reads fp32)
  int32_t groups;  // ceil(inputs / group)
  int32_t stride;
};

// What is added to a linear's output where it is consumed: up to two deltas, null when absent.
// Element (t, i) of the merged value is base[t * stride + i] + (d0[t * stride + i] + d1[t * stride + i]) with absent
// terms left out; `base` may itself be null only where a kernel says so.
struct Merged {
  const float* base;
  const float* delta[2];
  int32_t stride;  // floats between tokens, common to base and deltas
};

struct EmbedArgs {  // items: tokens. out[t] = row tokens[t] of a packed matrix
  const int32_t* tokens;
  const uint8_t* packed;
  Format format;
  int32_t group, rows, width;
  float* out;  // [tokens, width]
};

struct NormArgs {  // items: tokens. sum = residual + merged (merged.base null: residual alone); out = rms_norm(sum)
  const float* residual;  // [tokens, width]
  Merged merged;
  const float* weight;  // [width]
  float epsilon;
  int32_t width;
  float* sum;           // [tokens, width] or null; may be `residual`
  float* out;           // [tokens, width]: weight * (sum / sqrt(mean(sum^2) + epsilon))
  QuantizedRows quantized;  // of out
};

struct QuantizeArgs {  // items: tokens
  const float* x;      // [tokens, width]
  int32_t width;
  QuantizedRows quantized;
};

struct SiluMulArgs {  // items: tokens * chunks, item = token * chunks + chunk; a chunk is 512 elements
  Merged gate, up;    // [tokens, width] each, strides apart
  int32_t width, chunks;
  float* out;         // [tokens, width]: gate / (1 + exp(-gate)) * up
  QuantizedRows quantized;
};

// Generic elementwise (for graphs that were not fused). items: tokens.
enum class Elementwise : int32_t { add = 0, mul = 1, silu = 2 };
struct ElementwiseArgs {
  Elementwise kind;
  Merged a, b;  // b unused for silu
  int32_t width;
  float* out;  // [tokens, width]
};

// Key-value cache of one layer, f16.
//   k: [kvHeads, capacity / 16, headDim, 16]: 16 positions beside each other for each dimension
//   v: [kvHeads, capacity, headDim]
struct Cache {
  uint16_t* k;
  uint16_t* v;
  int32_t capacity;  // positions, a multiple of 16
};

struct HeadsArgs {  // items: tokens * (heads + 2 * kvHeads): query heads, then key heads, then value heads of a token
  Merged q, k, v;   // [tokens, heads * headDim], [tokens, kvHeads * headDim] twice
  const float* q_norm;  // [headDim] or null: rms_norm of each head
  const float* k_norm;  // [headDim] or null
  float epsilon;
  const float* cosines;  // [context, headDim / 2] or null (no rope): pairs (i, i + headDim / 2)
  const float* sines;
  int32_t heads, kv_heads, head_dim;
  int32_t position;  // of the step's first token
  float* q_out;      // [tokens, heads * headDim]
  Cache cache;       // k and v of the step are appended at position + t, rounded to f16
};

struct AttentionArgs {  // items: kvHeads * tiles; item = tile * kvHeads + head; a tile is ATTENTION_TILE tokens
  const float* q;       // [tokens, heads * headDim]
  Cache cache;
  int32_t tokens, heads, kv_heads, head_dim;
  int32_t position;
  float scale;
  float* out;      // [tokens, heads * headDim]; query head h reads key-value head h / (heads / kvHeads)
  float* scratch;  // of this thread: attention_scratch_floats(...) floats, 64-byte aligned
};

// y = x W^T over packed W. items: blocks of 16 rows. Prompt steps may add a residual; then even one token takes the
// unpacking path.
struct LinearArgs {
  const uint8_t* packed;
  Format format;
  int32_t group, rows, inputs;
  const float* x;            // [tokens, inputs] (bf16 weights)
  QuantizedRows quantized;   // quantised weights
  int32_t tokens;
  float* y;                  // [tokens, y_stride]
  int32_t y_stride;
  // Prompt correction: the whole residual is added while a tile is dequantised (null: none).
  const struct Residual* residual;
  uint8_t* scratch;  // of this thread
};

// A window's residual in the layout of compiler/weights/correction.ts.
struct Residual {
  const uint8_t* codes;
  const float* output_scale;
  const float* channel_scale;
  const float* norm;
  int32_t width, inputs, outputs;
  int64_t row_bytes;
};

// The channels a token corrects, made by sparse_select, read by sparse_sum.
struct Selection {
  int32_t* index;      // [tokens, channels], ascending
  int16_t* coefficient;  // [tokens, channels]: x_j * channelScale_j in units of scale
  float* scale;        // [tokens]
  int32_t* sum;        // [tokens]: sum of coefficients (the codes' offset is subtracted with it)
  int32_t channels;
};

struct SparseSelectArgs {  // items: tokens
  const float* x;          // [tokens, inputs]
  Residual residual;
  Selection selection;
  float* scratch;          // of this thread: twice (inputs rounded up to 64, plus 64) floats
};

struct SparseSumArgs {  // items: tokens * chunks, item = token * chunks + chunk; a chunk is SPARSE_BLOCKS row blocks
  Residual residual;
  Selection selection;
  int32_t chunks;
  float* delta;  // [tokens, outputs]
  int32_t delta_stride;
};

struct LowRank {
  const void* a;  // [maxRank, a_stride] i8 or bf16
  const void* b;  // [maxRank, b_stride]
  const float* a_scale;
  const float* b_scale;
  int32_t a_stride, b_stride, inputs, outputs, rank;
  int32_t bf16;  // 1: bf16, 0: i8
};

struct LowRankDownArgs {  // items: tokens * rank chunks of 8: hidden[t][c] = a_scale[c] * sum_j a[c][j] x[t][j]
  LowRank factors;
  const float* x;  // [tokens, inputs]
  float* hidden;   // [tokens, rank rounded up to 16]
  int32_t chunks, hidden_stride;
};

struct LowRankUpArgs {  // items: tokens * chunks of 256 outputs: delta[t][o] = sum_c hidden[t][c] b_scale[c] b[c][o]
  LowRank factors;
  const float* hidden;
  int32_t hidden_stride, chunks;
  float* delta;  // [tokens, outputs]
  int32_t delta_stride;
};

constexpr int32_t ATTENTION_TILE = 8;    // tokens that share one pass over keys and values
constexpr int32_t ATTENTION_ROWS = 8;    // query rows (token, head) computed together, at most
constexpr int32_t SILU_CHUNK = 512;      // a multiple of every group size
constexpr int32_t LOW_RANK_DOWN = 8;     // components an item
constexpr int32_t LOW_RANK_UP = 256;     // outputs an item
constexpr int32_t SPARSE_BLOCKS = 4;     // 32-byte blocks of a residual row an item
constexpr int32_t LINEAR_BLOCKS = 4;     // row blocks that `linear` unpacks at once for several tokens

struct Kernels {
  const char* isa;
  // elementwise.cpp
  void (*embed)(const EmbedArgs&, int64_t begin, int64_t end);
  void (*norm)(const NormArgs&, int64_t begin, int64_t end);
  void (*quantize)(const QuantizeArgs&, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulArgs&, int64_t begin, int64_t end);
  void (*elementwise)(const ElementwiseArgs&, int64_t begin, int64_t end);
  // attention.cpp
  void (*heads)(const HeadsArgs&, int64_t begin, int64_t end);
  void (*attention)(const AttentionArgs&, int64_t begin, int64_t end);
  // linear.cpp
  void (*linear)(const LinearArgs&, int64_t begin, int64_t end);
  // correction.cpp
  void (*sparse_select)(const SparseSelectArgs&, int64_t begin, int64_t end);
  void (*sparse_sum)(const SparseSumArgs&, int64_t begin, int64_t end);
  void (*low_rank_down)(const LowRankDownArgs&, int64_t begin, int64_t end);
  void (*low_rank_up)(const LowRankUpArgs&, int64_t begin, int64_t end);
  // sampling.cpp
  int64_t (*argmax)(const float* logits, int64_t n);  // lowest index among equals
  // log-softmax of `logits` at `target`; KL(reference || logits) in nats when `reference` is not null, else 0.
  void (*token_loss)(const float* logits, const float* reference, int64_t n, int64_t target, double* nll, double* kl);
};

// Floats of scratch that one thread needs for `attention`: queries and scores of the rows computed together.
constexpr int64_t attention_scratch_floats(int32_t head_dim, int32_t capacity) {
  return static_cast<int64_t>(ATTENTION_ROWS) * (head_dim + capacity + 16);
}

}  // namespace hc
