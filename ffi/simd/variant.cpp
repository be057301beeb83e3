// The table of this instruction-set variant (isa.h chooses one at run time).
#include "isa.h"
#include "kernels_variant.h"

namespace hc::HC_ISA {

const Kernels& kernels() {
  static const Kernels table = {
      .isa = HC_ISA_TEXT,
      .embedding = embedding,
      .norm = norm,
      .quantize = quantize,
      .silu_mul = silu_mul,
      .elementwise = elementwise,
      .rope = rope,
      .append = append,
      .attend = attend,
      .linear = linear,
      .sparse_select = sparse_select,
      .sparse_sum = sparse_sum,
      .low_rank_down = low_rank_down,
      .low_rank_up = low_rank_up,
      .observe = observe,
      .argmax = argmax,
      .token_loss = token_loss,
  };
  return table;
}

}  // namespace hc::HC_ISA
