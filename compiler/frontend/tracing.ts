/**
 * The state of one trace: the graph under construction, the diagnostics, and the limits that keep a hostile
 * description from taking endless time or memory.
 */
import type { GraphBuilder } from "../ir/build.ts";
import { GraphError } from "../ir/infer.ts";
import type { Op, Params } from "../ir/ops.ts";
import type { Diagnostics, Span } from "./diagnostics.ts";
import { describe, fromJson, is, isList, type ModuleInstance, type Tensor, type Value } from "./values.ts";

/** A model of a hundred layers takes some 50,000 steps. */
const MOST_STEPS = 2_000_000;
/** Nested evaluations, each a few frames of the engine's stack. */
const DEEPEST = 500;
/** A model of a hundred layers has some 2,500 nodes. */
const MOST_NODES = 50_000;
/** Longest list or loop: above any number of layers or experts, below what would fill memory. */
const LONGEST = 20_000;
/** Lists within lists in which modules are named, and modules within modules. */
const DEEPEST_LIST = 4;
const DEEPEST_MODULE = 32;

/** Thrown when a limit is passed, after it was reported; never leaves the frontend. */
export class LimitReached extends Error {}

/** Thrown where a value cannot be made, after that was reported. The statement is given up, and tracing goes on. */
export class Reported extends Error {}

export class Tracing {
  /** The statement being executed. */
  at: Span = { row: 0, column: 0, endRow: 0, endColumn: 1 };
  /** The model: attribute paths start here. */
  root: ModuleInstance | undefined;
  /** Modules whose methods are running, innermost last; for messages. */
  readonly #running: ModuleInstance[] = [];
  /** Fields of config.json read since this was last emptied; messages of `assert` show them. */
  fieldsRead = new Map<string, unknown>();
  #hint: string | undefined;
  #steps = 0;
  #depth = 0;
  #nodes = 0;
  #attentions = 0;

  constructor(readonly builder: GraphBuilder, readonly diagnostics: Diagnostics) {}

  /** Evaluates one level deeper. */
  nested(span: Span, evaluate: () => Value): Value {
    this.spend(1);
    if (this.#depth >= DEEPEST) {
      this.#limit(span, "calls nested too deeply", "a description may not call itself without end");
    }
    this.#depth++;
    try {
      return evaluate();
    } finally {
      this.#depth--;
    }
  }

  /** Evaluates with a name for the values of the graph that are made. */
  named(hint: string, evaluate: () => Value): Value {
    const outer = this.#hint;
    this.#hint = hint;
    try {
      return evaluate();
    } finally {
      this.#hint = outer;
    }
  }

  /** Evaluates within a method of a module; messages name it. */
  inside(module: ModuleInstance | undefined, evaluate: () => Value): Value {
    if (module) this.#running.push(module);
    try {
      return evaluate();
    } finally {
      if (module) this.#running.pop();
    }
  }

  /** Reports, with the module whose method is running. */
  report(span: Span, message: string, ...notes: string[]): void {
    const module = this.#running.at(-1);
    const path = module && this.#path(module);
    const where = path ? [`while tracing ${path} (${module.type.name})`] : [];
    this.diagnostics.report(span, message, ...notes, ...where);
  }

  fail(span: Span, message: string, ...notes: string[]): never {
    this.report(span, message, ...notes);
    throw new Reported();
  }

  #limit(span: Span, message: string, ...notes: string[]): never {
    this.report(span, message, ...notes);
    throw new LimitReached();
  }

  /** What `run` gives; undefined where it was given up. */
  attempt<T>(run: () => T): { readonly value: T } | undefined {
    try {
      return { value: run() };
    } catch (error) {
      if (error instanceof Reported) return undefined;
      throw error;
    }
  }

  /** Spends steps of the bounded trace. */
  spend(steps: number): void {
    this.#steps += steps;
    if (this.#steps <= MOST_STEPS) return;
    const note = "check this loop, and sizes in config.json";
    this.#limit(this.at, `tracing takes more than ${MOST_STEPS} steps`, note);
  }

  /** Appends a node of one output to the graph; a shape that does not fit is reported at `span`. */
  node<P extends Op>(op: P, inputs: readonly Tensor[], params: Params[P], span: Span): Tensor {
    if (++this.#nodes > MOST_NODES) {
      const note = "check num_hidden_layers in config.json";
      this.#limit(span, `the graph has more than ${MOST_NODES} nodes`, note);
    }
    try {
      const [value] = this.builder.node(op, inputs.map((t) => t.value), params, this.#hint ?? op);
      if (value) return { kind: "tensor", value };
    } catch (error) {
      if (!(error instanceof GraphError)) throw error;
      return this.fail(span, error.message);
    }
    throw new Error(`${op} makes no value`);
  }

  /** The attribute path of a module, `model.layers.3.mlp`, "" for the root; undefined where no attribute holds it. */
  #path(module: ModuleInstance): string | undefined {
    const names: string[] = [];
    for (let at = module; at !== this.root; at = at.owner) {
      // Modules that hold each other make a circle.
      if (at.owner === undefined || at.name === undefined || names.length > DEEPEST_MODULE) return undefined;
      names.unshift(at.name);
    }
    return names.join(".");
  }

  /** The tensor name of a layer without `.weight`; reports a layer that no attribute holds. */
  path(module: ModuleInstance, span: Span): string {
    return this.#path(module) ??
      this.fail(
        span,
        `this ${module.type.name} has no name, so its weights cannot be found in the checkpoint`,
        "assign it to an attribute of self in __init__: the attribute path is the tensor's name",
      );
  }

  /** The first attribute that holds a module names it; items of lists by their index. */
  adopt(owner: ModuleInstance, name: string, value: Value, depth = 0): void {
    if (is("module", value) && value.owner === undefined && value !== this.root) {
      value.owner = owner;
      value.name = name;
    } else if (isList(value) && depth < DEEPEST_LIST) {
      this.spend(value.length);
      value.forEach((item, i) => this.adopt(owner, `${name}.${i}`, item, depth + 1));
    }
  }

  /** The number of the next attention: each has a key-value cache of its own. */
  nextAttention(): number {
    return this.#attentions++;
  }

  /** A value's truth, which must be static. */
  truth(value: Value, span: Span): boolean {
    if (is("tensor", value)) {
      const found = describe(value);
      return this.fail(span, `a condition must be known when the model is compiled, found ${found}`);
    }
    if (is("record", value)) return Object.keys(value.fields).length > 0;
    return isList(value) ? value.length > 0 : Boolean(value);
  }

  /** What a loop runs over. */
  items(value: Value, span: Span): readonly Value[] {
    if (!isList(value)) {
      return this.fail(span, `cannot go through ${describe(value)}`, "accepted: a list, a tuple or a range");
    }
    this.length(value.length, span, describe(value));
    return value;
  }

  /** Spends what a list of `length` takes, and reports one that is longer than any of a model. */
  length(length: number, span: Span, what: string): void {
    if (length > LONGEST) {
      this.fail(span, `${what} is too long to go through`, `accepted: at most ${LONGEST} items`);
    }
    this.spend(length);
  }

  /** A field of a record or attribute of a module, if it is there. */
  field(object: Value, name: string): Value | undefined {
    if (is("module", object)) return object.attributes.get(name);
    if (!is("record", object) || !Object.hasOwn(object.fields, name)) return undefined;
    const json = object.fields[name];
    const path = object.path === "" ? name : `${object.path}.${name}`;
    this.fieldsRead.set(path, json);
    if (Array.isArray(json)) this.spend(json.length);
    return fromJson(json, path);
  }
}
