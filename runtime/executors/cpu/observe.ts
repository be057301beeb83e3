/**
 * Observers: what calibration needs of the inputs of linears. An instruction beside each window's linear adds up x_i^2, or
 * x_i x_j, over every token that a step runs, in doubles and in the order of the tokens, so the sums do not
 * depend on threads. A linear's input is the value itself, not the int8 codes it may read.
 */
import { type Node, producers, values } from "../../../compiler/ir/graph.ts";
import { elementsPerToken } from "../../../compiler/ir/types.ts";
import { sourceOf } from "../../../compiler/ir/verify_corrections.ts";
import type { Plan } from "../../../compiler/plan.ts";
import type { Instruction, Operand } from "../../../ffi/instructions.ts";
import type { NativeBuffer } from "../../../ffi/mapping.ts";

/** "squares": sums of x_i^2, [inputs]. "products": sums of x_i x_j, [inputs, inputs]. */
export type Observe = "squares" | "products";

export class Observers {
  readonly bytes: number;
  readonly #kind: Observe;
  readonly #windows = new Map<
    string,
    { readonly source: string; readonly width: number; readonly offset: number }
  >();
  /** Windows by the linear that they are of. */
  readonly #linears = new Map<Node, string>();
  #sums: NativeBuffer | undefined;

  constructor({ graph }: Plan, kind: Observe) {
    this.#kind = kind;
    const makers = producers(graph), types = values(graph);
    let offset = 0;
    for (const node of graph.nodes) {
      if (node.op !== "linear" || node.params.window === undefined) continue;
      const source = sourceOf(node, makers);
      const width = elementsPerToken(types.get(source)!.type);
      this.#windows.set(node.params.window, { source, width, offset });
      this.#linears.set(node, node.params.window);
      offset += 8 * (kind === "products" ? width * width : width);
    }
    this.bytes = offset;
  }

  /** The instruction that observes a node's input, for the node's window; `place` is where a value lies. */
  before(
    node: Node,
    place: (value: string) => { readonly x: Operand; readonly xStride: number },
  ): Instruction[] {
    const window = this.#windows.get(this.#linears.get(node) ?? "");
    if (window === undefined) return [];
    const { x, xStride } = place(window.source);
    return [{
      op: "observe",
      operands: { x, sums: { segment: "observations", offset: window.offset } },
      integers: { width: window.width, xStride, products: this.#kind === "products" ? 1 : 0 },
      reals: {},
      over: "tokens",
      when: "always",
      barrier: true,
      awaits: 0,
    }];
  }

  /** Where the engine adds up. */
  attach(sums: NativeBuffer): void {
    this.#sums = sums;
  }

  /** The sums so far by window: views, valid until the executor is disposed of. */
  sums(): ReadonlyMap<string, Float64Array> {
    const { bytes } = this.#sums!;
    return new Map([...this.#windows].map(([window, { width, offset }]) => {
      const length = this.#kind === "products" ? width * width : width;
      return [window, new Float64Array(bytes.buffer, bytes.byteOffset + offset, length)];
    }));
  }
}
