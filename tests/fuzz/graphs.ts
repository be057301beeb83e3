/**
 * Random traced graphs: every logical op, in every order that types allow. A graph follows from a script of small numbers,
 * and every script is a graph, so that a failing one shrinks to few nodes.
 *
 * Activations stay near 1: every value carries an estimate of its root mean square, and a norm stands before what
 * would leave the range in which f16 keys and int8 codes are as accurate as the tests' bounds assume.
 */
import fc from "fast-check";
import { GraphBuilder } from "../../compiler/ir/build.ts";
import { frequencies } from "../../compiler/ir/fixture.ts";
import type { Graph, Value } from "../../compiler/ir/graph.ts";
import { moduleTensor } from "../../compiler/ir/naming.ts";
import type { Op, Params } from "../../compiler/ir/ops.ts";
import { tensor } from "../../compiler/ir/types.ts";
import { Choices } from "./choices.ts";

export interface Script {
  /** Sizes, and which of the ways to make logits. */
  readonly head: readonly number[];
  /** A step is one of `ACTIONS` and what it chooses. */
  readonly steps: readonly (readonly number[])[];
}

/** Neither short nor near 0, as fast-check likes them to be: that is what graphs shrink to. */
export function numbers(count: number): fc.Arbitrary<number[]> {
  return fc.noBias(fc.array(fc.nat(999), { minLength: count, maxLength: count }));
}

export const arbitraryScript: fc.Arbitrary<Script> = fc.record({
  head: numbers(8),
  steps: fc.noBias(fc.array(numbers(30), { minLength: 1, maxLength: 7, size: "max" })),
});

export interface RandomGraph {
  readonly graph: Graph;
  readonly hidden: number;
  readonly vocabulary: number;
}

export function graphOf({ head, steps }: Script): RandomGraph {
  const maker = new Maker(new Choices(head));
  for (const step of steps) maker.step(new Choices(step));
  return maker.finish();
}

/** A value and about how large it is. */
interface Item {
  readonly value: Value;
  /** Root mean square, estimated. */
  readonly size: number;
}

const HIDDEN = [24, 50, 8, 130, 64];
const VOCABULARY = [33, 5, 16, 70];
const WIDTHS = [20, 3, 7, 16, 45, 66, 130];
const HEAD_DIMS = [4, 2, 6, 12, 16, 20, 32];
/** Of heads that are neither rotated nor attended to. */
const ODD_DIMS = [3, 5];
/** Large enough that the direction of what is nearly zero does not decide everything behind its norm. */
const EPSILONS = [0.01, 0.1, 0.3];
const THETAS = [100, 10_000];
/** Values that a step may read: the latest, so that graphs are deep. */
const RECENT = 8;

class Maker {
  readonly #build = new GraphBuilder("random");
  readonly #choices: Choices;
  readonly #positions: Value;
  readonly #flat: Item[] = [];
  readonly #heads: Item[] = [];
  readonly #hidden: number;
  readonly #vocabulary: number;
  /** The residual stream. */
  #stream: Item;
  #modules = 0;
  #layers = 0;
  #norms = new Map<number, string>();

  constructor(choices: Choices) {
    this.#choices = choices;
    this.#hidden = choices.of(HIDDEN);
    this.#vocabulary = choices.of(VOCABULARY);
    const tokens = this.#build.input("tokens", tensor("i32", "T"));
    this.#positions = this.#build.input("positions", tensor("i32", "T"));
    const shape = { rows: this.#vocabulary, width: this.#hidden };
    this.#stream = this.#node("embedding", [tokens], { ...moduleTensor("embed"), ...shape }, 1);
    this.#flat.push(this.#stream);
  }

  step(choices: Choices): void {
    choices.of(this.#actions)(choices);
  }

  // ---- what a step does; the first is what a choice shrinks to

  readonly #actions: readonly ((c: Choices) => void)[] = [
    (c) => this.#join(c, this.#read(c)),
    (c) => this.#attention(c),
    (c) => this.#mlp(c),
    (c) => this.#projections(c),
    (c) => this.#keep(this.#norm(c, this.#read(c))),
    (c) => this.#combine(c),
    (c) => this.#views(c),
    (c) => this.#attention(c),
  ];

  /** Several linears of one value, which `fuse` makes one; each stays to be read. */
  #projections(c: Choices): void {
    const x = this.#read(c);
    const path = this.#module(c);
    for (let n = 0, count = c.of([1, 2, 3, 9]); n < count; n++) {
      this.#keep(this.#linear(x, `${path}.w${n}_proj`, c.of(WIDTHS)));
    }
  }

