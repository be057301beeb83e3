/**
 * Lowers a plan's graph to the native engine's instructions.
 *
 * A node becomes an instruction where it makes something that lies in memory. Views (split_heads, merge_heads), merges
 * and what attention folds into its own read of q, k and v (their norm and rope) are not materialised: they are
 * remembered as an `Address` and become operands of the instruction that consumes them. So a merge costs no pass over
 * memory: its consumer adds the deltas as it reads.
 *
 * Corrections "inline": a window's choice of channels and first factor run beside its linear, without a barrier
 * between them, and the sums after it. "async": they are a program of their own, between two events. The numbers
 * are the same: nothing but the order in time differs.
 */
import { elementsPerToken } from "../../compiler/ir/types.ts";
import type { Node, NodeOf } from "../../compiler/ir/graph.ts";
import { consumers, values } from "../../compiler/ir/graph.ts";
import { packedName, paddedOutputs } from "../../compiler/ir/naming.ts";
import type { Op } from "../../compiler/ir/ops.ts";
import type { Plan } from "../../compiler/plan.ts";
import { FORMAT_KINDS, packedShape, parseFormat, type WeightFormat } from "../../compiler/weights/format.ts";
import { factorStride, residualShape, type ResidualWidth } from "../../compiler/weights/correction.ts";
import { HcinferError } from "../../compiler/errors.ts";
import type { InstructionOf, Opcode, Operand } from "../../ffi/instructions.ts";
import type { Buffer, Draft, Flight, Place } from "./cpu_memory.ts";
import { times } from "./cpu_memory.ts";

export type LoweredMode = "async" | "inline" | "off";

export interface LowerOptions {
  readonly mode: LoweredMode;
  readonly contextLength: number;
  /** Where a tensor of weights.safetensors lies. */
  readonly weight: (tensor: string) => Operand;
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
  /** Rotation tables, f32 [context, headDim / 2] each: cosines at `offset`, sines after them. */
  readonly ropes: readonly { readonly theta: number; readonly headDim: number; readonly offset: number }[];
  readonly tableBytes: number;
}

/** A delta that is added where a value is read. Sparse rows exist only for tokens run as decode. */
interface Delta {
  readonly place: Place;
  readonly decodeOnly: boolean;
}

/** A value that may not lie in memory as such: columns of a wider matrix, with what its consumer still has to do. */
interface Address {
  readonly place: Place;
  /** f32 between tokens. */
  readonly stride: number;
  readonly deltas: readonly Delta[];
  readonly norm?: { readonly weight: Operand; readonly epsilon: number };
  readonly theta?: number;
}

/** int8 activations of a value, for one group size. */
interface Quantized {
  readonly codes: Place;
  readonly scales: Place;
  readonly sums: Place;
  readonly group: number;
  readonly groups: number;
  readonly codeStride: number;
}

/** What a window's corrections need between their two parts. */
type Finish = () => void;

const POSITIONS_PER_BLOCK = 16;
const NOT_QUANTIZED = { group: 0, groups: 0, codeStride: 0 } as const;

export function lower(plan: Plan, options: LowerOptions): Lowered {
  return new Lowering(plan, options).run();
}

class Lowering {
  readonly #addresses = new Map<string, Address>();
  readonly #quantized = new Map<string, Quantized>();
  readonly #consumers: ReadonlyMap<string, readonly Node[]>;
  readonly #types: ReturnType<typeof values>;
  readonly #corrections = new Map<string, Node[]>();
  readonly #finish = new Map<Node, Finish>();
  readonly #ropes: { theta: number; headDim: number; offset: number }[] = [];
  readonly #backbone: Draft[] = [];
  readonly #compensation: Draft[] = [];
  #target: Draft[] = this.#backbone;
  #buffers = 0;
  #cacheBytes = 0;
  #tableBytes = 0;
  #events = 0;
  #logits: Buffer | undefined;

  constructor(readonly plan: Plan, readonly options: LowerOptions) {
    this.#consumers = consumers(plan.graph);
    this.#types = values(plan.graph);
    if (options.mode === "off") return;
    for (const node of plan.graph.nodes) {
      if (node.op !== "low_rank" && node.op !== "sparse_residual") continue;
      const list = this.#corrections.get(node.params.window);
      if (list) list.push(node);
      else this.#corrections.set(node.params.window, [node]);
    }
  }

