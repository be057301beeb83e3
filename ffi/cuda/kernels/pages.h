// Where a key or value stands in the pages of one layer's cache on this device.
//   v: [page, kvHeads, PAGE, headDim], as on the CPU
//   k: [page, kvHeads, headDim / 8, PAGE, 8]: eight dimensions of a position, then those of the next position; where eight
//      do not divide headDim, the last block has as many as remain. Thirty-two positions' next eight dimensions
//      are 512 bytes in a row, so a thread that owns a position reads them with one load of 16 bytes and needs no other.
// Pages have as many bytes as the CPU's and are copied whole; nobody but these kernels knows their insides.
#pragma once
#include "call.h"

namespace hc {

constexpr int PAGE = 64;            // PAGE_POSITIONS of compiler/memory.ts
constexpr int MOST_HEAD_DIM = 256;  // kernels/heads.ts

HC_DEVICE bool within(int32_t number, int32_t count) { return number >= 0 && number < count; }

// In f16, from a head's start in a page: the dimensions of block `block` at a position, of which `width` exist.
HC_DEVICE int key_block(int slot, int block, int width) { return block * 8 * PAGE + slot * width; }
HC_DEVICE int key_block_width(int head_dim, int block) { return head_dim - block * 8 < 8 ? head_dim - block * 8 : 8; }
HC_DEVICE int key_at(int head_dim, int slot, int dimension) {
  return key_block(slot, dimension / 8, key_block_width(head_dim, dimension / 8)) + dimension % 8;
}

// In f16, from the cache's start: a head of a page.
HC_DEVICE int64_t head_of_page(int32_t page, int32_t kv_heads, int32_t kv_head, int32_t head_dim) {
  return (static_cast<int64_t>(page) * kv_heads + kv_head) * PAGE * head_dim;
}

}  // namespace hc
