// y = x W^T for many tokens, on the tensor cores (mma.m16n8k32 of signed bytes): the sums of linear_vector.h, bit for bit.
//
// A warp computes 32 rows x 32 tokens. W is operand A, straight from the packed tiles: of two tiles of 16 rows, thread
// (r, c) = (lane / 4, lane % 4) loads for every 32 inputs the pair c of rows 4 (r % 4) .. + 3 of tile r / 4: that is one 16-byte
// load at 4 bits, and exactly its rows r and r + 8 of two fragments, when fragment rows are numbered so; results of a thread
// are then 4 consecutive rows of y. Operand B, the codes of x, is staged in shared memory, 128 inputs at a time, double-buffered.
// A block's warps lie as (blockDim.x / 64) x 2: 2 warps share rows, the others tokens, so a block covers 128 rows x 64 tokens,
// and fewer rows where the grid would be small otherwise.
//
// What limits it is the float pipe: per group, row and token one multiply-add makes a float of the integer dot, one adds the
// zero point, one accumulates (linear_order.h), so with group 64 a multiprocessor of 128 lanes does 128 * 64 / 3 = 2730
// multiplications of weights a cycle at most; a segment's end adds 1/2 operation a group of 64. Issue slots: per 32 inputs a
// warp has 8 mma, 4 loads of B and about 15 instructions of unpacking; per group 96 float operations and 16 for x's scales: 170
// for 32 * 32 * 64 multiplications, 4 * 65536 / 170 = 1540 a cycle. bf16 on an H100 has 2048 a cycle, of which a good library gets
// about 1500; half of that, the aim, is 750. Operand B needs 32 * 32 + 32 * 8 bytes a warp and 32 inputs from shared memory: 8 to
// 10 cycles for 32768 multiplications.
#pragma once
#include "format.h"
#include "linear_order.h"
#include "mma.h"
#include "parameters.h"

namespace hc {

constexpr int BLOCK_TOKENS = 64, WARP_TOKENS = 32, STAGE = SEGMENT_STEP, STAGE_CHUNKS = STAGE / CHUNK;
constexpr int STAGE_STRIDE = STAGE + 32;  // bytes between tokens: 4 of them and 4 pairs lie in 32 different banks
constexpr int MOST_STAGE_GROUPS = STAGE / 32;

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
template <int Bytes> HC_DEVICE void copy_async(void* shared, const void* global) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(global) : "memory");
}
HC_DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
template <int Bytes> HC_DEVICE void copy_async(void* shared, const void* global) {
  if constexpr (Bytes == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  else memcpy(shared, global, Bytes);
}
HC_DEVICE void copies_done() {}
#endif

// 128 inputs of 64 tokens: codes, and per group what XGroup has; until `prepare`, the scale and the sum as they were copied.
struct alignas(16) Stage {
  uint8_t codes[BLOCK_TOKENS * STAGE_STRIDE];
  alignas(16) float groups[MOST_STAGE_GROUPS][BLOCK_TOKENS][2];

  HC_DEVICE void copy(const Linear& p, int n, int first_token, int stage) {
    const int8_t* source = p.codes;
    const float* scales = p.scales;
    const int32_t* sums = p.sums;
    const int inputs = min(STAGE, p.groups * p.group - stage * STAGE);
    for (int i = threadIdx.x; i < BLOCK_TOKENS * STAGE / 16; i += blockDim.x) {
      const int token = i / (STAGE / 16), at = i % (STAGE / 16) * 16;
      if (at >= inputs) continue;
      const int64_t row = static_cast<int64_t>(min(first_token + token, n - 1)) * p.codeStride;
      copy_async<16>(codes + token * STAGE_STRIDE + at, source + row + stage * STAGE + at);
    }
    const int count = inputs / p.group, first_group = stage * (STAGE / p.group);
    for (int i = threadIdx.x; i < BLOCK_TOKENS * count; i += blockDim.x) {
      const int token = i % BLOCK_TOKENS, g = i / BLOCK_TOKENS;
      const int64_t from = static_cast<int64_t>(min(first_token + token, n - 1)) * p.groups + first_group + g;
      copy_async<4>(&groups[g][token][0], scales + from);
      copy_async<4>(&groups[g][token][1], sums + from);
    }
  }
  // Every thread prepares what it copied itself.
  HC_DEVICE void prepare(const Linear& p) {
    copies_done();
    for (int i = threadIdx.x; i < BLOCK_TOKENS * (STAGE / p.group); i += blockDim.x) {
      float(&at)[2] = groups[i / BLOCK_TOKENS][i % BLOCK_TOKENS];
      const XGroup x = XGroup::of(at[0], __float_as_int(at[1]));
      at[0] = x.scale, at[1] = x.negative_sum;
    }
  }
};

// Sums of 2 fragments of 16 rows x 4 of 8 tokens. [i][j][2 h + e]: row 2 i + h of the thread's four, token 8 j + 2 c + e.
template <typename T> struct Accumulators {
  T at[2][4][4];
  HC_DEVICE void fill(T value) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) at[i][j][k] = value;
  }
};

