// Walking along a row of activations, sixteen lanes at a time.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace hc::HC_ISA {

// A number known to the compiler.
template <int N> struct Count {
  constexpr operator int() const { return N; }
};
using Whole = Count<LANES>;

// f(i, lanes) for each vector of [0, width): `lanes` is Whole, then what remains.
template <class F> HC_INLINE void each_vector(int width, F f) {
  int i = 0;
  for (; i + LANES <= width; i += LANES) f(i, Whole{});
  if (i < width) f(i, width - i);
}

HC_INLINE int64_t row_of(const Gather& rows, int64_t t) {
  if (!rows.row) return t;
  const int32_t row = rows.row[t];
  return row >= 0 && row < rows.count ? row : 0;
}

// One token's row of a corrected value, from element `offset` on.
class Row {
 public:
  HC_INLINE Row(const Corrected& value, int64_t token, int64_t offset = 0) {
    const int64_t at = token * value.stride + offset;
    const float* first = value.delta[0] ? value.delta[0] : value.delta[1];
    const float* second = value.delta[0] ? value.delta[1] : nullptr;
    base_ = value.base ? value.base + at : nullptr;
    first_ = first ? first + at : nullptr;
    second_ = second ? second + at : nullptr;
  }
  explicit operator bool() const { return base_; }
  // Lanes [i, i + lanes) of base + (delta + delta).
  template <class N> HC_INLINE F32x16 operator()(int i, N lanes) const {
    const F32x16 value = load_n(base_ + i, lanes);
    if (!first_) return value;
    const F32x16 delta = load_n(first_ + i, lanes);
    return add(value, second_ ? add(delta, load_n(second_ + i, lanes)) : delta);
  }

 private:
  const float *base_, *first_, *second_;
};

}  // namespace hc::HC_ISA
