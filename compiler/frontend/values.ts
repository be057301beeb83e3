/**
 * What an expression of a model description can be while it is traced: static values, known to the compiler, and
 * tensors, which are symbols of the graph. All are immutable but the attributes of modules, which `__init__` sets.
 */
import type { Value as GraphValue } from "../ir/graph.ts";
import { typeText } from "../ir/types.ts";
import type { Arguments } from "./calls.ts";
import type { Span } from "./diagnostics.ts";
import type { Tracing } from "./tracing.ts";

export interface Tensor {
  readonly kind: "tensor";
  readonly value: GraphValue;
}

export interface Sequence {
  readonly kind: "list" | "tuple";
  readonly items: readonly Value[];
}

/** `range(...)`, not expanded: its length may be absurd. */
export interface Range {
  readonly kind: "range";
  readonly start: number;
  readonly step: number;
  readonly length: number;
}

/** config.json, or an object inside it: fields are read as attributes or by subscript. */
export interface Record {
  readonly kind: "record";
  /** Where it is in config.json: "" for the whole, `rope_parameters`. */
  readonly path: string;
  readonly fields: { readonly [field: string]: unknown };
}

/** Names and their values, of a function that runs or of a file. */
export type Scope = Map<string, Value>;
/** What an expression was compiled to. */
export type Evaluate = (scope: Scope) => Value;
/** What a block of statements came to: a returned value, or undefined when it ran to its end. */
export type Outcome = { readonly value: Value } | undefined;

export interface Parameter {
  readonly name: string;
  readonly optional: boolean;
  readonly keywordOnly?: boolean;
}

export interface FunctionDefinition {
  readonly name: string;
  readonly parameters: readonly (Parameter & { readonly default?: Evaluate })[];
  readonly run: (scope: Scope) => Outcome;
  /** The name: where a diagnostic about the function points. */
  readonly span: Span;
}

/** A function that is built in. */
export interface Builtin {
  readonly kind: "builtin";
  readonly name: string;
  readonly parameters: readonly Parameter[];
  readonly call: (found: Arguments, tracing: Tracing) => Value;
}

/** What a module is an instance of: a class of a description, or one of the layers that hold weights (layers.ts). */
export type ModuleType =
  | {
    readonly kind: "class";
    readonly name: string;
    readonly methods: ReadonlyMap<string, FunctionDefinition>;
    readonly span: Span;
  }
  | {
    readonly kind: "layer";
    readonly name: string;
    readonly methods: ReadonlyMap<string, (self: ModuleInstance) => Builtin>;
  };
export type ClassDefinition = Extract<ModuleType, { readonly kind: "class" }>;

export interface ModuleInstance {
  readonly kind: "module";
  readonly type: ModuleType;
  readonly attributes: Map<string, Value>;
  /** While its `__init__` runs, attributes may be set. */
  constructing: boolean;
  /** Its `__init__` was given up after an error: attributes it lacks are unknown, not missing. */
  incomplete: boolean;
  /** Where it was first assigned: `self.name` of the owner. The root has neither. */
  owner?: ModuleInstance;
  name?: string;
}

export function newModule(
  type: ModuleType,
  attributes: Iterable<readonly [string, Value]> = [],
): ModuleInstance {
  return { kind: "module", type, attributes: new Map(attributes), constructing: false, incomplete: false };
}

export type Callable =
  | ClassDefinition
  | { readonly kind: "function"; readonly definition: FunctionDefinition; readonly self?: ModuleInstance }
  | Builtin;

/** The result of something that was reported. Whatever is made of it is unknown too, and reported no more. */
export interface Unknown {
  readonly kind: "unknown";
}
export const UNKNOWN: Unknown = { kind: "unknown" };

export type Value =
  | number
  | string
  | boolean
  | null
  | Tensor
  | Sequence
  | Range
  | Record
  | ModuleInstance
  | Callable
  | Unknown;

export function isObject(value: Value): value is Exclude<Value, number | string | boolean | null> {
  return typeof value === "object" && value !== null;
}