  #attention(c: Choices): void {
    const source = this.#read(c);
    const x = c.below(2) === 0 ? this.#norm(c, source) : source;
    const path = `${this.#module(c)}.self_attn`;
    const headDim = c.of(HEAD_DIMS), kvHeads = c.of([1, 2, 3]), heads = kvHeads * c.of([1, 2, 3]);
    const made = (name: string, count: number) => {
      const flat = this.#linear(x, `${path}.${name}_proj`, count * headDim);
      this.#flat.push(flat);
      return this.#split(c.below(4) === 1 ? this.#norm(c, flat) : flat, headDim);
    };
    const [query, key] = [made("q", heads), made("k", kvHeads)];
    const value = c.below(5) === 1 ? key : made("v", kvHeads);
    // Mostly the same is done to queries and keys, as models do.
    const recipe = this.#recipe(c, headDim);
    const q = this.#tamed(c, recipe(query));
    const k = this.#tamed(c, c.below(3) === 1 ? this.#recipe(c, headDim)(key) : recipe(key));
    const v = this.#tamed(c, c.below(3) === 1 ? this.#recipe(c, headDim)(value) : value);
    const scale = 1 / (Math.sqrt(headDim) * q.size * k.size);
    const layer = this.#layers++;
    const inputs = [q.value, k.value, v.value, this.#positions];
    const out = this.#node("attention", inputs, { layer, scale }, 0.7 * v.size);
    this.#heads.push(query, out);
    const merged = this.#merge(c.below(4) === 1 ? this.#recipe(c, headDim)(out) : out);
    this.#flat.push(merged);
    const o = c.below(3) === 2 ? merged : this.#linear(merged, `${path}.o_proj`, this.#hidden);
    this.#join(c, o);
  }

