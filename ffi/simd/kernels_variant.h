// The kernels of one instruction-set variant: what variant.cpp collects in its Kernels table.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace hc::HC_ISA {

// elementwise.cpp
void embedding(const EmbeddingArgs&, int64_t begin, int64_t end);
void norm(const NormArgs&, int64_t begin, int64_t end);
void quantize(const QuantizeArgs&, int64_t begin, int64_t end);
void silu_mul(const SiluMulArgs&, int64_t begin, int64_t end);
void elementwise(const ElementwiseArgs&, int64_t begin, int64_t end);
// attention.cpp
void rope(const RopeArgs&, int64_t begin, int64_t end);
void append(const AppendArgs&, int64_t begin, int64_t end);
void attend(const AttendArgs&, int64_t begin, int64_t end);
// linear.cpp
void linear(const LinearArgs&, int64_t begin, int64_t end);
// correction.cpp
void sparse_select(const SparseSelectArgs&, int64_t begin, int64_t end);
void sparse_sum(const SparseSumArgs&, int64_t begin, int64_t end);
void low_rank_down(const LowRankDownArgs&, int64_t begin, int64_t end);
void low_rank_up(const LowRankUpArgs&, int64_t begin, int64_t end);
// observe.cpp
void observe(const ObserveArgs&, int64_t begin, int64_t end);
// sampling.cpp
int64_t argmax(const float* logits, int64_t n);
void token_loss(const float* logits, const float* reference, int64_t n, int64_t target, double* nll, double* kl);

}  // namespace hc::HC_ISA
