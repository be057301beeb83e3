/**
 * lower: the graph becomes the instructions that run it.
 *
 * Needs: stage "compensated", a machine profile.
 * Guarantees: stage "lowered". Every node is one instruction, every value [T, n] or, from where only some rows matter,
 *   [R, n]; views and merges are gone. What an op leaves to whoever reads its output (deltas to add, the norm and the
 *   rotation of heads) is pending on the value: a reader absorbs it where `ABSORBS` says so, and whatever a reader does
 *   not absorb is materialised before it by a node of its own, once. So nothing can be overlooked: a reader either
 *   has a row in the table or gets a plain value. Linears of quantised weights read int8 codes, which the norm or
 *   silu_mul before them makes where it can. Costs are those of the instructions.
 * Does not: choose lanes or places in memory; move work between devices.
 */
import { costOf, withCost } from "../cost.ts";
import { asNode, NameSource } from "../ir/build.ts";
import {
  consumers,
  type Graph,
  type Node,
  type NodeOf,
  type Placement,
  reads,
  type Value,
  values,
} from "../ir/graph.ts";
import { inferTypes } from "../ir/infer.ts";
import type { LogicalOp, Op, Params } from "../ir/ops.ts";
import { elementsPerToken, tensor, type TensorType } from "../ir/types.ts";
import { verify } from "../ir/verify.ts";
import type { MachineProfile } from "../profile.ts";
import type { GroupSize } from "../weights/format.ts";
import { type Correction, type Emitter, lowerCorrection } from "./lower_corrections.ts";
import { ABSORBS, DELTAS, headNorm, NOTHING, type Pending, plain, WORK, type Work } from "./pending.ts";

export interface LowerOptions {
  readonly profile: MachineProfile;
  /** Threads of the CPU that predictions assume; default: all cores. */
  readonly threads?: number;
}

export function lower(graph: Graph, options: LowerOptions): Graph {
  return new Lowering(graph, options).run();
}

class Lowering {
  readonly #nodes: Node[] = [];
  readonly #names: NameSource;
  /** Names of logical values that no instruction has made yet. */
  readonly #free: Set<string>;
  readonly #types: Map<string, TensorType>;
  readonly #pending = new Map<string, Pending>();
  readonly #readers: ReadonlyMap<string, readonly Node[]>;
  /** What was done of a value's pending work, by both. */
  readonly #materialised = new Map<string, Pending>();
  /** int8 codes of values, by value and group. */
  readonly #codes = new Map<string, string>();
  /** Corrections by window: factors, then rows. */
  readonly #corrections = new Map<string, Correction[]>();
  readonly #rows: Value;
  /** The placement that new nodes take over: that of the logical node at hand. */
  #placement: Placement = { causes: [] };