  run(): Lowered {
    const { nodes } = this.plan.graph;
    if (this.options.mode === "async") {
      // The compensation lane first: what its nodes make must be known where the backbone merges it. Its inputs are
      // named by the backbone, so their buffers are made on demand (`#value`).
      for (const lane of [...this.plan.lanes].sort((a) => a.lane === "compensation" ? 1 : -1)) {
        this.#target = lane.lane === "backbone" ? this.#backbone : this.#compensation;
        for (const step of lane.steps) {
          if ("run" in step) this.#lower(nodes[step.run]!);
          else if ("signal" in step) this.#signal(step.signal);
          else this.#emit("wait", false, {}, { event: this.#event(step.wait) }, {});
        }
      }
    } else {
      for (const node of nodes) this.#lower(node);
    }
    if (!this.#logits) throw new HcinferError("bundle", "the plan makes no logits");
    return {
      backbone: this.#backbone,
      compensation: this.#compensation,
      flights: this.#flights(),
      events: this.#events,
      logits: this.#logits,
      cacheBytes: this.#cacheBytes,
      ropes: this.#ropes,
      tableBytes: this.#tableBytes,
    };
  }

  // ---- nodes

  #lower(node: Node): void {
    const rule: (node: never) => void = this.#rules[node.op];
    rule(node as never);
  }

