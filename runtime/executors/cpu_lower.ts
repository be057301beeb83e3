/**
 * Lowers a plan's graph to the native engine's instructions.
 *
 * A node becomes an instruction where it makes something that lies in memory. Views (split_heads, merge_heads), merges
 * and what attention folds into its own read of q, k and v (their norm and rope) are not materialised: they are
 * remembered as an `Address` and become operands of the instruction that consumes them. So a merge costs no pass over
 * memory: its consumer adds the deltas as it reads.
 *
 * Corrections "inline": a window's choice of channels (or first factor), its linear and the sums run without a barrier
 * between them: a thread that finds no more of one goes on with the next. "async": corrections are a program of their
 * own, between two events. The numbers are the same: nothing but the order in time differs.
 *
 * Values and their memory: cpu_places.ts. The instruction lists: cpu_program.ts. Corrections: cpu_corrections.ts.
 */
import type { Node, NodeOf } from "../../compiler/ir/graph.ts";
import { packedName, paddedOutputs } from "../../compiler/ir/naming.ts";
import type { Op } from "../../compiler/ir/ops.ts";
import { elementsPerToken } from "../../compiler/ir/types.ts";
import type { Plan } from "../../compiler/plan.ts";
import { HcinferError } from "../../compiler/errors.ts";
import type { Operand } from "../../ffi/instructions.ts";
import {
  beginCorrection,
  type Correction,
  type Finish,
  isCorrection,
  NO_RESIDUAL,
  residualOf,
} from "./cpu_corrections.ts";
import type { Buffer, Draft, Flight } from "./cpu_memory.ts";
import {
  type Address,
  NOT_QUANTIZED,
  Places,
  type Quantized,
  type RopePlace,
  shifted,
  type WeightPlaces,
} from "./cpu_places.ts";
import { prefixed, Program } from "./cpu_program.ts";

export type LoweredMode = "async" | "inline" | "off";

export interface LowerOptions {
  readonly mode: LoweredMode;
  readonly contextLength: number;
  readonly weight: WeightPlaces;
}

export interface Lowered {
  readonly backbone: readonly Draft[];
  readonly compensation: readonly Draft[];
  /** The compensation lane cut into what runs between two times of the backbone. */
  readonly flights: readonly Flight[];
  readonly events: number;
  /** f32 [tokens, vocabulary]. */
  readonly logits: Buffer;
  readonly cacheBytes: number;
  readonly ropes: readonly RopePlace[];
  readonly tableBytes: number;
}

const POSITIONS_PER_BLOCK = 16;

/** @throws {HcinferError} "bundle": a graph that no program of this executor computes, or weights that do not fit it */
export function lower(plan: Plan, options: LowerOptions): Lowered {
  return new Lowering(plan, options).run();
}

class Lowering {
  readonly #program = new Program();
  readonly #places: Places;
  /** By window; empty when corrections are off. */
  readonly #corrections = new Map<string, Correction[]>();
  /** Corrections that have begun beside their linear. */
  readonly #begun = new Map<Node, Finish>();
  #logits: Buffer | undefined;

  constructor(readonly plan: Plan, readonly options: LowerOptions) {
    this.#places = new Places(plan, options.weight, options.contextLength);
    if (options.mode === "off") return;
    for (const node of plan.graph.nodes.filter(isCorrection)) {
      const list = this.#corrections.get(node.params.window);
      if (list) list.push(node);
      else this.#corrections.set(node.params.window, [node]);
    }
  }

  run(): Lowered {
    const { nodes } = this.plan.graph;
    const program = this.#program, places = this.#places;
    if (this.options.mode === "async") {
      // The backbone first: it makes what the other lane reads. Deltas get their places where the backbone reads them.
      for (const lane of [...this.plan.lanes].sort((a) => a.lane === "compensation" ? 1 : -1)) {
        program.enter(lane.lane);
        for (const step of lane.steps) {
          if ("run" in step) this.#lower(nodes[step.run]!);
          else if ("signal" in step) program.signal(step.signal);
          else program.wait(step.wait);
        }
      }
    } else {
      for (const node of nodes) this.#lower(node);
    }
    if (!this.#logits) throw new HcinferError("bundle", "the plan makes no logits");
    return {
      backbone: program.backbone,
      compensation: program.compensation,
      flights: program.flights(),
      events: program.events,
      logits: this.#logits,
      cacheBytes: places.cacheBytes,
      ropes: places.ropes,
      tableBytes: places.tableBytes,
    };
  }

  #lower(node: Node): void {
    const rule: (node: never) => void = this.#rules[node.op];
    rule(node as never);
  }

