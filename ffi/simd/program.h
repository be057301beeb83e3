// Programs: instructions whose operands are bound to memory. Binding happens once and checks everything that a step
// relies on; a step only changes counts and the mode.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <variant>
#include <vector>

#include "instructions.h"
#include "kernels.h"

namespace hc {

enum class Mode : int32_t { prefill = 0, decode = 1 };

struct Step {
  int32_t tokens, rows, tiles;
  Mode mode;
};

struct Signal { uint64_t* event; };
struct Wait { uint64_t* event; };

using Arguments = std::variant<Signal, Wait, EmbeddingArgs, NormArgs, QuantizeArgs, SiluMulArgs, ElementwiseArgs, RopeArgs, AppendArgs,
                               AttendArgs, LinearArgs, SparseSelectArgs, SparseSumArgs, LowRankDownArgs, LowRankUpArgs, ObserveArgs>;

struct BoundInstruction {
  Arguments arguments;
  bool barrier;
  bool over_rows;      // runs over the step's rows, not its tokens
  bool decode_only;
  int32_t awaits;       // how many instructions back the one lies that must be complete first; 0: none
  int64_t per_token;   // items of one token (tokens of a step multiply it), or of the step when fixed_items
  bool fixed_items;

  // 0: the step skips it.
  int64_t items(const Step& step) const {
    if (decode_only && step.mode != Mode::decode) return 0;
    if (std::holds_alternative<AttendArgs>(arguments)) return per_token * step.tiles;
    const int64_t count = over_rows ? step.rows : step.tokens;
    return fixed_items ? (count > 0 ? per_token : 0) : per_token * count;
  }
};

struct Memory {
  uint8_t* base[SEGMENTS];  // multiples of 64
  int64_t size[SEGMENTS];
};

// What a program is refused for. A program is data and is not trusted.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Binds records to memory, for steps of at most `capacity` tokens, rows and tiles. Throws Refusal for a record of which any step
// could touch memory outside its operands, or wait for ever.
std::vector<BoundInstruction> bind(const Record* records, int64_t count, const Memory& memory, int32_t capacity);

// Throws Refusal where an event is not signalled exactly once, or the lanes wait for each other in a circle. With a partner,
// events that no lane signals are the partner's.
void check_lanes(const std::vector<std::vector<BoundInstruction>>& lanes, bool partner);

// Bytes of scratch one thread needs for any instruction of the program.
int64_t scratch_bytes(const std::vector<BoundInstruction>& program);

}  // namespace hc