  constructor(readonly graph: Graph, readonly options: LowerOptions) {
    const types = values(graph);
    this.#names = new NameSource(types.keys());
    this.#free = new Set(graph.nodes.flatMap((node) => node.outputs.map((v) => v.name)));
    this.#types = new Map([...types].map(([name, { type }]) => [name, flat(type)]));
    this.#readers = consumers(graph);
    this.#rows = { name: this.#names.fresh("rows"), type: tensor("i32", "R") };
    this.#types.set(this.#rows.name, this.#rows.type);
    for (const value of graph.inputs) this.#pending.set(value.name, plain(value.name));
    for (const node of graph.nodes) {
      if (node.op !== "low_rank" && node.op !== "sparse_residual") continue;
      const list = [...this.#corrections.get(node.params.window) ?? [], node];
      this.#corrections.set(node.params.window, list.sort((a, b) => a.op < b.op ? -1 : 1));
    }
  }

  run(): Graph {
    // Nothing reads a head, so it may come last: then it is known who else reads what it reads.
    const isHead = (node: Node) => node.op === "linear" && this.#isOutputHead(node);
    const { nodes } = this.graph;
    for (const node of [...nodes.filter((n) => !isHead(n)), ...nodes.filter(isHead)]) {
      this.#placement = { ...node.placement };
      const rule: (node: never) => void = this.#rules[node.op as LogicalOp];
      rule(node as never);
    }
    const outputs = this.graph.outputs.map((name) => this.#output(name));
    const { graph } = this;
    const inputs = [...graph.inputs, this.#rows];
    // A head that has a window comes last now.
    const order = this.#nodes.flatMap((n) => n.op === "linear" && n.params.window ? [n.params.window] : []);
    const budgets = graph.budgets.toSorted((a, b) => order.indexOf(a.window) - order.indexOf(b.window));
    const result: Graph = { ...graph, stage: "lowered", inputs, nodes: this.#nodes, outputs, budgets };
    verify(result);
    return result;
  }

  // ---- one rule per logical op; total by type

  readonly #rules: { readonly [P in LogicalOp]: (node: NodeOf<P>) => void } = {
    embedding: (node) => this.#same(node),
    rms_norm: (node) => this.#norm(node),
    add_rms_norm: (node) => this.#row(node),
    rope: (node) => {
      const x = this.#at(node.inputs[0]!);
      this.#pending.set(node.outputs[0]!.name, {
        ...x.rope === undefined ? x : this.#done(x, NOTHING),
        rope: node.params.table,
      });
    },
    split_heads: (node) => {
      const x = this.#done(this.#at(node.inputs[0]!), DELTAS);
      this.#pending.set(node.outputs[0]!.name, { ...x, headDim: node.params.headDim });
    },
    merge_heads: (node) => {
      const { headDim: _, ...x } = this.#done(this.#at(node.inputs[0]!), DELTAS);
      this.#pending.set(node.outputs[0]!.name, x);
    },
    attention: (node) => this.#attention(node),
    linear: (node) => this.#linear(node),
    silu_mul: (node) => this.#row(node),
    silu: (node) => this.#same(node),
    add: (node) => this.#same(node),
    mul: (node) => this.#same(node),
    // Made where their window's linear is.
    low_rank: () => {},
    sparse_residual: () => {},
    merge: (node) => {
      const deltas = this.#corrections.get(node.params.window)!.map((n) => this.#at(n.outputs[0]!.name).base);
      node.outputs.forEach((value, i) => {
        this.#pending.set(value.name, { base: this.#at(node.inputs[i]!).base, deltas });
      });
    },
  };

  /** A node that keeps its op and parameters. */
  #same(node: Node): void {
    const { op, params } = node;
    this.#define(node, this.#emit(op, node.inputs.map((name) => this.#at(name)), params, this.#hints(node)));
  }