HC_DEVICE void store_rows(float* y, int rows, const float (&values)[4]) {
  if (rows >= 4 && (reinterpret_cast<uintptr_t>(y) & 15) == 0) {
    *reinterpret_cast<float4*>(y) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
#pragma unroll
    for (int r = 0; r < 4; r++)
      if (r < rows) y[r] = values[r];
  }
}

// grid: blocks of rows, blocks of 64 tokens.
template <typename F> HC_DEVICE void linear_matrix(const Linear& p, const Call& call, const void* packed) {
  if (!begin(call)) return;
  __shared__ Stage stages[2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, row_quad = lane / 4 % 4;
  const int first_token = blockIdx.y * BLOCK_TOKENS, warp_token = warp % 2 * WARP_TOKENS;
  if (first_token < call.n) {
    const int tiles = (p.rows + TILE_ROWS - 1) / TILE_ROWS;
    const int tile = (blockIdx.x * (blockDim.x / 64) + warp / 2) * 2 + lane / 16;
    const int group = p.group, tile_bytes = F::tile_bytes(group), chunks = p.groups * (group / CHUNK);
    const int segment_chunks = Segments(p.inputs).inputs / CHUNK;
    const bool idle = first_token + warp_token >= call.n;  // this warp has no token
    const uint8_t* at = static_cast<const uint8_t*>(packed) + static_cast<int64_t>(min(tile, tiles - 1)) * p.groups * tile_bytes;

    Accumulators<float> total, acc;
    Accumulators<int32_t> dots;
    total.fill(0);
    acc.fill(0);
    dots.fill(MAGIC_BITS);
    typename F::Pair pair, next_pair = F::template load<Reuse::block>(at, group, 0, c, row_quad);
    Header header, next_header = F::load_header(at, row_quad);
    int in_group = 0;  // chunk of the group

    stages[0].copy(p, call.n, first_token, 0);
    stages[0].prepare(p);
    __syncthreads();
    for (int stage = 0; stage * STAGE_CHUNKS < chunks; stage++) {
      const Stage& x = stages[stage % 2];
      const bool more = (stage + 1) * STAGE_CHUNKS < chunks;
      if (more) stages[(stage + 1) % 2].copy(p, call.n, first_token, stage + 1);
      const int end = idle ? 0 : min(STAGE_CHUNKS, chunks - stage * STAGE_CHUNKS);
      int g = 0;  // group of the stage
      for (int chunk = 0; chunk < end; chunk++) {
        pair = next_pair;
        if (in_group++ == 0) header = next_header;
        const bool group_ends = in_group * CHUNK == group;
        if (group_ends) in_group = 0;
        if (stage * STAGE_CHUNKS + chunk + 1 < chunks) {
          if (group_ends) next_header = F::load_header(at += tile_bytes, row_quad);
          next_pair = F::template load<Reuse::block>(at, group, in_group, c, row_quad);
        }
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int k = 0; k < 4; k++) a[i][k] = F::word(pair, c, k / 2, 2 * i + k % 2);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const uint8_t* codes = x.codes + (warp_token + 8 * j + lane / 4) * STAGE_STRIDE + CHUNK * chunk + 8 * c;
          const uint2 two = *reinterpret_cast<const uint2*>(codes);
          const uint32_t b[2] = {two.x, two.y};
#pragma unroll
          for (int i = 0; i < 2; i++) mma_s8(dots.at[i][j], a[i], b);
        }
        if (!group_ends) continue;
        const Four scales = F::scales(header), zeros = F::zeros(header);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float4 v = *reinterpret_cast<const float4*>(x.groups[g][warp_token + 8 * j + 2 * c]);
          const XGroup x_group[2] = {{v.x, v.y}, {v.z, v.w}};
          const float offset[2] = {x_group[0].offset(), x_group[1].offset()};
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
              const int row = 2 * i + k / 2, e = k % 2;
              float& sum = acc.at[i][j][k];
              sum = accumulate<F>(sum, dots.at[i][j][k], scales.row[row], zeros.row[row], x_group[e], offset[e]);
            }
        }
        dots.fill(MAGIC_BITS);
        g++;
      }
      if (!more || (stage + 1) * STAGE_CHUNKS % segment_chunks == 0) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) total.at[i][j][k] += acc.at[i][j][k];
        acc.fill(0);
      }
      if (more) stages[(stage + 1) % 2].prepare(p);
      __syncthreads();
    }

    const int row = tile * TILE_ROWS + 4 * row_quad;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int token = first_token + warp_token + 8 * j + 2 * c + e;
        const float values[4] = {total.at[0][j][e], total.at[0][j][2 + e], total.at[1][j][e], total.at[1][j][2 + e]};
        if (token < call.n && row < p.rows) store_rows(static_cast<float*>(p.y) + static_cast<int64_t>(token) * p.yStride + row, p.rows - row, values);
      }
  }
  finish(call);
}

}  // namespace hc
