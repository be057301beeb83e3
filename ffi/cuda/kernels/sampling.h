// What the kernels of sampling.cu are given. Not in the instruction table: tokens are chosen where a step has ended.
#pragma once
#include "call.h"

namespace hc {

// The k largest of each of call.n rows of logits; call.chunks is the number of blocks that share a row.
struct TopK {
  Read logits;    // f32 [n, vocabulary]
  Write indices;  // i32 [n, k], the largest logit first, of equal ones the lower index; a NaN is below everything
  Write values;   // f32 [n, k]: the logits at `indices`
  int32_t vocabulary;
  int32_t k;  // 1 to 64, at most vocabulary
};

}  // namespace hc
