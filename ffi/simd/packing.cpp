// The C ABI of packing (ffi/packing.ts): chooses the instruction-set variant and shares items among threads.
//
// Every function returns DONE, OUT_OF_MEMORY or WRONG_ISA (HCINFER_ISA names no variant of this machine), except
// hc_quantize, which may also return the index >= 0 of a value that is not finite.
#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "packing_parallel.h"

#define HC_EXPORT extern "C" __attribute__((visibility("default")))

namespace hc {
namespace {

constexpr int64_t ROW_BLOCK = 16;

int64_t blocks_of(int64_t n) { return (n + ROW_BLOCK - 1) / ROW_BLOCK; }

}  // namespace

const PackingKernels* packing_kernels() {
  const Kernels* active = active_kernels();
  if (!active) return nullptr;
#if defined(__x86_64__)
  if (std::strcmp(active->isa, "avx512vnni") == 0) return &avx512vnni::packing_kernels;
  if (std::strcmp(active->isa, "avx512") == 0) return &avx512::packing_kernels;
  if (std::strcmp(active->isa, "avx2") == 0) return &avx2::packing_kernels;
#elif defined(__aarch64__)
  if (std::strcmp(active->isa, "neon") == 0) return &neon::packing_kernels;
#endif
  return &scalar::packing_kernels;
}

float gain_of(const float* x, int64_t rows, int64_t inputs, int threads) {
  std::vector<float> largest(rows);
  parallel(threads, rows, [&](int64_t row) {
    float most = 0;
    for (int64_t j = 0; j < inputs; j++) most = std::max(most, std::fabs(x[row * inputs + j]));
    largest[row] = most;
  });
  float most = 0;
  for (float value : largest) most = std::max(most, value);
  return most > 0 ? std::ldexp(1.0f, std::min(126, -std::ilogb(most))) : 1.0f;
}

}  // namespace hc

using namespace hc;

// totals: sum of squares of W - Wq, and of W.
HC_EXPORT int64_t hc_quantize(const uint8_t* source, int32_t type, int64_t rows, int64_t inputs, int32_t format,
                              int32_t group, uint8_t* packed, double* totals, int32_t threads) {
  return guarded([&](const PackingKernels& kernels) {
    const int64_t blocks = blocks_of(rows);
    std::vector<double> error(blocks), energy(blocks);
    std::vector<int64_t> bad(blocks);
    const PackArgs args{{source, static_cast<SourceType>(type), rows, inputs}, static_cast<Format>(format), group,
                        packed, error.data(), energy.data(), bad.data()};
    parallel(threads, blocks, [&](int64_t block) { kernels.pack(args, block); });
    totals[0] = totals[1] = 0;
    for (int64_t block = 0; block < blocks; block++) {
      if (bad[block] >= 0) return bad[block];
      totals[0] += error[block];
      totals[1] += energy[block];
    }
    return DONE;
  });
}

HC_EXPORT int64_t hc_error(const uint8_t* source, int32_t type, int64_t rows, int64_t inputs, int32_t format,
                           int32_t group, const uint8_t* packed, float* out, int32_t threads) {
  return guarded([&](const PackingKernels& kernels) {
    const ErrorArgs args{{source, static_cast<SourceType>(type), rows, inputs}, static_cast<Format>(format), group,
                         packed, out};
    parallel(threads, blocks_of(rows), [&](int64_t block) { kernels.error(args, block); });
    return DONE;
  });
}

// codes [inputs, row_bytes], output_scale [outputs], channel_scale and norm [inputs].
HC_EXPORT int64_t hc_pack_residual(const float* error, int64_t outputs, int64_t inputs, int32_t width,
                                   uint8_t* codes, int64_t row_bytes, float* output_scale, float* channel_scale,
                                   float* norm, int32_t threads) {
  constexpr int ROUNDS = 3;  // a fourth lowers the error by less than 0.1 %
  return guarded([&](const PackingKernels& kernels) {
    const float gain = gain_of(error, outputs, inputs, threads);
    const ResidualArgs args{error, outputs, inputs, width, gain, output_scale, channel_scale, norm, codes, row_bytes};
    parallel(threads, outputs, [&](int64_t o) { kernels.start(args, o); });
    for (int round = 0; round < ROUNDS; round++) {
      parallel(threads, blocks_of(inputs), [&](int64_t item) { kernels.channels(args, item); });
      parallel(threads, outputs, [&](int64_t o) { kernels.outputs(args, o); });
    }
    parallel(threads, blocks_of(inputs), [&](int64_t item) { kernels.codes(args, item); });
    for (int64_t o = 0; o < outputs; o++) output_scale[o] /= gain;
    return DONE;
  });
}
