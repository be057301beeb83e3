// The kernels of `linear`; their launches are chosen in linear.ts.
#include "device.h"

extern __shared__ float4 hc_shared[];  // sums of segments: float [segments][tokens][16]

#include "linear_matrix.h"
#include "linear_residual.h"
#include "linear_vector.h"

using namespace hc;

// Few tokens, and any number where there are no tensor cores for bytes: linear_<format>_<tokens of a block>.
extern "C" __global__ void linear_bf16_1(const Linear p, const Call call) { linear_vector<BF16, 1>(p, call, p.packed); }
extern "C" __global__ void linear_bf16_2(const Linear p, const Call call) { linear_vector<BF16, 2>(p, call, p.packed); }
extern "C" __global__ void linear_bf16_4(const Linear p, const Call call) { linear_vector<BF16, 4>(p, call, p.packed); }
extern "C" __global__ void linear_bf16_8(const Linear p, const Call call) { linear_vector<BF16, 8>(p, call, p.packed); }
extern "C" __global__ void linear_q8_1(const Linear p, const Call call) { linear_vector<Q8, 1>(p, call, p.packed); }
extern "C" __global__ void linear_q8_2(const Linear p, const Call call) { linear_vector<Q8, 2>(p, call, p.packed); }
extern "C" __global__ void linear_q8_4(const Linear p, const Call call) { linear_vector<Q8, 4>(p, call, p.packed); }
extern "C" __global__ void linear_q8_8(const Linear p, const Call call) { linear_vector<Q8, 8>(p, call, p.packed); }
extern "C" __global__ void linear_q4_1(const Linear p, const Call call) { linear_vector<Q4, 1>(p, call, p.packed); }
extern "C" __global__ void linear_q4_2(const Linear p, const Call call) { linear_vector<Q4, 2>(p, call, p.packed); }
extern "C" __global__ void linear_q4_4(const Linear p, const Call call) { linear_vector<Q4, 4>(p, call, p.packed); }
extern "C" __global__ void linear_q4_8(const Linear p, const Call call) { linear_vector<Q4, 8>(p, call, p.packed); }
extern "C" __global__ void linear_q3_1(const Linear p, const Call call) { linear_vector<Q3, 1>(p, call, p.packed); }
extern "C" __global__ void linear_q3_2(const Linear p, const Call call) { linear_vector<Q3, 2>(p, call, p.packed); }
extern "C" __global__ void linear_q3_4(const Linear p, const Call call) { linear_vector<Q3, 4>(p, call, p.packed); }
extern "C" __global__ void linear_q3_8(const Linear p, const Call call) { linear_vector<Q3, 8>(p, call, p.packed); }
extern "C" __global__ void linear_q2_1(const Linear p, const Call call) { linear_vector<Q2, 1>(p, call, p.packed); }
extern "C" __global__ void linear_q2_2(const Linear p, const Call call) { linear_vector<Q2, 2>(p, call, p.packed); }
extern "C" __global__ void linear_q2_4(const Linear p, const Call call) { linear_vector<Q2, 4>(p, call, p.packed); }
extern "C" __global__ void linear_q2_8(const Linear p, const Call call) { linear_vector<Q2, 8>(p, call, p.packed); }
extern "C" __global__ void linear_combined_8(const Linear p, const Call call) { linear_vector<Combined, 8>(p, call, call.scratch); }

// Many tokens.
#if !defined(__CUDACC__) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define MANY_TOKENS(F, packed) linear_matrix<F>(p, call, packed)
#else
#define MANY_TOKENS(F, packed) __trap()
#endif
extern "C" __global__ void __launch_bounds__(256, 2) linear_q8_matrix(const Linear p, const Call call) { MANY_TOKENS(Q8, p.packed); }
extern "C" __global__ void __launch_bounds__(256, 2) linear_q4_matrix(const Linear p, const Call call) { MANY_TOKENS(Q4, p.packed); }
extern "C" __global__ void __launch_bounds__(256, 2) linear_q3_matrix(const Linear p, const Call call) { MANY_TOKENS(Q3, p.packed); }
extern "C" __global__ void __launch_bounds__(256, 2) linear_q2_matrix(const Linear p, const Call call) { MANY_TOKENS(Q2, p.packed); }
extern "C" __global__ void __launch_bounds__(256, 2) linear_combined_matrix(const Linear p, const Call call) { MANY_TOKENS(Combined, call.scratch); }

// Prompts whose residual is added: first this, then a product with what it leaves in scratch.
extern "C" __global__ void linear_q8_combine(const Linear p, const Call call) { linear_combine<Q8>(p, call); }
extern "C" __global__ void linear_q4_combine(const Linear p, const Call call) { linear_combine<Q4>(p, call); }
extern "C" __global__ void linear_q3_combine(const Linear p, const Call call) { linear_combine<Q3>(p, call); }
extern "C" __global__ void linear_q2_combine(const Linear p, const Call call) { linear_combine<Q2>(p, call); }
