// The compiler's numeric work on weights: quantising, measuring the error, packing residuals, factorising. Sources
// quantize.cpp, residual.cpp and factorise.cpp are compiled once per instruction set (see isa.h) and fill one table;
// packing.cpp shares their items among threads. Layouts are those of compiler/weights/{format,correction}.ts. All
// results are the same for every number of threads and every instruction set.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace hc {

enum class SourceType : int32_t { f32 = 0, f16 = 1, bf16 = 2 };

// A checkpoint's matrix, [rows, inputs] row-major, at any alignment.
struct Source {
  const uint8_t* bytes;
  SourceType type;
  int64_t rows, inputs;
};

struct PackArgs {  // items: blocks of 16 rows
  Source source;
  Format format;
  int32_t group;
  uint8_t* packed;
  double* error;   // [items]: sum of squares of W - Wq
  double* energy;  // [items]: sum of squares of W
  int64_t* bad;    // [items]: index row * inputs + input of the first value not finite or too large, else -1
};

struct ErrorArgs {  // items: blocks of 16 rows
  Source source;
  Format format;
  int32_t group;
  const uint8_t* packed;
  float* out;  // [rows, inputs]: W - Wq
};

// E ~= output_scale x channel_scale x codes; see residual.cpp for the method.
struct ResidualArgs {
  const float* error;  // [outputs, inputs]
  int64_t outputs, inputs;
  int32_t width;
  float gain;            // a power of two that brings the largest |E| near 1
  float* output_scale;   // [outputs]; in units of 1 / gain until the end
  float* channel_scale;  // [inputs]
  float* norm;           // [inputs]
  uint8_t* codes;        // [inputs, row_bytes]
  int64_t row_bytes;
};

struct PackingKernels {
  // quantize.cpp
  void (*pack)(const PackArgs&, int64_t item);
  void (*error)(const ErrorArgs&, int64_t item);
  // residual.cpp; items of `channels` and `codes`: blocks of 16 inputs, of the others: outputs
  void (*start)(const ResidualArgs&, int64_t output);
  void (*channels)(const ResidualArgs&, int64_t item);
  void (*outputs)(const ResidualArgs&, int64_t output);
  void (*codes)(const ResidualArgs&, int64_t item);
};

namespace avx512vnni { extern const PackingKernels packing_kernels; }
namespace avx512 { extern const PackingKernels packing_kernels; }
namespace avx2 { extern const PackingKernels packing_kernels; }
namespace neon { extern const PackingKernels packing_kernels; }
namespace scalar { extern const PackingKernels packing_kernels; }

}  // namespace hc