  /** One rule per op; total by type. */
  readonly #rules: { readonly [P in Op]: (node: NodeOf<P>) => void } = {
    embedding: (node) => {
      const { path, rows, width } = node.params;
      const packed = this.#places.packed(path);
      const out = this.#places.make(node.outputs[0]!.name, width);
      const sizes = { ...packed.codes, rows, width };
      this.#program.emit("embed", true, { packed: packed.place, out }, sizes, {});
    },
    rms_norm: (node) => {
      const [x, out] = [this.#places.address(node.inputs[0]!), node.outputs[0]!];
      const norm = { weight: this.#places.vector(node.params.path), epsilon: node.params.epsilon };
      if (out.type.shape.length === 3) { // of each head: done where attention reads them
        this.#places.set(out.name, { ...x, norm });
      } else {
        this.#norm(x, undefined, norm, undefined, out.name);
      }
    },
    add_rms_norm: (node) => {
      const norm = { weight: this.#places.vector(node.params.path), epsilon: node.params.epsilon };
      const [a, b] = [this.#places.address(node.inputs[0]!), this.#places.address(node.inputs[1]!)];
      const [residual, merged] = a.deltas.length === 0 && b.stride >= a.stride ? [a, b] : [b, a];
      this.#norm(residual, merged, norm, node.outputs[0]!.name, node.outputs[1]!.name);
    },
    rope: (node) => {
      const address = this.#places.address(node.inputs[0]!);
      this.#places.set(node.outputs[0]!.name, { ...address, table: node.params.table });
    },
    split_heads: (node) => this.#places.alias(node),
    merge_heads: (node) => this.#places.alias(node),
    attention: (node) => this.#attention(node),
    linear: (node) => this.#linear(node),
    silu_mul: (node) => {
      const [gate, up] = [this.#places.address(node.inputs[0]!), this.#places.address(node.inputs[1]!)];
      const name = node.outputs[0]!.name, width = this.#places.width(name);
      const out = this.#places.make(name, width);
      const quantized = this.#places.quantizedByProducer(name);
      const operands = { out, ...quantized?.operands };
      const sizes = {
        width,
        gateStride: gate.stride,
        upStride: up.stride,
        ...quantized?.sizes ?? NOT_QUANTIZED,
      };
      this.#program.perMode([gate, up], (merged) => {
        const sources = { ...prefixed("gate", merged(gate)), ...prefixed("up", merged(up)) };
        this.#program.emit("siluMul", true, { ...sources, ...operands }, sizes, {});
      });
    },
    silu: (node) => this.#elementwise(node, 2),
    add: (node) => this.#elementwise(node, 0),
    mul: (node) => this.#elementwise(node, 1),
    low_rank: (node) => this.#correction(node),
    sparse_residual: (node) => this.#correction(node),
    merge: (node) => {
      const count = node.outputs.length;
      const sections = paddedOutputs(node.outputs.map((v) => ({ outputs: elementsPerToken(v.type) })));
      const deltas = this.options.mode === "off" ? [] : node.inputs.slice(count).map((name) => ({
        place: this.#places.address(name).place,
        decodeOnly: this.#places.producer(name) === "sparse_residual",
      }));
      node.outputs.forEach((value, i) => {
        const column = 4 * sections.firstColumn[i]!;
        const base = this.#places.address(node.inputs[i]!);
        const own = deltas.map((delta) => ({ ...delta, place: shifted(delta.place, column) }));
        this.#places.set(value.name, { ...base, deltas: [...base.deltas, ...own] });
      });
    },
  };

  #norm(
    residual: Address,
    merged: Address | undefined,
    norm: { weight: Operand; epsilon: number },
    sumName: string | undefined,
    outName: string,
  ): void {
    const width = this.#places.width(outName);
    const out = this.#places.make(outName, width);
    const sum = sumName === undefined ? undefined : this.#places.make(sumName, width);
    const quantized = this.#places.quantizedByProducer(outName);
    const operands = { residual: residual.place, weight: norm.weight, sum, out, ...quantized?.operands };
    const sizes = { width, stride: merged?.stride ?? 0, ...quantized?.sizes ?? NOT_QUANTIZED };
    this.#program.perMode(merged ? [merged] : [], (places) => {
      const added = merged ? prefixed("merged", places(merged)) : {};
      this.#program.emit("norm", true, { ...operands, ...added }, sizes, { epsilon: norm.epsilon });
    });
  }

  #elementwise(node: NodeOf<"silu"> | NodeOf<"add"> | NodeOf<"mul">, kind: number): void {
    const name = node.outputs[0]!.name, width = this.#places.width(name);
    const a = this.#places.address(node.inputs[0]!);
    const b = node.inputs[1] ? this.#places.address(node.inputs[1]) : undefined;
    const out = this.#places.make(name, width);
    const sizes = { kind, width, aStride: a.stride, bStride: b?.stride ?? 0 };
    this.#program.perMode(b ? [a, b] : [a], (merged) => {
      const sources = { ...prefixed("a", merged(a)), ...(b ? prefixed("b", merged(b)) : {}) };
      this.#program.emit("elementwise", true, { ...sources, out }, sizes, {});
    });
  }

  #linear(node: NodeOf<"linear">): void {
    const { weights } = node.params;
    const x = node.inputs[0]!;
    const packed = this.#places.packed(packedName(weights));
    const { total, firstColumn } = paddedOutputs(weights);
    const isOutput = this.plan.graph.outputs.includes(node.outputs[0]!.name);
    const stride = isOutput ? weights[0]!.outputs : total;
    const y = this.#places.allocate(stride);
    if (isOutput) this.#logits = y.buffer;
    node.outputs.forEach((value, i) => {
      this.#places.set(value.name, { place: shifted(y, 4 * firstColumn[i]!), stride, deltas: [] });
    });

    const quantized = packed.format.kind === "bf16" ? undefined : this.#quantize(x, packed.format.group);
    const corrections = this.#correctionsOf(node);
    if (this.options.mode === "inline") {
      for (const correction of corrections) {
        this.#begun.set(
          correction,
          beginCorrection(this.#program, this.#places, correction, false),
        );
      }
    }
    const sparse = corrections.find((n) => n.op === "sparse_residual");
    const residual = sparse && quantized ? residualOf(this.#places, sparse) : undefined;
    // In line, the corrections' second parts follow without a barrier, and the last of them ends all.
    const alone = this.options.mode !== "inline" || corrections.length === 0;
    this.#program.emit("linear", alone, {
      packed: packed.place,
      x: this.#places.address(x).place,
      ...quantized?.operands,
      y,
      ...residual?.operands,
    }, {
      format: packed.codes.format,
      rows: stride,
      inputs: this.#places.width(x),
      yStride: stride,
      isOutput: isOutput ? 1 : 0,
      ...quantized?.sizes ?? NOT_QUANTIZED,
      ...residual?.sizes ?? NO_RESIDUAL,
    }, {});
  }

  /** int8 activations of `name`: what its producer wrote, or an instruction that writes them now. */
  #quantize(name: string, group: number): Quantized {
    const { quantized, isNew } = this.#places.quantized(name, group);
    if (isNew) {
      const operands = { x: this.#places.address(name).place, ...quantized.operands };
      const sizes = { width: this.#places.width(name), ...quantized.sizes };
      this.#program.emit("quantize", true, operands, sizes, {});
    }
    return quantized;
  }

  #correctionsOf(node: NodeOf<"linear">): readonly Correction[] {
    const merge = this.#places.consumers(node.outputs[0]!.name).find((n) => n.op === "merge");
    return merge?.op === "merge" ? this.#corrections.get(merge.params.window) ?? [] : [];
  }

  #correction(node: Correction): void {
    if (this.options.mode === "off") return;
    const begun = this.#begun.get(node);
    const isLast = this.#corrections.get(node.params.window)?.at(-1) === node;
    if (begun) begun(isLast);
    else beginCorrection(this.#program, this.#places, node, true)(true);
  }

  #attention(node: NodeOf<"attention">): void {
    const inputs = node.inputs.slice(0, 3);
    const [q, k, v] = inputs.map((name) => this.#places.address(name)) as [Address, Address, Address];
    const [heads, headDim] = this.#places.shape(inputs[0]!).slice(1) as [number, number];
    const kvHeads = this.#places.shape(inputs[1]!)[1] as number;
    const capacity = Math.ceil(this.options.contextLength / POSITIONS_PER_BLOCK) * POSITIONS_PER_BLOCK;
    const cacheK = this.#places.cache(2 * kvHeads * capacity * headDim);
    const cacheV = this.#places.cache(2 * kvHeads * capacity * headDim);
    const qOut = this.#places.allocate(heads * headDim);
    if (q.table !== k.table || v.table !== undefined || v.norm) {
      throw new HcinferError("bundle", "the cpu executor rotates q and k alike and reads v as it is");
    }
    const rope = q.table === undefined ? undefined : this.#places.rope(q.table);
    const operands = { qNorm: q.norm?.weight, kNorm: k.norm?.weight, ...rope, qOut, cacheK, cacheV };
    const strides = { qStride: q.stride, kStride: k.stride, vStride: v.stride };
    const sizes = { heads, kvHeads, headDim, capacity };
    this.#program.perMode([q, k, v], (merged) => {
      const sources = {
        ...prefixed("q", merged(q)),
        ...prefixed("k", merged(k)),
        ...prefixed("v", merged(v)),
      };
      const epsilon = q.norm?.epsilon ?? k.norm?.epsilon ?? 0;
      this.#program.emit("heads", true, { ...sources, ...operands }, { ...strides, ...sizes }, { epsilon });
    });
    const out = this.#places.make(node.outputs[0]!.name, heads * headDim);
    const scale = node.params.scale;
    this.#program.emit("attention", true, { q: qOut, cacheK, cacheV, out }, sizes, { scale });
  }
}