  /** A node over rows of tokens that makes int8 codes of its last output, where linears read them. */
  #row(node: NodeOf<"add_rms_norm"> | NodeOf<"silu_mul"> | NodeOf<"rms_norm">): void {
    const inputs = node.inputs.map((name) => this.#at(name));
    const last = node.outputs.at(-1)!.name;
    const group = this.#groupOf(last);
    const hints = this.#hints(node);
    const params = group === undefined ? node.params : { ...node.params, codes: group };
    const made = this.#emit(
      node.op,
      inputs,
      params,
      group === undefined ? hints : [...hints, `${last}_codes`],
    );
    if (group !== undefined) this.#codes.set(`${made.at(-2)} ${group}`, made.at(-1)!);
    this.#define(node, made);
  }

  #norm(node: NodeOf<"rms_norm">): void {
    const value = node.outputs[0]!;
    if (value.type.shape.length === 2) return this.#row(node);
    const x = this.#at(node.inputs[0]!);
    const isFree = x.norm === undefined && x.rope === undefined;
    this.#pending.set(value.name, { ...isFree ? x : this.#done(x, NOTHING), norm: node.params });
  }

  #attention(node: NodeOf<"attention">): void {
    const [q, k, v, positions] = node.inputs.map((name) => this.#at(name)) as [
      Pending,
      Pending,
      Pending,
      Pending,
    ];
    const [, kvHeads, headDim] = this.#logical(node.inputs[1]!).shape as [unknown, number, number];
    // One rotation serves both; where they differ, each is a node of its own.
    const together = q.rope === k.rope;
    const absorbed = (x: Pending) => (together ? x : this.#done(x, ["deltas", "norm"]));
    const [query, key] = [absorbed(q), absorbed(k)];
    const { layer, scale } = node.params;
    const params: Params["append"] = {
      layer,
      headDim,
      ...(query.norm ? { qNorm: headNorm(query.norm) } : {}),
      ...(key.norm ? { kNorm: headNorm(key.norm) } : {}),
      ...(query.rope !== undefined ? { table: query.rope } : {}),
    };
    const [name] = this.#hints(node);
    const [appended] = this.#emit("append", [query, key, v, positions], params, [`${name}_q`]);
    const attend = { layer, headDim, kvHeads, scale };
    this.#define(node, this.#emit("attend", [plain(appended!), positions], attend, this.#hints(node)));
  }

  #linear(node: NodeOf<"linear">): void {
    const { format } = node.params;
    const name = node.inputs[0]!;
    const corrections = this.#correctionsOf(node);
    const x = this.#isOutputHead(node) ? this.#narrowed(name) : this.#done(this.#at(name), NOTHING).base;
    const source = format === undefined || format.kind === "bf16" ? x : this.#coded(x, format.group);
    const finish = corrections.map((correction) => lowerCorrection(this.#emitter, correction, x));
    const sparse = corrections.find((c) => c.op === "sparse_residual");
    const residual = sparse?.op === "sparse_residual" ? { residual: sparse.params.width } : {};
    const params = { ...node.params, ...residual };
    this.#define(node, this.#emit("linear", [plain(source)], params, this.#hints(node)));
    for (const end of finish) end();
  }

  // ---- rows

  /** Whether a linear makes the logits and nothing else: then its input is needed in the rows asked for alone. */
  #isOutputHead({ outputs }: NodeOf<"linear">): boolean {
    const [out] = outputs;
    return outputs.length === 1 && out !== undefined && this.graph.outputs.includes(out.name) &&
      !this.#readers.has(out.name);
  }

  /** The rows asked for of `name`: its norm makes no others where nothing has read that, else they are copied. */
  #narrowed(name: string): string {
    const x = this.#at(name);
    const index = this.#nodes.findIndex((n) => n.outputs.some((v) => v.name === x.base));
    const maker = this.#nodes[index];
    const isNorm = maker?.op === "rms_norm" || maker?.op === "add_rms_norm";
    if (!isNorm || this.#isRead(maker)) {
      return this.#emit("copy", [x, plain(this.#rows.name)], {}, [`${name}_rows`])[0]!;
    }
    const added = maker.added === undefined ? {} : { added: [...maker.added, []] };
    const node = { ...maker, ...added, inputs: [...maker.inputs, this.#rows.name] };
    this.#nodes[index] = this.#typed(asNode(node as NodeOf<Op>));
    return x.base;
  }

  /** Whether an instruction so far reads anything that `maker` makes. */
  #isRead({ outputs }: Node): boolean {
    return this.#nodes.some((node) => outputs.some(({ name }) => reads(node).includes(name)));
  }

  #output(name: string): string {
    const x = this.#at(name);
    const type = this.#types.get(x.base);
    const maker = this.#nodes.find((n) => n.outputs.some((v) => v.name === x.base));
    const { device = "cpu" } = maker?.placement ?? {};
    this.#placement = { device, causes: ["the rows whose logits are wanted"] };
    const isPlain = x.deltas.length === 0 && x.norm === undefined && x.rope === undefined;
    if (isPlain && type?.shape[0] === "R" && maker?.op === "linear") return x.base;
    return this.#emit("copy", [x, plain(this.#rows.name)], {}, [`${name}_rows`])[0]!;
  }

  // ---- pending work

  #at(name: string): Pending {
    const pending = this.#pending.get(name);
    if (pending === undefined) throw new Error(`${name} is read before it is made`);
    return pending;
  }

  /** `x` with the work done that is not in `absorbs`, and all work before it; once for all readers. */
  #done(x: Pending, absorbs: readonly Work[]): Pending {
    const { headDim } = x;
    const has = { deltas: x.deltas.length > 0, norm: x.norm !== undefined, rope: x.rope !== undefined };
    const last = WORK.findLast((work) => has[work] && !absorbs.includes(work));
    if (last === undefined) return x;
    const key = JSON.stringify([x, last]);
    const known = this.#materialised.get(key);
    if (known !== undefined) return known;
    const placement = this.#placement;
    this.#placement = {
      ...placement,
      causes: [...placement.causes, `done apart: its reader absorbs no ${last}`],
    };
    let [name, deltas] = [x.base, x.deltas];
    const step = <P extends Op>(op: P, params: Params[P], hint: string, ...more: Pending[]) => {
      [name] = this.#emit(op, [{ base: name, deltas }, ...more], params, [`${x.base}_${hint}`]) as [string];
      deltas = [];
    };
    const until = WORK.indexOf(last);
    const heads = headDim === undefined ? {} : { headDim };
    if (x.norm && until >= WORK.indexOf("norm")) step("rms_norm", { ...x.norm, ...heads }, "normed");
    if (x.rope !== undefined && until >= WORK.indexOf("rope")) {
      step("rope", { table: x.rope, ...heads }, "rotated", plain(positionsOf(this.graph)));
    }
    if (deltas.length > 0) step("copy", {}, "sum");
    this.#placement = placement;
    const left = until < WORK.indexOf("rope") && x.rope !== undefined ? { rope: x.rope } : {};
    const norm = until < WORK.indexOf("norm") && x.norm ? { norm: x.norm } : {};
    const done = { base: name, deltas: [], ...heads, ...norm, ...left };
    this.#materialised.set(key, done);
    return done;
  }

  // ---- int8 codes

  #coded(x: string, group: GroupSize): string {
    const key = `${x} ${group}`;
    const placement = this.#placement;
    this.#placement = { ...placement, causes: ["int8 codes for a linear: its producer makes none"] };
    const made = this.#codes.get(key) ?? this.#emit("quantize", [plain(x)], { group }, [`${x}_codes`])[0]!;
    this.#placement = placement;
    this.#codes.set(key, made);
    return made;
  }

  /** The group size in which linears read `name`, where they agree on one. */
  #groupOf(name: string): GroupSize | undefined {
    const groups = new Set<GroupSize>();
    for (const node of this.#readers.get(name) ?? []) {
      if (node.op !== "linear" || node.params.format === undefined) continue;
      if (node.params.format.kind !== "bf16") groups.add(node.params.format.group);
    }
    const [group] = groups;
    return groups.size === 1 ? group : undefined;
  }

  // ---- nodes

  #correctionsOf(node: NodeOf<"linear">): readonly Correction[] {
    const merge = this.#readers.get(node.outputs[0]!.name)?.find((n) => n.op === "merge");
    return merge?.op === "merge" ? this.#corrections.get(merge.params.window) ?? [] : [];
  }

  readonly #emitter: Emitter = {
    emit: (op, input, params, placement, hint) => {
      const outer = this.#placement;
      this.#placement = placement;
      const [made] = this.#emit(op, [plain(input)], params, [hint]);
      this.#placement = outer;
      return made!;
    },
    define: (node, made) => this.#define(node, [made]),
  };

  /** Appends an instruction; what it does not absorb of its inputs is done first. Returns its outputs' names. */
  #emit<P extends Op>(
    op: P,
    operands: readonly Pending[],
    params: Params[P],
    hints: readonly string[],
  ): string[] {
    const absorbs = ABSORBS[op] ?? [];
    const ready = operands.map((x, i) => this.#done(x, absorbs[i] ?? NOTHING));
    const added = ready.some((x) => x.deltas.length > 0) ? { added: ready.map((x) => x.deltas) } : {};
    const inputs = ready.map((x) => x.base);
    const types = inferTypes(op, inputs.map((name) => this.#types.get(name)!), params);
    const outputs = types.map((type, i) => ({ name: this.#name(hints[i] ?? op), type }));
    for (const { name, type } of outputs) this.#types.set(name, type);
    const { device = "cpu", causes } = this.#placement;
    const node: NodeOf<P> = { op, inputs, ...added, outputs, params, placement: { device, causes } };
    this.#nodes.push(this.#costed(asNode(node)));
    return outputs.map((v) => v.name);
  }

  /** Says that logical `node`'s outputs are `made`; further ones (codes) are no logical values. */
  #define(node: Node, made: readonly string[]): void {
    node.outputs.forEach((value, i) => {
      const [, , headDim] = value.type.shape;
      this.#pending.set(value.name, plain(made[i]!, typeof headDim === "number" ? headDim : undefined));
    });
  }

  /** A node whose inputs changed, with its outputs' types and its cost anew. */
  #typed(node: Node): Node {
    const types = inferTypes<Op>(node.op, node.inputs.map((name) => this.#types.get(name)!), node.params);
    const outputs = node.outputs.map(({ name }, i) => ({ name, type: types[i]! }));
    for (const { name, type } of outputs) this.#types.set(name, type);
    return this.#costed(asNode({ ...node, outputs } as NodeOf<Op>));
  }

  #costed(node: Node): Node {
    const { profile, threads = profile.cpu.cores } = this.options;
    const cost = costOf(node, node.inputs.map((name) => this.#types.get(name)!));
    return { ...node, placement: withCost(node.placement, cost, profile, threads) };
  }

  #hints(node: Node): string[] {
    return node.outputs.map((v) => v.name);
  }

  /** A logical value keeps its name where an instruction makes it; other names are new. */
  #name(hint: string): string {
    return this.#free.delete(hint) ? hint : this.#names.fresh(hint);
  }

  #logical(name: string): TensorType {
    return values(this.graph).get(name)!.type;
  }
}

/** Two dimensions: heads lie beside each other. */
function flat(type: TensorType): TensorType {
  const [over] = type.shape;
  if (type.shape.length < 3 || over === undefined) return type;
  return { dtype: type.dtype, shape: [over, elementsPerToken(type)] };
}

function positionsOf(graph: Graph): string {
  const [, positions] = graph.inputs;
  if (positions === undefined) throw new Error("the graph has no positions");
  return positions.name;
}
