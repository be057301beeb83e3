/** What every part of `deno task gpu` is given and gives back. */
import { Context } from "../../ffi/cuda/context.ts";
import { Driver } from "../../ffi/cuda/driver.ts";
import { LLAMA_8B, type LlamaShape, SMALL } from "../bench/random_bundle.ts";

/** A line of the table. */
export interface Row {
  readonly what: string;
  /** A figure with its unit, or "not measured: why". */
  readonly found: string;
  /** What is wanted of it, where something is. */
  readonly target?: string;
}

/** Figures that other parts compare with, by their names. */
export interface Known {
  /** Bytes per second of a copy in the device's memory. */
  copyBandwidth?: number;
  /** Multiply-adds per second of PyTorch's bf16 product over all linears of a prompt. */
  torchRate?: number;
  /** Seconds of a decode step in PyTorch, bf16: all on the GPU, and under a cap of 8 GiB. */
  torchStep?: number;
  torchCapped?: number;
}

export interface Setting {
  /** Tiny sizes: the script itself is tested, on the simulator, and nothing is written. */
  readonly isSmoke: boolean;
  readonly threads: number;
  readonly llamaBench: string | undefined;
  readonly gguf: string | undefined;
  readonly known: Known;
}

export interface Part {
  readonly title: string;
  /** Throws where nothing of it can be measured: the reason goes into the table. */
  readonly measure: (setting: Setting) => readonly Row[] | Promise<readonly Row[]>;
}

export function openContext(): Context {
  return Context.retain(Driver.open(), undefined, { schedule: "spin" });
}

export const shapeOf = ({ isSmoke }: Pick<Setting, "isSmoke">): LlamaShape => isSmoke ? SMALL : LLAMA_8B;

/** Rows and inputs of the linears of a layer, as they are fused, by name. */
export function linearsOf(
  shape: LlamaShape,
): readonly (readonly [name: string, rows: number, inputs: number])[] {
  const { hidden_size: hidden, intermediate_size: inner, head_dim: headDim } = shape;
  const queries = shape.num_attention_heads * headDim, keys = shape.num_key_value_heads * headDim;
  return [
    ["q, k, v", queries + 2 * keys, hidden],
    ["output", hidden, queries],
    ["gate, up", 2 * inner, hidden],
    ["down", hidden, inner],
  ];
}

export function notMeasured(error: unknown): string {
  const reason = error instanceof Error ? error.message : String(error);
  return `not measured: ${reason.split("\n")[0]}`;
}

/** `75.2 % of the copy's 2.9 TB/s`, or the rate alone where the copy was not measured. */
export function shareText(bytesPerSecond: number, { copyBandwidth }: Known): string {
  const rate = `${(bytesPerSecond / 1e9).toPrecision(4)} GB/s`;
  return copyBandwidth === undefined
    ? rate
    : `${rate}, ${(100 * bytesPerSecond / copyBandwidth).toFixed(1)} % of the copy's`;
}
