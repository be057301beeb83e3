/** The C++ side of the instruction table, ffi/build/instructions.h, which the build writes. */
import {
  ATTENTION_TILE,
  EVENT_BYTES,
  type Fields,
  INSTRUCTIONS,
  MAILBOX_EVENTS,
  type Opcode,
  OPCODES,
  OPERAND_ALIGNMENT,
  PAGE_POSITIONS,
  SEGMENTS,
} from "./instructions.ts";
import { MOST_INTEGERS, MOST_OPERANDS, MOST_REALS, RECORD_BYTES } from "./records.ts";

/**
 * The C++ side of this table. `hc::instruction::norm::epsilon_` is an index, `hc::Opcode::norm` an opcode, and
 * `hc::extents(record, n, out)` says what the record's operands must cover, and what is wrong with its integers.
 */
export function cppHeader(): string {
  const list = (names: readonly string[], suffix: string) =>
    names.length === 0 ? "" : `enum ${suffix} : int { ${names.map((n) => `${n}_`).join(", ")} };`;
  const lines = [
    "// Written by the build from ffi/instructions.ts. Do not edit.",
    "#pragma once",
    "#include <cstdint>",
    "#include <string>",
    '#include "../simd/extents.h"',
    "namespace hc {",
    `constexpr int MOST_OPERANDS = ${MOST_OPERANDS}, MOST_INTEGERS = ${MOST_INTEGERS}, MOST_REALS = ${MOST_REALS};`,
    `constexpr int PAGE_POSITIONS = ${PAGE_POSITIONS}, OPERAND_ALIGNMENT = ${OPERAND_ALIGNMENT};`,
    `constexpr int ATTENTION_TOKENS = ${ATTENTION_TILE};`,
    `constexpr int MAILBOX_EVENTS = ${MAILBOX_EVENTS}, EVENT_BYTES = ${EVENT_BYTES};`,
    `enum class Segment : int { ${SEGMENTS.join(", ")} };`,
    `constexpr int SEGMENTS = ${SEGMENTS.length};`,
    "struct Record { int32_t opcode, over, when, barrier, awaits, reserved; uint64_t operand[MOST_OPERANDS];",
    "  int32_t integer[MOST_INTEGERS]; float real[MOST_REALS]; };",
    `static_assert(sizeof(Record) == ${RECORD_BYTES});`,
    `enum class Opcode : int32_t { ${OPCODES.join(", ")} };`,
    `constexpr const char* OPCODE_NAMES[] = { ${OPCODES.map((op) => `"${op}"`).join(", ")} };`,
    `constexpr int OPCODES = ${OPCODES.length};`,
    ...OPCODES.map((op) => {
      const fields: Fields = INSTRUCTIONS[op];
      return `namespace instruction::${op} { ${list(Object.keys(fields.operands), "Operands")} ${
        list(Object.keys(fields.integers), "Integers")
      } ${list(fields.reals, "Reals")} }`;
    }),
    "// How many bytes each operand of a record must cover. Gives what its integers break, nothing where they are in order.",
    "inline std::string extents(const Record& record, Size n, Extent (&out)[MOST_OPERANDS]) {",
    "  switch (static_cast<Opcode>(record.opcode)) {",
    ...OPCODES.flatMap(extentCase),
    "  }",
    '  return "no such opcode";',
    "}",
    "}  // namespace hc",
    "",
  ];
  return lines.join("\n");
}

function extentCase(op: Opcode): string[] {
  const { operands, integers, where = [] }: Fields = INSTRUCTIONS[op];
  return [
    `    case Opcode::${op}: {`,
    ...Object.entries(integers).flatMap(([name, [least, most]], i) => [
      `      const Size ${name}(record.integer[${i}]);`,
      `      if (${name} < ${least} || ${name} > ${most}) return out_of_range("${name}", ${name}, ${least}, ${most});`,
    ]),
    ...where.map((rule) => `      if (!(${rule})) return "its integers break ${rule}";`),
    ...Object.entries(operands).map(([name, { bytes, access, optional, alignment = OPERAND_ALIGNMENT }], i) =>
      `      out[${i}] = {"${name}", ${bytes}, ${access === "write"}, ${optional === true}, ${alignment}};`
    ),
    '      return "";',
    "    }",
  ];
}
