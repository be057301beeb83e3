/**
 * The state of one trace: the graph under construction, the diagnostics, and the limits that keep a hostile
 * description from taking endless time or memory. The interpreter and the built-ins act through it.
 */
import type { GraphBuilder } from "../ir/build.ts";
import { GraphError } from "../ir/infer.ts";
import type { Op, Params } from "../ir/ops.ts";
import type { Diagnostics, Span } from "./diagnostics.ts";
import {
  describe,
  fromJson,
  isModule,
  isObject,
  isRecord,
  isSequence,
  isUnknown,
  type ModuleInstance,
  modulePath,
  type Tensor,
  truth,
  UNKNOWN,
  type Unknown,
  type Value,
} from "./values.ts";

/** A model of a hundred layers takes some 50,000 steps. */
const MOST_STEPS = 2_000_000;
/** Nested evaluations, each a few frames of the engine's stack. */
const DEEPEST = 500;
/** A model of a hundred layers has some 2,500 nodes. */
const MOST_NODES = 50_000;
/** Longest list or loop: above any number of layers or experts, below what would fill memory. */
const LONGEST = 20_000;

/** Lists within lists in which modules are named. */
const DEEPEST_LIST = 4;

/** Thrown when a limit is passed, after it was reported; never leaves the frontend. */
export class LimitReached extends Error {}

export class Tracing {
  /** The name being assigned: values of the graph are called after it. */
  hint: string | undefined;
  /** The statement being executed. */
  at: Span = { row: 0, column: 0, endRow: 0, endColumn: 1 };
  /** The model: attribute paths start here. */
  root: ModuleInstance | undefined;
  /** Modules whose methods are running, innermost last; for messages. */
  readonly running: ModuleInstance[] = [];
  /** Fields of config.json read since this was last emptied; messages of `assert` show them. */
  fieldsRead = new Map<string, unknown>();
  #steps = 0;
  #depth = 0;
  #nodes = 0;
  #attentions = 0;

  constructor(readonly builder: GraphBuilder, readonly diagnostics: Diagnostics) {}

  /** Evaluates one level deeper. */
  nested(span: Span, evaluate: () => Value): Value {
    this.spend(1);
    if (this.#depth >= DEEPEST) {
      this.fail(span, "calls nested too deeply", "a description may not call itself without end");
      throw new LimitReached();
    }
    this.#depth++;
    const value = evaluate();
    this.#depth--;
    return value;
  }

  /** Evaluates with a name for the values of the graph that are made. */
  named(hint: string, evaluate: () => Value): Value {
    const outer = this.hint;
    this.hint = hint;
    const value = evaluate();
    this.hint = outer;
    return value;
  }

  /** Reports, with the module whose method is running; stands for the value that could not be made. */
  fail(span: Span, message: string, ...notes: string[]): Unknown {
    const module = this.running.at(-1);
    const path = module && this.root && modulePath(module, this.root);
    const where = path ? [`while tracing ${path} (${module.type.name})`] : [];
    this.diagnostics.report(span, message, ...notes, ...where);
    return UNKNOWN;
  }

  /** Spends steps of the bounded trace. */
  spend(steps: number): void {
    this.#steps += steps;
    if (this.#steps <= MOST_STEPS) return;
    this.fail(
      this.at,
      `tracing takes more than ${MOST_STEPS} steps`,
      "check this loop, and sizes in config.json",
    );
    throw new LimitReached();
  }

  /** Appends a node of one output to the graph; a shape that does not fit is reported at `span`. */
  node<P extends Op>(op: P, inputs: readonly Tensor[], params: Params[P], span: Span): Value {
    if (++this.#nodes > MOST_NODES) {
      this.fail(
        span,
        `the graph has more than ${MOST_NODES} nodes`,
        "check num_hidden_layers in config.json",
      );
      throw new LimitReached();
    }
    try {
      const [value] = this.builder.node(op, inputs.map((t) => t.value), params, this.hint ?? op);
      return value ? { kind: "tensor", value } : UNKNOWN;
    } catch (error) {
      if (error instanceof GraphError) return this.fail(span, error.message);
      throw error;
    }
  }

  /** The tensor name without `.weight`; reports a module that no attribute holds. */
  path(module: ModuleInstance, span: Span): string | undefined {
    const path = this.root && modulePath(module, this.root);
    if (path) return path;
    this.fail(
      span,
      `this ${module.type.name} has no name, so its weights cannot be found in the checkpoint`,
      "assign it to an attribute of self in __init__: the attribute path is the tensor's name",
    );
    return undefined;
  }

  /** The number of the next attention: each has a key-value cache of its own. */
  nextAttention(): number {
    return this.#attentions++;
  }

  /** A value's truth, or undefined when it has none that is static, which is reported. */
  truth(value: Value, span: Span): boolean | undefined {
    const known = truth(value);
    if (known === undefined && !isUnknown(value)) {
      const found = describe(value);
      this.fail(span, `a condition must be known when the model is compiled, found ${found}`);
    }
    return known;
  }

  /** The first attribute that holds a module names it; items of lists by their index. */
  adopt(owner: ModuleInstance, name: string, value: Value, depth = 0): void {
    if (isModule(value) && value.owner === undefined && value !== this.root) {
      value.owner = owner;
      value.name = name;
    } else if (isSequence(value) && depth < DEEPEST_LIST) {
      this.spend(value.items.length);
      value.items.forEach((item, i) => {
        if (isModule(item) || isSequence(item)) this.adopt(owner, `${name}.${i}`, item, depth + 1);
      });
    }
  }

  /** What a loop runs over, expanded; undefined when it is not iterable, which is reported. */
  items(value: Value, span: Span): readonly Value[] | undefined {
    if (isUnknown(value)) return undefined;
    if (isObject(value)) {
      const length = isSequence(value) ? value.items.length : value.kind === "range" ? value.length : 0;
      if (length > LONGEST) {
        this.fail(span, `${describe(value)} is too long to go through`, `accepted: at most ${LONGEST} items`);
        return undefined;
      }
      this.spend(length);
      if (isSequence(value)) return value.items;
      if (value.kind === "range") return Array.from({ length }, (_, i) => value.start + i * value.step);
    }
    this.fail(span, `cannot go through ${describe(value)}`, "accepted: a list, a tuple or a range");
    return undefined;
  }

  /** A field of a record or attribute of a module, if it is there. */
  field(object: Value, name: string): Value | undefined {
    if (isModule(object)) return object.attributes.get(name);
    if (!isRecord(object) || !Object.hasOwn(object.fields, name)) return undefined;
    const json = object.fields[name];
    const path = object.path === "" ? name : `${object.path}.${name}`;
    this.fieldsRead.set(path, json);
    if (Array.isArray(json)) this.spend(json.length);
    return fromJson(json, path);
  }
}
