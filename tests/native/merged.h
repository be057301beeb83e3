// Corrected values for the native tests.
#pragma once
#include "../../ffi/simd/kernels.h"

#include "check.h"

// A merged value in memory of its own with 0, 1 or 2 deltas.
struct MergedValue {
  std::vector<float> parts[3];
  hc::Corrected merged;
  int stride;
  MergedValue(int tokens, int width, int stride_, int deltas, int only = -1) : stride(stride_) {
    for (std::vector<float>& part : parts) part = check::uniforms(static_cast<size_t>(tokens) * stride, -2, 2);
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
