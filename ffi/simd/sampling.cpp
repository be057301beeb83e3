// What is read off a row of logits.
#include <cmath>

#include "kernels_variant.h"

namespace hc::HC_ISA {

int64_t argmax(const float* logits, int64_t n) {
  constexpr int64_t BLOCK = 1024;
  const float lowest = -__builtin_inff();
  float best = lowest;
  int64_t from = 0;  // the first block that holds the largest value
  for (int64_t start = 0; start < n; start += BLOCK) {
    const int64_t end = start + BLOCK < n ? start + BLOCK : n;
    F32x16 top = set1(lowest);
    int64_t i = start;
    for (; i + LANES <= end; i += LANES) top = max(load(logits + i), top);  // a NaN is never the largest
    float block = reduce_max(top);
    for (; i < end; i++) block = logits[i] > block ? logits[i] : block;
    if (block > best) best = block, from = start;
  }
  for (int64_t i = from; i < n; i++) {
    if (logits[i] == best) return i;
  }
  return 0;  // nothing but NaN
}

namespace {

// Sixteen sums with compensation (Kahan), so that 10^5 terms lose nothing.
struct Sum {
  F32x16 total = zero(), excess = zero();
  HC_INLINE void add(F32x16 term) {
    term = HC_ISA::sub(term, excess);
    F32x16 next = HC_ISA::add(total, term);
    excess = HC_ISA::sub(HC_ISA::sub(next, total), term);
    total = next;
  }
  double value() const {
    float totals[LANES], excesses[LANES];
    store(totals, total), store(excesses, excess);
    double result = 0;
    for (int i = 0; i < LANES; i++) result += static_cast<double>(totals[i]) - static_cast<double>(excesses[i]);
    return result;
  }
};

float largest(const float* x, int64_t n) {
  F32x16 top = set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) top = max(top, load(x + i));
  float result = reduce_max(top);
  for (; i < n; i++) result = result > x[i] ? result : x[i];
  return result;
}

}  // namespace

// With Z = sum exp(x - max): nll = log Z + max - x[target], and for reference logits y of distribution p,
// KL(p || softmax x) = sum p ((y - max y) - (x - max x)) + log Z(x) - log Z(y).
void token_loss(const float* logits, const float* reference, int64_t n, int64_t target, double* nll, double* kl) {
  const float top = largest(logits, n), reference_top = reference ? largest(reference, n) : 0.0f;
  Sum z, reference_z, difference;
  for (int64_t i = 0; i < n; i += LANES) {
    const int lanes = n - i < LANES ? static_cast<int>(n - i) : LANES;
    float missing[LANES];
    auto shifted = [&](const float* row, float highest) {
      F32x16 value = sub(load_n(row + i, lanes), set1(highest));
      if (lanes == LANES) return value;
      store(missing, value);
      for (int k = lanes; k < LANES; k++) missing[k] = -1000.0f;  // exp of it is exactly 0
      return load(missing);
    };
    F32x16 x = shifted(logits, top);
    z.add(exp(x));
    if (!reference) continue;
    F32x16 y = shifted(reference, reference_top), p = exp(y);
    reference_z.add(p);
    difference.add(mul(p, sub(y, x)));
  }
  const double log_z = std::log(z.value());
  *nll = log_z + (static_cast<double>(top) - static_cast<double>(logits[target]));
  *kl = 0;
  if (!reference) return;
  const double divergence = difference.value() / reference_z.value() + log_z - std::log(reference_z.value());
  *kl = divergence < 0 ? 0 : divergence;  // never negative but for rounding
}

}  // namespace hc::HC_ISA