export function isUnknown(value: Value): value is Unknown {
  return value === UNKNOWN;
}

export function isTensor(value: Value): value is Tensor {
  return isObject(value) && value.kind === "tensor";
}

export function isSequence(value: Value): value is Sequence {
  return isObject(value) && (value.kind === "list" || value.kind === "tuple");
}

export function isRecord(value: Value): value is Record {
  return isObject(value) && value.kind === "record";
}

export function isModule(value: Value): value is ModuleInstance {
  return isObject(value) && value.kind === "module";
}

/** What messages call a record. */
export function recordName({ path }: Record): string {
  return path === "" ? "config.json" : `${path} of config.json`;
}

/** A value of JSON at `path` in config.json. Objects become records, and stay as they are until a field is read. */
export function fromJson(json: unknown, path: string): Value {
  if (json === null || json === undefined) return null;
  if (typeof json === "number" || typeof json === "string" || typeof json === "boolean") return json;
  if (Array.isArray(json)) {
    return { kind: "list", items: json.map((item: unknown, i) => fromJson(item, `${path}[${i}]`)) };
  }
  if (typeof json === "object") return { kind: "record", path, fields: { ...json } };
  return null;
}

/**
 * The attribute path of a module, `model.layers.3.mlp`, "" for the root; undefined for a module that no attribute
 * holds.
 */
export function modulePath(module: ModuleInstance, root: ModuleInstance): string | undefined {
  const names: string[] = [];
  let at = module;
  while (at !== root) {
    // Modules that hold each other make a circle; no model is this deep.
    if (at.owner === undefined || at.name === undefined || names.length > 32) return undefined;
    names.unshift(at.name);
    at = at.owner;
  }
  return names.join(".");
}

/** How a value is called in messages: `the number 3`, `a tensor [T,256] f32`. */
export function describe(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return `the number ${value}`;
  if (typeof value === "string") return `the string ${text(value)}`;
  switch (value.kind) {
    case "tensor":
      return `a tensor ${typeText(value.value.type)}`;
    case "list":
    case "tuple":
      return `a ${value.kind} of ${value.items.length}`;
    case "range":
      return `a range of ${value.length}`;
    case "record":
      return recordName(value);
    case "module":
      return `a ${value.type.name}`;
    case "class":
      return `class ${value.name}`;
    case "function":
      return `function ${value.definition.name}`;
    case "builtin":
      return `function ${value.name}`;
    case "unknown":
      return "something unknown";
  }
}

/** A JSON value in a message, cut when it is long. */
export function text(json: unknown): string {
  const found = typeof json === "bigint" ? String(json) : JSON.stringify(json) ?? "null";
  return found.length > 60 ? `${found.slice(0, 60)}...` : found;
}

export function truth(value: Value): boolean | undefined {
  if (!isObject(value)) return Boolean(value);
  switch (value.kind) {
    case "list":
    case "tuple":
      return value.items.length > 0;
    case "range":
      return value.length > 0;
    case "record":
      return Object.keys(value.fields).length > 0;
    case "module":
    case "class":
    case "function":
    case "builtin":
      return true;
    case "tensor":
    case "unknown":
      return undefined;
  }
}

/** Python's ==, for static values; undefined where it has no static answer. `step` is called for every item. */
export function equal(a: Value, b: Value, step: () => void, depth = 0): boolean | undefined {
  step();
  if (depth > 32) return undefined;
  if (isTensor(a) || isTensor(b) || isUnknown(a) || isUnknown(b)) return undefined;
  if (!isObject(a) || !isObject(b)) return number(a) === number(b);
  if (a === b) return true;
  if (!isSequence(a) || !isSequence(b) || a.kind !== b.kind || a.items.length !== b.items.length) {
    return false;
  }
  for (const [i, item] of a.items.entries()) {
    const same = equal(item, b.items[i] ?? null, step, depth + 1);
    if (same !== true) return same;
  }
  return true;
}

/** In Python True is 1. */
function number(value: Value): Value {
  return typeof value === "boolean" ? Number(value) : value;
}