  /** Up to three of norm, rotation and what reads heads elementwise, to be done to heads of `headDim`. */
  #recipe(c: Choices, headDim: number): (x: Item) => Item {
    const rotation = () => {
      const scale = c.of([1, 1, 1.25]);
      const table = this.#build.ropeTable(frequencies(c.of(THETAS), headDim), scale);
      return (x: Item) => this.#node("rope", [x.value, this.#positions], { table }, scale * x.size);
    };
    const norm = () => (x: Item) => this.#norm(c, x);
    const silu = () => (x: Item) => this.#node("silu", [x.value], {}, 0.5 * x.size);
    const twice = () => (x: Item) => this.#node("add", [x.value, x.value], {}, 2 * x.size);
    const ways = [rotation, norm, rotation, norm, rotation, norm, silu, twice];
    const legal = headDim % 2 === 0 ? ways : ways.filter((way) => way !== rotation);
    const steps = Array.from({ length: c.below(4) }, () => c.of(legal)());
    return (x) => steps.reduce((value, step) => step(value), x);
  }

  #mlp(c: Choices): void {
    const x = this.#norm(c, this.#read(c));
    const path = `${this.#module(c)}.mlp`;
    const inner = c.of(WIDTHS);
    const gate = this.#linear(x, `${path}.gate_proj`, inner);
    const up = this.#linear(x, `${path}.up_proj`, inner);
    const active = this.#node("silu", [gate.value], {}, 0.5 * gate.size);
    const both = c.below(2) === 0 ? [active, up] : [up, active];
    const m = this.#node("mul", both.map((i) => i.value), {}, active.size * up.size);
    // What others read is not fused.
    if (c.below(3) === 1) this.#flat.push(active);
    this.#flat.push(up, m);
    const down = this.#linear(m, `${path}.down_proj`, this.#hidden);
    this.#join(c, c.below(3) === 1 ? this.#norm(c, down) : down);
  }

  /** add, mul or silu of recent values of one width. */
  #combine(c: Choices): void {
    const a = this.#read(c);
    const width = a.value.type.shape[1];
    const b = c.of(this.#flat.filter(({ value }) => value.type.shape[1] === width).toReversed());
    const kind = c.below(3);
    const inputs = [a.value, b.value];
    if (kind === 2) return this.#keep(this.#node("silu", [a.value], {}, 0.5 * a.size));
    if (kind === 0) return this.#keep(this.#node("add", inputs, {}, Math.hypot(a.size, b.size)));
    return this.#keep(this.#node("mul", inputs, {}, a.size * b.size));
  }

  /** A flat value seen as heads, or heads made before, worked on and merged again. */
  #views(c: Choices): void {
    const x = this.#read(c);
    const width = Number(x.value.type.shape[1]);
    const fitting = [...HEAD_DIMS, ...ODD_DIMS].filter((d) => width % d === 0);
    const old = this.#heads.at(-1 - c.below(3));
    const split = fitting.length > 0 && c.below(2) === 0 ? this.#split(x, c.of(fitting)) : old;
    if (split === undefined) return;
    const heads = this.#recipe(c, Number(split.value.type.shape[2]))(split);
    this.#heads.push(heads);
    this.#keep(this.#merge(heads));
  }

  /** Adds what was made to the residual stream, through a linear where it has another width. */
  #join(c: Choices, x: Item): void {
    const fits = x.value.type.shape[1] === this.#hidden;
    const y = fits && c.below(2) === 0 ? x : this.#linear(x, `${this.#module(c)}.join_proj`, this.#hidden);
    const [a, b] = c.below(2) === 0 ? [this.#stream, y] : [y, this.#stream];
    this.#stream = this.#node("add", [a.value, b.value], {}, Math.hypot(a.size, b.size));
    this.#keep(this.#stream);
    if (c.below(3) === 1) this.#flat.push(this.#norm(c, this.#stream));
  }

  // ---- the logits

  finish(): RandomGraph {
    const c = this.#choices;
    const [hidden, vocabulary] = [this.#hidden, this.#vocabulary];
    const out = (x: Item, path: string) => this.#linear(x, path, vocabulary);
    const ways: readonly (() => Item)[] = [
      () => out(this.#norm(c, this.#stream), "lm_head"),
      () => out(this.#norm(c, this.#stream), "embed"),
      () => out(this.#stream, "lm_head"),
      () => out(this.#read(c), "lm_head"),
      () => out(this.#stream, "model.layers.99.out_proj"),
      () => {
        this.#linear(this.#stream, "model.layers.99.a_proj", 7);
        return out(this.#stream, "model.layers.99.b_proj");
      },
      () => {
        const [a, b] = [out(this.#stream, "model.layers.99.a_proj"), out(this.#read(c), "lm_head")];
        return this.#node("add", [a.value, b.value], {}, 1);
      },
      () => this.#norm(c, out(this.#stream, "model.layers.99.out_proj")),
      () => {
        // What the head reads is read after it, too, beside all tokens.
        const x = this.#norm(c, this.#stream);
        const logits = out(x, "lm_head");
        this.#node("add", [x.value, this.#stream.value], {}, 1);
        return logits;
      },
      () => {
        // Logits that something reads.
        const logits = out(this.#norm(c, this.#stream), "lm_head");
        this.#node("silu", [logits.value], {}, 1);
        return logits;
      },
      () => {
        const heads = this.#norm(c, this.#split(this.#stream, 2));
        const logits = out(this.#merge(heads), "lm_head");
        this.#node("add", [this.#merge(heads).value, this.#stream.value], {}, 1);
        return logits;
      },
    ];
    const graph = this.#build.finish([c.of(ways)().value], "traced");
    return { graph, hidden, vocabulary };
  }

  // ---- nodes

  #node<P extends Op>(op: P, inputs: readonly Value[], params: Params[P], size: number): Item {
    return { value: this.#build.node(op, inputs, params)[0]!, size };
  }

  /** Weights have rows of length 1, about. */
  #linear({ value, size }: Item, path: string, outputs: number): Item {
    return this.#node("linear", [value], { weights: [{ ...moduleTensor(path), outputs }] }, size);
  }

  /** A norm of its own, or one of this width that another node has. */
  #norm(c: Choices, { value }: Item): Item {
    const width = Number(value.type.shape.at(-1));
    const shared = c.below(6) === 1 ? this.#norms.get(width) : undefined;
    const path = shared ?? `norms.n${this.#modules++}`;
    this.#norms.set(width, path);
    return this.#node("rms_norm", [value], { ...moduleTensor(path), epsilon: c.of(EPSILONS) }, 1);
  }

  #split({ value, size }: Item, headDim: number): Item {
    return this.#node("split_heads", [value], { headDim }, size);
  }

  #merge({ value, size }: Item): Item {
    return this.#node("merge_heads", [value], {}, size);
  }

  /** Inside a layer, where linears are corrected and siblings are one; or outside. */
  #module(c: Choices): string {
    const name = this.#modules++;
    return c.below(6) === 1 ? `outside.m${name}` : `model.layers.${name}`;
  }

  #read(c: Choices): Item {
    return c.of(this.#flat.slice(-RECENT).toReversed());
  }

  #keep(item: Item): void {
    this.#flat.push(this.#tamed(this.#choices, item));
  }

  #tamed(c: Choices, item: Item): Item {
    return item.size > 0.2 && item.size < 5 ? item : this.#norm(c, item);
  }
}
