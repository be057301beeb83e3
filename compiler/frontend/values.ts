/**
 * What an expression of a model description can be while it is traced: static values, known to the compiler, and
 * tensors, which are symbols of the graph. All are immutable but the attributes of modules, which `__init__` sets.
 */
import type { Value as GraphValue } from "../ir/graph.ts";
import { typeText } from "../ir/types.ts";
import type { Arguments } from "./calls.ts";
import type { Span } from "./diagnostics.ts";

export interface Tensor {
  readonly kind: "tensor";
  readonly value: GraphValue;
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
/** What statements were compiled to: gives a returned value, or undefined where they ran to their end. */
export type Execute = (scope: Scope) => { readonly value: Value } | undefined;

export interface Parameter {
  readonly name: string;
  readonly optional: boolean;
  readonly keywordOnly?: boolean;
}

/** A function of a description, or one that is built in. */
export interface Callable {
  readonly kind: "function";
  readonly name: string;
  /** Without the self of a method. */
  readonly parameters: readonly Parameter[];
  readonly call: (found: Arguments) => Value;
  /** Its name in a description. */
  readonly span?: Span;
}

/** A class of a description, or a layer that holds weights (layers.ts). */
export interface ModuleType {
  readonly kind: "class";
  readonly name: string;
  readonly methods: ReadonlyMap<string, (self: ModuleInstance) => Callable>;
  /** Its name in a description. */
  readonly span?: Span;
}

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

/** In a name or attribute whose assignment was reported; who reads it gives up in silence. */
export interface Unknown {
  readonly kind: "unknown";
}
export const UNKNOWN: Unknown = { kind: "unknown" };

/** Lists and tuples are arrays. */
export type Value =
  | number
  | string
  | boolean
  | null
  | readonly Value[]
  | Tensor
  | Record
  | ModuleInstance
  | ModuleType
  | Callable
  | Unknown;

type Kinds = Extract<Value, { readonly kind: string }>;

/** Whether a value is of a kind: a tensor, a module, ... */
export function is<K extends Kinds["kind"]>(
  kind: K,
  value: Value,
): value is Extract<Kinds, { readonly kind: K }> {
  return typeof value === "object" && value !== null && "kind" in value && value.kind === kind;
}

export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

/** What messages call a record. */
export function recordName({ path }: Record): string {
  return path === "" ? "config.json" : `${path} of config.json`;
}

/** A value of JSON at `path` in config.json. Objects become records, and stay as they are until a field is read. */
export function fromJson(json: unknown, path: string): Value {
  if (typeof json === "number" || typeof json === "string" || typeof json === "boolean") return json;
  if (Array.isArray(json)) return json.map((item: unknown, i) => fromJson(item, `${path}[${i}]`));
  return typeof json === "object" && json !== null ? { kind: "record", path, fields: { ...json } } : null;
}

/** How a value is called in messages: `the number 3`, `a tensor [T,256] f32`. */
export function describe(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return `the number ${value}`;
  if (typeof value === "string") return `the string ${text(value)}`;
  if (isList(value)) return `a list of ${value.length}`;
  switch (value.kind) {
    case "tensor":
      return `a tensor ${typeText(value.value.type)}`;
    case "record":
      return recordName(value);
    case "module":
      return `a ${value.type.name}`;
    case "class":
      return `class ${value.name}`;
    case "function":
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
