#include "program.h"

#include <algorithm>
#include <cstdio>

namespace hc {
namespace {

constexpr uint64_t NONE = ~uint64_t{0};

// Reads one record's fields; remembers the first operand that lies outside its segment.
struct Reader {
  const Record& record;
  const Memory& memory;
  bool valid = true;

  template <typename T>
  T* pointer(int index) {
    const uint64_t packed = record.operand[index];
    if (packed == NONE) return nullptr;
    const auto segment = static_cast<int>(packed >> 56);
    const auto offset = static_cast<int64_t>(packed & ((uint64_t{1} << 56) - 1));
    if (segment >= SEGMENTS || offset >= memory.size[segment]) {
      valid = false;
      return nullptr;
    }
    return reinterpret_cast<T*>(memory.base[segment] + offset);
  }
  int32_t integer(int index) const { return record.integer[index]; }
  float real(int index) const { return record.real[index]; }

  Merged merged(int base, int stride) {
    return {pointer<const float>(base), {pointer<const float>(base + 1), pointer<const float>(base + 2)}, integer(stride)};
  }
  QuantizedRows quantized(int codes, int group) {
    return {pointer<int8_t>(codes), pointer<float>(codes + 1), pointer<int32_t>(codes + 2),
            integer(group), integer(group + 1), integer(group + 2)};
  }
  Residual residual(int codes, int width) {
    return {pointer<const uint8_t>(codes), pointer<const float>(codes + 1), pointer<const float>(codes + 2),
            pointer<const float>(codes + 3), integer(width), integer(width + 1), integer(width + 2), integer(width + 3)};
  }
  Selection selection(int index, int channels) {
    return {pointer<int32_t>(index), pointer<int16_t>(index + 1), pointer<float>(index + 2), pointer<int32_t>(index + 3),
            integer(channels)};
  }
  LowRank factors(int a, int a_stride) {
    return {pointer<const void>(a), pointer<const void>(a + 1), pointer<const float>(a + 2), pointer<const float>(a + 3),
            integer(a_stride), integer(a_stride + 1), integer(a_stride + 2), integer(a_stride + 3), integer(a_stride + 4),
            integer(a_stride + 5)};
  }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t residual_blocks(const Residual& r) { return r.row_bytes / 32; }

// Fills `out`; false for an opcode that does not exist or sizes no kernel takes.
bool bind_one(Reader& in, BoundInstruction& out) {
  out.per_token = 1;
  out.fixed_items = false;
  out.is_output = false;
  out.corrected = false;
  switch (static_cast<Opcode>(in.record.opcode)) {
    case Opcode::signal: out.arguments = Signal{in.integer(instruction::signal::event_)}; return true;
    case Opcode::wait: out.arguments = Wait{in.integer(instruction::wait::event_)}; return true;
    case Opcode::embed: {
      using namespace instruction::embed;
      out.arguments = EmbedArgs{nullptr, in.pointer<const uint8_t>(packed_), static_cast<Format>(in.integer(format_)),
                                in.integer(group_), in.integer(rows_), in.integer(width_), in.pointer<float>(out_)};
      return true;
    }
    case Opcode::norm: {
      using namespace instruction::norm;
      out.arguments = NormArgs{in.pointer<const float>(residual_), in.merged(merged_, stride_), in.pointer<const float>(weight_),
                               in.real(epsilon_), in.integer(width_), in.pointer<float>(sum_), in.pointer<float>(out_),
                               in.quantized(codes_, group_)};
      return true;
    }
    case Opcode::quantize: {
      using namespace instruction::quantize;
      out.arguments = QuantizeArgs{in.pointer<const float>(x_), in.integer(width_), in.quantized(codes_, group_)};
      return true;
    }
    case Opcode::siluMul: {
      using namespace instruction::siluMul;
      const auto chunks = static_cast<int32_t>(ceil_div(in.integer(width_), SILU_CHUNK));
      out.arguments = SiluMulArgs{in.merged(gate_, gateStride_), in.merged(up_, upStride_), in.integer(width_), chunks,
                                  in.pointer<float>(out_), in.quantized(codes_, group_)};
      out.per_token = chunks;
      return true;
    }
    case Opcode::elementwise: {
      using namespace instruction::elementwise;
      out.arguments = ElementwiseArgs{static_cast<Elementwise>(in.integer(kind_)), in.merged(a_, aStride_), in.merged(b_, bStride_),
                                      in.integer(width_), in.pointer<float>(out_)};
      return true;
    }
    case Opcode::heads: {
      using namespace instruction::heads;
      out.arguments = HeadsArgs{in.merged(q_, qStride_), in.merged(k_, kStride_), in.merged(v_, vStride_),
                                in.pointer<const float>(qNorm_), in.pointer<const float>(kNorm_), in.real(epsilon_),
                                in.pointer<const float>(cosines_), in.pointer<const float>(sines_), in.integer(heads_),
                                in.integer(kvHeads_), in.integer(headDim_), 0, in.pointer<float>(qOut_),
                                Cache{in.pointer<uint16_t>(cacheK_), in.pointer<uint16_t>(cacheV_), in.integer(capacity_)}};
      out.per_token = in.integer(heads_) + 2 * in.integer(kvHeads_);
      return true;
    }
    case Opcode::attention: {
      using namespace instruction::attention;
      out.arguments = AttentionArgs{in.pointer<const float>(q_),
                                    Cache{in.pointer<uint16_t>(cacheK_), in.pointer<uint16_t>(cacheV_), in.integer(capacity_)},
                                    0, in.integer(heads_), in.integer(kvHeads_), in.integer(headDim_), 0, in.real(scale_),
                                    in.pointer<float>(out_), nullptr};
      out.per_token = in.integer(kvHeads_);
      return true;
    }
    case Opcode::linear: {
      using namespace instruction::linear;
      LinearArgs arguments{};
      arguments.packed = in.pointer<const uint8_t>(packed_);
      arguments.format = static_cast<Format>(in.integer(format_));
      arguments.rows = in.integer(rows_);
      arguments.inputs = in.integer(inputs_);
      arguments.x = in.pointer<const float>(x_);
      arguments.quantized = in.quantized(codes_, group_);
      arguments.group = arguments.quantized.group;
      arguments.y = in.pointer<float>(y_);
      arguments.y_stride = in.integer(yStride_);
      out.residual = in.residual(residualCodes_, residualWidth_);
      out.corrected = out.residual.codes != nullptr;
      out.is_output = in.integer(isOutput_) != 0;
      out.arguments = arguments;
      out.per_token = ceil_div(arguments.rows, 16);
      out.fixed_items = true;
      return in.integer(format_) >= 0 && in.integer(format_) <= static_cast<int>(Format::q2);
    }
    case Opcode::sparseSelect: {
      using namespace instruction::sparseSelect;
      out.arguments = SparseSelectArgs{in.pointer<const float>(x_), in.residual(residualCodes_, residualWidth_),
                                       in.selection(index_, channels_), nullptr};
      return in.integer(channels_) > 0;
    }
    case Opcode::sparseSum: {
      using namespace instruction::sparseSum;
      const Residual residual = in.residual(residualCodes_, residualWidth_);
      const auto chunks = static_cast<int32_t>(ceil_div(residual_blocks(residual), SPARSE_BLOCKS));
      out.arguments = SparseSumArgs{residual, in.selection(index_, channels_), chunks, in.pointer<float>(delta_),
                                    in.integer(deltaStride_)};
      out.per_token = chunks;
      return chunks > 0;
    }
    case Opcode::lowRankDown: {
      using namespace instruction::lowRankDown;
      const LowRank factors = in.factors(a_, aStride_);
      const auto chunks = static_cast<int32_t>(ceil_div(factors.rank, LOW_RANK_DOWN));
      out.arguments = LowRankDownArgs{factors, in.pointer<const float>(x_), in.pointer<float>(hidden_), chunks, in.integer(hiddenStride_)};
      out.per_token = chunks;
      return true;
    }
    case Opcode::lowRankUp: {
      using namespace instruction::lowRankUp;
      const LowRank factors = in.factors(a_, aStride_);
      const auto chunks = static_cast<int32_t>(ceil_div(factors.outputs, LOW_RANK_UP));
      out.arguments = LowRankUpArgs{factors, in.pointer<const float>(hidden_), in.integer(hiddenStride_), chunks,
                                    in.pointer<float>(delta_), in.integer(deltaStride_)};
      out.per_token = chunks;
      return true;
    }
  }
  return false;
}

}  // namespace

bool bind(const Record* records, int64_t count, const Memory& memory, std::vector<BoundInstruction>& out, char* error, size_t error_size) {
  out.resize(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; n++) {
    Reader reader{records[n], memory};
    BoundInstruction& bound = out[static_cast<size_t>(n)];
    bound.barrier = records[n].barrier != 0;
    bound.when = records[n].when;
    bound.after = records[n].after;
    const bool known = bind_one(reader, bound) && bound.after >= 0 && bound.after <= n;
    if (known && reader.valid) continue;
    std::snprintf(error, error_size, "instruction %lld (opcode %d) %s", static_cast<long long>(n), records[n].opcode,
                  known ? "has an operand outside its memory" : "is unknown or has sizes no kernel takes");
    return false;
  }
  // The vector is at its final size: arguments may now point into it.
  for (BoundInstruction& bound : out) {
    if (auto* linear = std::get_if<LinearArgs>(&bound.arguments); linear && bound.corrected) linear->residual = &bound.residual;
  }
  return true;
}

int64_t linear_scratch_bytes(const LinearArgs& arguments) {
  if (arguments.format == Format::bf16) return 0;
  const int64_t groups = arguments.quantized.groups;
  return LINEAR_BLOCKS * (16 * groups * arguments.group + 8 * 16 * groups);
}

int64_t scratch_bytes(const std::vector<BoundInstruction>& program) {
  int64_t most = 0;
  for (const BoundInstruction& bound : program) {
    if (auto* linear = std::get_if<LinearArgs>(&bound.arguments)) most = std::max(most, linear_scratch_bytes(*linear));
    if (auto* select = std::get_if<SparseSelectArgs>(&bound.arguments)) {
      most = std::max<int64_t>(most, 2 * 4 * (ceil_div(select->residual.inputs, 64) * 64 + 64));
    }
    if (auto* attention = std::get_if<AttentionArgs>(&bound.arguments)) {
      most = std::max(most, 4 * attention_scratch_floats(attention->head_dim, attention->cache.capacity));
    }
  }
  return most;
}

}  // namespace hc
