/**
 * Makes graphs: gives every value a fresh name and its inferred type. The frontend traces into one, and passes that
 * add nodes use one.
 */
import type { Graph, Node, NodeOf, RopeTable, Stage, Value } from "./graph.ts";
import { checkRope, checkRopeTable, inferTypes } from "./infer.ts";
import type { Op, Params } from "./ops.ts";
import type { TensorType } from "./types.ts";

/** Words that are no names in the graph's text. */
const RESERVED: ReadonlySet<string> = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from " +
    "global if import in is lambda nonlocal not or pass raise return try while with yield").split(" "),
);

export function isName(text: string): boolean {
  return /^[A-Za-z_][A-Za-z0-9_]*$/.test(text) && !RESERVED.has(text);
}

/** Hands out unique names: `q`, `q1`, `q2`, ...; a base that ends in a digit continues with `_`: `h2`, `h2_1`. */
export class NameSource {
  readonly #used: Set<string>;
  readonly #next = new Map<string, number>();

  constructor(used: Iterable<string> = []) {
    this.#used = new Set(used);
  }

  fresh(hint: string): string {
    const base = isName(hint) ? hint : "x";
    const stem = /\d$/.test(base) ? `${base}_` : base;
    let number = this.#next.get(base) ?? 0;
    let name = number === 0 ? base : `${stem}${number}`;
    while (this.#used.has(name)) name = `${stem}${++number}`;
    this.#next.set(base, number + 1);
    this.#used.add(name);
    return name;
  }
}

/** A node of op P as a member of the union `Node`: TypeScript cannot see that P picks the same member of each. */
export function asNode<P extends Op>(node: NodeOf<P>): Node {
  return node as unknown as Node;
}

export class GraphBuilder {
  readonly #architecture: string;
  readonly #names = new NameSource();
  readonly #inputs: Value[] = [];
  readonly #ropes = new Map<string, RopeTable>();
  readonly #nodes: Node[] = [];

  constructor(architecture: string) {
    this.#architecture = architecture;
  }

  input(name: string, type: TensorType): Value {
    const value = { name: this.#names.fresh(name), type };
    this.#inputs.push(value);
    return value;
  }

  /**
   * The name of the table with these frequencies (radians per position) and this scale; equal tables are one. Throws
   * GraphError when they make no table.
   */
  ropeTable(frequencies: readonly number[], scale = 1): string {
    const content = `${scale} ${frequencies}`;
    let table = this.#ropes.get(content);
    if (table === undefined) {
      checkRopeTable({ name: "table", frequencies, scale });
      table = { name: this.#names.fresh(`rope_${this.#ropes.size}`), frequencies, scale };
      this.#ropes.set(content, table);
    }
    return table.name;
  }

  /**
   * Appends a node and returns its outputs. `hint` is the base of their names, one for all or one for each.
   * Throws GraphError when inputs or parameters do not fit the op.
   */
  node<P extends Op>(
    op: P,
    inputs: readonly Value[],
    params: Params[P],
    hint: string | readonly string[] = op,
  ): readonly Value[] {
    const types = inferTypes(op, inputs.map((v) => v.type), params);
    const outputs = types.map((type, i) => {
      const base = typeof hint === "string" ? hint : hint[i] ?? op;
      return { name: this.#names.fresh(base), type };
    });
    const node = asNode({
      op,
      inputs: inputs.map((v) => v.name),
      outputs,
      params,
      placement: { causes: [] },
    });
    checkRope(node, [...this.#ropes.values()]);
    this.#nodes.push(node);
    return outputs;
  }

  finish(outputs: readonly Value[], stage: Stage): Graph {
    return {
      stage,
      architecture: this.#architecture,
      inputs: [...this.#inputs],
      ropes: [...this.#ropes.values()],
      nodes: [...this.#nodes],
      outputs: outputs.map((v) => v.name),
      budgets: [],
    };
  }
}
