// What the two ways to multiply have in common: from packed tiles (linear.cpp), and from unpacked blocks (linear_blocks.cpp).
// They are two sources, so that two compilers share the work.
#pragma once
#include <type_traits>

#include "kernels_variant.h"
#include "unpack.h"

namespace hc::HC_ISA {

// Tokens that share a pass over a packed tile, as many as the registers hold sums of. Where that is one, several tokens are
// multiplied with unpacked blocks.
#if HC_ISA_NUMBER == HC_IS_avx512vnni || HC_ISA_NUMBER == HC_IS_avx512
constexpr int FEW_TOKENS = 4;
#else
constexpr int FEW_TOKENS = 1;
#endif

HC_INLINE F32x16 accumulate(F32x16 acc, F32x16 dot, F32x16 scale, float x_scale) {
  return fma(dot, mul(scale, set1(x_scale)), acc);
}

// Of a format that is not bf16. Calls visit(format, group), constants both; not for a group that no format has.
template <typename Visit>
HC_INLINE void for_format(const LinearArgs& a, Visit visit) {
  const auto with_group = [&](auto format) {
    switch (a.group) {
      case 32: return visit(format, std::integral_constant<int, 32>());
      case 64: return visit(format, std::integral_constant<int, 64>());
      case 128: return visit(format, std::integral_constant<int, 128>());
    }
  };
  const std::integral_constant<int, SUBGROUPED> subgrouped;
  switch (a.format) {
    case Format::bf16: return;
    case Format::q8: return with_group(std::integral_constant<Format, Format::q8>());
    case Format::q4: return with_group(std::integral_constant<Format, Format::q4>());
    case Format::q3: return with_group(std::integral_constant<Format, Format::q3>());
    case Format::q2: return with_group(std::integral_constant<Format, Format::q2>());
    case Format::q4s: return visit(std::integral_constant<Format, Format::q4s>(), subgrouped);
    case Format::q3s: return visit(std::integral_constant<Format, Format::q3s>(), subgrouped);
    case Format::q2s: return visit(std::integral_constant<Format, Format::q2s>(), subgrouped);
  }
}

// linear_blocks.cpp: as `linear`, of quantised formats, with or without a residual.
void linear_blocks(const LinearArgs&, int64_t begin, int64_t end);

}  // namespace hc::HC_ISA