  /** One rule per op; total by type. */
  readonly #rules: { readonly [P in Op]: (node: NodeOf<P>) => void } = {
    embedding: (node) => {
      const { path, rows, width } = node.params;
      const packed = this.#packed(path);
      const out = this.#make(node.outputs[0]!.name, width);
      this.#emit("embed", true, { packed: packed.place, out }, { ...packed.codes, rows, width }, {});
    },
    rms_norm: (node) => {
      const [x, out] = [node.inputs[0]!, node.outputs[0]!];
      const norm = { weight: this.#vector(node.params.path), epsilon: node.params.epsilon };
      if (out.type.shape.length === 3) { // of each head: done where attention reads them
        this.#addresses.set(out.name, { ...this.#address(x), norm });
      } else {
        this.#norm(this.#address(x), undefined, norm, undefined, out.name);
      }
    },
    add_rms_norm: (node) => {
      const norm = { weight: this.#vector(node.params.path), epsilon: node.params.epsilon };
      const [a, b] = [this.#address(node.inputs[0]!), this.#address(node.inputs[1]!)];
      const [residual, merged] = a.deltas.length === 0 && b.stride >= a.stride ? [a, b] : [b, a];
      this.#norm(residual, merged, norm, node.outputs[0]!.name, node.outputs[1]!.name);
    },
    rope: (node) => {
      this.#addresses.set(node.outputs[0]!.name, {
        ...this.#address(node.inputs[0]!),
        theta: node.params.theta,
      });
    },
    split_heads: (node) => this.#alias(node),
    merge_heads: (node) => this.#alias(node),
    attention: (node) => this.#attention(node),
    linear: (node) => this.#linear(node),
    silu_mul: (node) => {
      const [gate, up] = [this.#address(node.inputs[0]!), this.#address(node.inputs[1]!)];
      const name = node.outputs[0]!.name, width = this.#width(name);
      const out = this.#make(name, width);
      this.#perMode([gate, up], (merged) =>
        this.#emit("siluMul", true, {
          ...prefixed("gate", merged(gate)),
          ...prefixed("up", merged(up)),
          out,
          ...this.#quantizedOperands(name),
        }, {
          width,
          gateStride: gate.stride,
          upStride: up.stride,
          ...this.#quantizedSizes(name),
        }, {}));
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
        place: this.#address(name).place,
        decodeOnly: this.#producer(name) === "sparse_residual",
      }));
      node.outputs.forEach((value, i) => {
        const column = 4 * sections.firstColumn[i]!;
        const base = this.#address(node.inputs[i]!);
        const own = deltas.map((delta) => ({ ...delta, place: shifted(delta.place, column) }));
        this.#addresses.set(value.name, { ...base, deltas: [...base.deltas, ...own] });
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
    const width = this.#width(outName);
    const out = this.#make(outName, width);
    const sum = sumName === undefined ? undefined : this.#make(sumName, width);
    const sources = merged ? [merged] : [];
    this.#perMode(sources, (operands) =>
      this.#emit("norm", true, {
        residual: residual.place,
        ...(merged ? prefixed("merged", operands(merged)) : {}),
        weight: norm.weight,
        sum,
        out,
        ...this.#quantizedOperands(outName),
      }, { width, stride: merged?.stride ?? 0, ...this.#quantizedSizes(outName) }, {
        epsilon: norm.epsilon,
      }));
  }

  #elementwise(node: NodeOf<"silu"> | NodeOf<"add"> | NodeOf<"mul">, kind: number): void {
    const name = node.outputs[0]!.name, width = this.#width(name);
    const a = this.#address(node.inputs[0]!), b = node.inputs[1] ? this.#address(node.inputs[1]) : undefined;
    const out = this.#make(name, width);
    this.#perMode(b ? [a, b] : [a], (merged) =>
      this.#emit("elementwise", true, {
        ...prefixed("a", merged(a)),
        ...(b ? prefixed("b", merged(b)) : {}),
        out,
      }, { kind, width, aStride: a.stride, bStride: b?.stride ?? 0 }, {}));
  }

  #linear(node: NodeOf<"linear">): void {
    const { weights } = node.params;
    const x = node.inputs[0]!;
    const inputs = this.#width(x);
    const packed = this.#packed(packedName(weights));
    const { total, firstColumn } = paddedOutputs(weights);
    const isOutput = this.plan.graph.outputs.includes(node.outputs[0]!.name);
    const stride = isOutput ? weights[0]!.outputs : total;
    const y = this.#place(stride);
    if (isOutput) this.#logits = y.buffer;
    node.outputs.forEach((value, i) => {
      this.#addresses.set(value.name, { place: shifted(y, 4 * firstColumn[i]!), stride, deltas: [] });
    });

    const quantized = packed.format.kind === "bf16" ? undefined : this.#quantize(x, packed.format.group);
    const corrections = this.options.mode === "off" ? [] : this.#windowOf(node);
    const sparse = corrections.find((n) => n.op === "sparse_residual");
    if (this.options.mode === "inline") {
      for (const correction of corrections) this.#finish.set(correction, this.#begin(correction, false));
    }
    const residual = sparse && quantized ? this.#residual(sparse) : undefined;
    this.#emit("linear", true, {
      packed: packed.place,
      x: this.#address(x).place,
      ...(quantized ? { codes: quantized.codes, scales: quantized.scales, sums: quantized.sums } : {}),
      y,
      ...residual?.operands,
    }, {
      format: packed.codes.format,
      rows: stride,
      inputs,
      yStride: stride,
      isOutput: isOutput ? 1 : 0,
      group: quantized?.group ?? 0,
      groups: quantized?.groups ?? 0,
      codeStride: quantized?.codeStride ?? 0,
      ...residual?.sizes ?? { residualWidth: 0, residualInputs: 0, residualOutputs: 0, rowBytes: 0 },
    }, {});
  }

  #attention(node: NodeOf<"attention">): void {
    const [q, k, v] = node.inputs.slice(0, 3).map((name) => this.#address(name)) as [Address, Address, Address];
    const [heads, headDim] = this.#types.get(node.inputs[0]!)!.type.shape.slice(1) as [number, number];
    const kvHeads = this.#types.get(node.inputs[1]!)!.type.shape[1] as number;
    const capacity = Math.ceil(this.options.contextLength / POSITIONS_PER_BLOCK) * POSITIONS_PER_BLOCK;
    const cache = (bytes: number): Operand => {
      const offset = this.#cacheBytes;
      this.#cacheBytes += Math.ceil(bytes / 64) * 64;
      return { segment: "cache", offset };
    };
    const cacheK = cache(2 * kvHeads * capacity * headDim);
    const cacheV = cache(2 * kvHeads * capacity * headDim);
    const qOut = this.#place(heads * headDim);
    if (q.theta !== k.theta || v.theta !== undefined || v.norm) {
      throw new HcinferError("bundle", "the cpu executor rotates q and k alike and reads v as it is");
    }
    const rope = q.theta === undefined ? undefined : this.#rope(q.theta, headDim);
    this.#perMode([q, k, v], (merged) =>
      this.#emit("heads", true, {
        ...prefixed("q", merged(q)),
        ...prefixed("k", merged(k)),
        ...prefixed("v", merged(v)),
        qNorm: q.norm?.weight,
        kNorm: k.norm?.weight,
        ...rope,
        qOut,
        cacheK,
        cacheV,
      }, {
        heads,
        kvHeads,
        headDim,
        qStride: q.stride,
        kStride: k.stride,
        vStride: v.stride,
        capacity,
      }, { epsilon: q.norm?.epsilon ?? k.norm?.epsilon ?? 0 }));
    const out = this.#make(node.outputs[0]!.name, heads * headDim);
    this.#emit("attention", true, { q: qOut, cacheK, cacheV, out }, { heads, kvHeads, headDim, capacity }, {
      scale: node.params.scale,
    });
  }

  // ---- corrections

  #correction(node: NodeOf<"low_rank"> | NodeOf<"sparse_residual">): void {
    if (this.options.mode === "off") return;
    const finish = this.#finish.get(node) ?? this.#begin(node, true);
    finish();
  }

  /** The part that reads only x (the choice of channels, the first factor); returns the part that makes the delta. */
  #begin(node: Node, barrier: boolean): Finish {
    const x = this.#address(node.inputs[0]!).place;
    const inputs = this.#width(node.inputs[0]!);
    const deltaName = node.outputs[0]!.name;
    if (node.op === "sparse_residual") {
      const { channels, outputs } = node.params;
      const selection = {
        index: this.#place(channels),
        coefficient: this.#place(channels / 2),
        selectionScale: this.#place(1),
        selectionSum: this.#place(1),
      };
      const residual = this.#residual(node);
      const sizes = { channels, ...residual.sizes };
      this.#emit("sparseSelect", barrier, { x, ...residual.operands, ...selection }, sizes, {}, "decode");
      return () => {
        const delta = this.#make(deltaName, outputs);
        const integers = { ...sizes, deltaStride: outputs };
        this.#emit("sparseSum", true, { ...residual.operands, ...selection, delta }, integers, {}, "decode");
      };
    }
    if (node.op !== "low_rank") throw new Error(`${node.op} is no correction`);
    const { window, rank, outputs, dtype } = node.params;
    const hiddenStride = Math.ceil(rank / 16) * 16;
    const hidden = this.#place(hiddenStride);
    const tensor = (name: string) => this.options.weight(`${window}.factors.${name}`);
    const factors = { a: tensor("a"), b: tensor("b"), aScale: tensor("a_scale"), bScale: tensor("b_scale") };
    const sizes = {
      hiddenStride,
      aStride: factorStride(inputs),
      bStride: factorStride(outputs),
      inputs,
      outputs,
      rank,
      bf16: dtype === "bf16" ? 1 : 0,
    };
    this.#emit("lowRankDown", barrier, { x, ...factors, hidden }, sizes, {});
    return () => {
      const delta = this.#make(deltaName, outputs);
      this.#emit("lowRankUp", true, { hidden, ...factors, delta }, { ...sizes, deltaStride: outputs }, {});
    };
  }

  #windowOf(node: NodeOf<"linear">): readonly Node[] {
    const merge = this.#consumers.get(node.outputs[0]!.name)?.find((n) => n.op === "merge");
    return merge?.op === "merge" ? this.#corrections.get(merge.params.window) ?? [] : [];
  }

  #residual(node: NodeOf<"sparse_residual">) {
    const { window, outputs, width } = node.params;
    const tensor = (name: string) => this.options.weight(`${window}.residual.${name}`);
    return {
      operands: {
        residualCodes: tensor("codes"),
        outputScale: tensor("output_scale"),
        channelScale: tensor("channel_scale"),
        norm: tensor("norm"),
      },
      sizes: {
        residualWidth: width,
        residualInputs: this.#width(node.inputs[0]!),
        residualOutputs: outputs,
        rowBytes: residualShape(width as ResidualWidth, outputs).rowBytes,
      },
    };
  }

  // ---- int8 activations

  /** The group size in which `name`'s only quantised readers want it, when they agree. */
  #wantedGroup(name: string): number | undefined {
    const groups = new Set<number>();
    for (const node of this.#consumers.get(name) ?? []) {
      if (node.op !== "linear") continue;
      const { format } = this.#packed(packedName(node.params.weights));
      if (format.kind !== "bf16") groups.add(format.group);
    }
    return groups.size === 1 ? [...groups][0] : undefined;
  }

  #quantizedOf(name: string): Quantized | undefined {
    const group = this.#wantedGroup(name);
    if (group === undefined) return undefined;
    return this.#quantized.get(`${name} ${group}`) ?? this.#newQuantized(name, group);
  }

  #quantizedOperands(name: string) {
    const q = this.#quantizedOf(name);
    return q ? { codes: q.codes, scales: q.scales, sums: q.sums } : {};
  }

  #quantizedSizes(name: string) {
    const q = this.#quantizedOf(name);
    return q ? { group: q.group, groups: q.groups, codeStride: q.codeStride } : NOT_QUANTIZED;
  }

  #newQuantized(name: string, group: number): Quantized {
    const width = this.#width(name);
    const groups = Math.ceil(width / group), codeStride = Math.ceil(width / 128) * 128;
    const quantized = {
      codes: this.#place(codeStride / 4),
      scales: this.#place(groups),
      sums: this.#place(groups),
      group,
      groups,
      codeStride,
    };
    this.#quantized.set(`${name} ${group}`, quantized);
    return quantized;
  }

  /** What its producer wrote, or an instruction that writes it now. */
  #quantize(name: string, group: number): Quantized {
    const made = this.#quantized.get(`${name} ${group}`);
    if (made) return made;
    const quantized = this.#newQuantized(name, group);
    const { codes, scales, sums } = quantized;
    const sizes = { group, groups: quantized.groups, codeStride: quantized.codeStride };
    const operands = { x: this.#address(name).place, codes, scales, sums };
    this.#emit("quantize", true, operands, { width: this.#width(name), ...sizes }, {});
    return quantized;
  }

  // ---- places

  #packed(name: string): {
    place: Operand;
    format: WeightFormat;
    codes: { format: number; group: number };
  } {
    const weight = this.plan.weights.find((w) => w.tensor === `${name}.packed`);
    const format = weight && parseFormat(weight.format);
    if (!weight || !format || packedShape(format, weight.rows, weight.inputs).bytes !== weight.bytes) {
      throw new HcinferError("bundle", `the plan has no packed weight ${name} of a size that fits its format`);
    }
    const codes = {
      format: FORMAT_KINDS.indexOf(format.kind),
      group: format.kind === "bf16" ? 0 : format.group,
    };
    return { place: this.options.weight(weight.tensor), format, codes };
  }

  #vector(path: string): Operand {
    return this.options.weight(`${path}.weight`);
  }

  /** f32 memory of `width` elements a token. */
  #place(width: number): { readonly buffer: Buffer; readonly offset: number } {
    return { buffer: { id: this.#buffers++, bytesPerToken: Math.ceil(4 * width / 4) * 4 }, offset: 0 };
  }

  /** Memory for the value `name`: the place already promised to a reader in the other lane, or a new one. */
  #make(name: string, width: number): Place {
    const known = this.#addresses.get(name);
    if (known) return known.place;
    const place = this.#place(width);
    this.#addresses.set(name, { place, stride: width, deltas: [] });
    return place;
  }

  #alias(node: NodeOf<"split_heads"> | NodeOf<"merge_heads">): void {
    this.#addresses.set(node.outputs[0]!.name, this.#address(node.inputs[0]!));
  }

  /** Where `name` is. A delta that the compensation lane has yet to make gets its place now. */
  #address(name: string): Address {
    const known = this.#addresses.get(name);
    if (known) return known;
    if (!this.#isDelta(name)) throw new Error(`${name} is read before it is made`);
    this.#make(name, this.#width(name));
    return this.#addresses.get(name)!;
  }

  #isDelta(name: string): boolean {
    const op = this.#producer(name);
    return op === "low_rank" || op === "sparse_residual";
  }

  #producer(name: string): Op | undefined {
    return this.plan.graph.nodes.find((n) => n.outputs.some((v) => v.name === name))?.op;
  }

  #width(name: string): number {
    const value = this.#types.get(name);
    if (!value) throw new Error(`${name} has no type`);
    return elementsPerToken(value.type);
  }

  #rope(theta: number, headDim: number): { cosines: Operand; sines: Operand } {
    let table = this.#ropes.find((r) => r.theta === theta && r.headDim === headDim);
    const half = 4 * this.options.contextLength * headDim / 2;
    if (!table) {
      table = { theta, headDim, offset: this.#tableBytes };
      this.#ropes.push(table);
      this.#tableBytes += 2 * half;
    }
    return {
      cosines: { segment: "tables", offset: table.offset },
      sines: { segment: "tables", offset: table.offset + half },
    };
  }

  // ---- instructions

  #emit<P extends Opcode>(
    op: P,
    barrier: boolean,
    operands: InstructionOf<P, Place>["operands"],
    integers: InstructionOf<P, Place>["integers"],
    reals: InstructionOf<P, Place>["reals"],
    when: Draft["when"] = "always",
  ): void {
    const instruction: InstructionOf<P, Place> = { op, barrier, operands, integers, reals, when };
    this.#target.push(instruction as unknown as Draft);
  }

  /**
   * Emits a consumer of merged values: once where prompt and token steps read the same deltas, else once for each,
   * the prompt's without the deltas that only tokens have.
   */
  #perMode(sources: readonly Address[], emit: (merged: (a: Address) => MergedPlaces) => void): void {
    const places = (prompt: boolean) => (address: Address): MergedPlaces => {
      const deltas = address.deltas.filter((delta) => !(prompt && delta.decodeOnly));
      return { base: address.place, delta0: deltas[0]?.place, delta1: deltas[1]?.place };
    };
    if (!sources.some((source) => source.deltas.some((delta) => delta.decodeOnly))) return emit(places(false));
    for (const when of ["prefill", "decode"] as const) {
      const first = this.#target.length;
      emit(places(when === "prefill"));
      for (let n = first; n < this.#target.length; n++) this.#target[n] = { ...this.#target[n]!, when };
    }
  }

  #event(event: number): number {
    this.#events = Math.max(this.#events, event + 1);
    return event;
  }

  /** Publishes that everything before it is done, which takes a barrier after the last instruction. */
  #signal(event: number): void {
    const last = this.#target.at(-1);
    if (last) this.#target[this.#target.length - 1] = { ...last, barrier: true };
    this.#emit("signal", false, {}, { event: this.#event(event) }, {});
  }

  /** The compensation program between each wait and the signal that answers it, with the backbone's times of both. */
  #flights(): Flight[] {
    const at = times(this.#backbone);
    const when = (op: "signal" | "wait", event: number) => {
      const index = this.#backbone.findIndex((i) => i.op === op && i.integers.event === event);
      return at[index] ?? 0;
    };
    const flights: Flight[] = [];
    let from = 0, first = 0;
    this.#compensation.forEach((instruction, n) => {
      if (instruction.op === "wait") {
        from = when("signal", instruction.integers.event);
        first = n;
      } else if (instruction.op === "signal") {
        const to = when("wait", instruction.integers.event);
        flights.push({ instructions: this.#compensation.slice(first, n), from: Math.max(0, from - 1), to });
      }
    });
    return flights;
  }
}

interface MergedPlaces {
  readonly base: Place;
  readonly delta0: Place | undefined;
  readonly delta1: Place | undefined;
}

/** The three operands of a merged value, under the names the instruction table gives them. */
function prefixed<N extends string>(
  name: N,
  places: MergedPlaces,
): { [K in N | `${N}Delta0` | `${N}Delta1`]: Place | undefined } {
  return { [name]: places.base, [`${name}Delta0`]: places.delta0, [`${name}Delta1`]: places.delta1 } as {
    [K in N | `${N}Delta0` | `${N}Delta1`]: Place | undefined;
  };
}

function shifted(place: Place, bytes: number): Place {
  return { ...place, offset: place.offset + bytes };
}
