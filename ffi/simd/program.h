// A program: instructions whose operands are bound to memory. Binding happens once; a step only changes the number
// of tokens, the position and the mode.
#pragma once
#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "instructions.h"
#include "kernels.h"

namespace hc {

enum class Mode : int32_t { prefill = 0, decode = 1 };
enum class LogitRows : int32_t { none = 0, last = 1, all = 2 };

struct Step {
  const int32_t* tokens;
  int32_t count;
  int32_t position;
  Mode mode;
  LogitRows logits;
};

struct Signal { int32_t event; };
struct Wait { int32_t event; };

using Arguments = std::variant<Signal, Wait, EmbedArgs, NormArgs, QuantizeArgs, SiluMulArgs, ElementwiseArgs, HeadsArgs,
                               AttentionArgs, LinearArgs, SparseSelectArgs, SparseSumArgs, LowRankDownArgs, LowRankUpArgs>;

struct BoundInstruction {
  Arguments arguments;
  bool barrier;
  int32_t when;          // 0 always, 1 prefill, 2 decode
  int32_t after;         // how many instructions back the one lies that must be complete first; 0: none
  bool is_output;        // a linear that makes logits: runs on the rows the step asks for
  int64_t per_token;     // items of one token (tokens of a step multiply it), or of the step when fixed_items
  bool fixed_items;
  bool corrected;        // a linear that adds the residual in prompt steps
  Residual residual;     // what LinearArgs::residual points at

  bool runs(Mode mode) const { return when == 0 || (when == 1) == (mode == Mode::prefill); }
};

struct Memory {
  uint8_t* base[SEGMENTS];
  int64_t size[SEGMENTS];
};

// Binds records to memory. Returns null and leaves a message in `error` when a record does not fit (an operand
// outside its segment, an unknown opcode or format): a plan is data from a file and is not trusted.
bool bind(const Record* records, int64_t count, const Memory& memory, std::vector<BoundInstruction>& out, char* error, size_t error_size);

// Bytes of scratch one thread needs for any instruction of the program.
int64_t scratch_bytes(const std::vector<BoundInstruction>& program);

int64_t linear_scratch_bytes(const LinearArgs& arguments);

}  // namespace hc
