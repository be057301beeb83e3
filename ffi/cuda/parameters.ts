/**
 * What kernels are given, written once: from the instruction table come the C++ structures of their parameters
 * (ffi/build/cuda/parameters.h, which the build writes) and the bytes of one launch. A structure has the instruction's
 * operands as addresses, then its integers (i32) and reals (f32), all in the table's order.
 */
import {
  type Fields,
  type Instruction,
  INSTRUCTIONS,
  type Opcode,
  OPCODES,
  type Operand,
} from "../instructions.ts";

/** Instructions that only this device has: name -> fields, as in the instruction table. */
export const DEVICE_INSTRUCTIONS = {
  // Copies [n, rowBytes] between the arenas: values of the CPU that kernels read, and those for it that no kernel mirrors.
  mirror: {
    operands: {
      from: { bytes: "n * rowBytes", access: "read" },
      to: { bytes: "n * rowBytes", access: "write" },
    },
    integers: { rowBytes: [4, 2 ** 28] },
    reals: [],
  },
} as const satisfies Record<string, Fields>;

/** Opcodes without a kernel: `signal` and `wait` are fields of a launch here; rows are chosen, and inputs observed, on the CPU. */
const WITHOUT_KERNEL = ["signal", "wait", "observe", "sparseSelect", "sparseSum"] as const satisfies Opcode[];
type WithoutKernel = typeof WITHOUT_KERNEL[number];
export type KernelOp = Exclude<Opcode, WithoutKernel> | keyof typeof DEVICE_INSTRUCTIONS;

const isKernelOp = (op: Opcode): op is Exclude<Opcode, WithoutKernel> =>
  !WITHOUT_KERNEL.some((other) => other === op);

export const KERNEL_OPS: readonly KernelOp[] = [...OPCODES.filter(isKernelOp), "mirror"];

function fieldsOf(op: KernelOp): Fields {
  return op === "mirror" ? DEVICE_INSTRUCTIONS[op] : INSTRUCTIONS[op];
}

/** `Norm` for `norm`: the structure's name. */
const structName = (op: string) => op[0]!.toUpperCase() + op.slice(1);

export function parametersHeader(): string {
  const structs = KERNEL_OPS.map((op) => {
    const { operands, integers, reals } = fieldsOf(op);
    const members = [
      ...Object.entries(operands).map(([name, { access }]) =>
        `${access === "read" ? "Read" : "Write"} ${name};`
      ),
      ...Object.keys(integers).map((name) => `int32_t ${name};`),
      ...reals.map((name) => `float ${name};`),
    ];
    return `struct ${structName(op)} { ${members.join(" ")} };`;
  });
  return [
    "// Written by the build from ffi/instructions.ts and ffi/cuda/parameters.ts. Do not edit.",
    "#pragma once",
    '#include "call.h"',
    "namespace hc {",
    ...structs,
    "}  // namespace hc",
    "",
  ].join("\n");
}

/** Parameters by names; operands left out are null. */
export interface KernelInstruction {
  readonly op: KernelOp;
  readonly operands: Readonly<Record<string, Operand | undefined>>;
  readonly integers: Readonly<Record<string, number>>;
  readonly reals: Readonly<Record<string, number>>;
}

/** Whether an instruction of the table has a kernel. */
export function hasKernel(instruction: Instruction): instruction is Instruction & KernelInstruction {
  return isKernelOp(instruction.op);
}

/** The bytes of the structure. @param addressOf a device address, 0n for an operand that is left out */
export function packParameters(
  { op, operands, integers, reals }: KernelInstruction,
  addressOf: (operand: Operand, name: string) => bigint,
): Uint8Array<ArrayBuffer> {
  const fields = fieldsOf(op);
  const names = Object.keys(fields.operands), numbers = Object.keys(fields.integers);
  const bytes = 8 * names.length + 4 * (numbers.length + fields.reals.length);
  const view = new DataView(new ArrayBuffer(Math.ceil(bytes / 8) * 8));
  names.forEach((name, i) => {
    const operand = operands[name];
    view.setBigUint64(8 * i, operand === undefined ? 0n : addressOf(operand, name), true);
  });
  const after = 8 * names.length;
  numbers.forEach((name, i) => view.setInt32(after + 4 * i, integers[name] ?? 0, true));
  const last = after + 4 * numbers.length;
  fields.reals.forEach((name, i) => view.setFloat32(last + 4 * i, reals[name] ?? 0, true));
  return new Uint8Array(view.buffer);
}

/** The structure Call of kernels/call.h. */
export interface Call {
  readonly n: number;
  readonly tokens: number;
  readonly tiles: number;
  readonly chunks: number;
  readonly checks: boolean;
  readonly host: bigint;
  readonly report: bigint;
  readonly mailbox: bigint;
  readonly wait: bigint;
  readonly signal: bigint;
  readonly arrivals: bigint;
  readonly scratch: bigint;
}

export function packCall(call: Call): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(80));
  [call.n, call.tokens, call.tiles, call.chunks, call.checks ? 1 : 0].forEach((value, i) =>
    view.setInt32(4 * i, value, true)
  );
  view.setBigInt64(24, call.host, true);
  [call.report, call.mailbox, call.wait, call.signal, call.arrivals, call.scratch].forEach((value, i) =>
    view.setBigUint64(32 + 8 * i, value, true)
  );
  return new Uint8Array(view.buffer);
}
