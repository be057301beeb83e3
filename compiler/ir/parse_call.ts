/** Calls in the text of a graph: `op(inputs..., "strings"..., name=value...)`, read argument by argument. */
import type { Node as SyntaxNode } from "web-tree-sitter";
import type { Arguments, Literal } from "./syntax.ts";
import type { Dim, TensorType } from "./types.ts";

/** Something wrong at a place in the text; caught per statement. */
export class ErrorAt extends Error {
  constructor(readonly at: SyntaxNode, message: string) {
    super(message);
  }
}

/** Arguments of one call, taken one after another. */
export class CallReader implements Arguments {
  /** Positional arguments that are no strings. */
  readonly values: readonly SyntaxNode[];
  readonly #strings: SyntaxNode[];
  readonly #keywords = new Map<string, SyntaxNode>();

  constructor(readonly call: SyntaxNode) {
    const list = call.childForFieldName("arguments");
    const args = list === null ? [] : named(list).filter((n) => n.type !== "comment");
    const positional = args.filter((n) => n.type !== "keyword_argument");
    this.#strings = positional.filter((n) => n.type === "string");
    this.values = positional.filter((n) => n.type !== "string");
    for (const arg of args) {
      if (arg.type !== "keyword_argument") continue;
      const name = arg.childForFieldName("name")?.text ?? "";
      if (this.#keywords.has(name)) throw new ErrorAt(arg, `${name} is given twice`);
      this.#keywords.set(name, arg);
    }
  }

  string(what: string): string {
    const node = this.#strings.shift();
    if (node === undefined) return this.fail(`expected ${what} as a string`);
    return stringOf(node);
  }

  keyword<T>(name: string, expected: string, accept: (value: Literal) => T | undefined): T {
    return this.optional(name, expected, accept) ?? this.fail(`expected ${name}=, ${expected}`);
  }

  optional<T>(name: string, expected: string, accept: (value: Literal) => T | undefined): T | undefined {
    const node = this.#keywords.get(name);
    if (node === undefined) return undefined;
    this.#keywords.delete(name);
    const value = node.childForFieldName("value");
    const found = value === null ? undefined : accept(literalOf(value));
    if (found === undefined) throw new ErrorAt(node, `${name} must be ${expected}, found ${value?.text}`);
    return found;
  }

  fail(message: string): never {
    throw new ErrorAt(this.call, message);
  }

  finish(): void {
    const [string] = this.#strings;
    if (string !== undefined) throw new ErrorAt(string, `unexpected argument ${string.text}`);
    const [keyword] = this.#keywords.values();
    if (keyword !== undefined) throw new ErrorAt(keyword, `unexpected argument ${keyword.text}`);
  }
}

export function named(node: SyntaxNode): SyntaxNode[] {
  return node.namedChildren.filter((child) => child !== null);
}

/** The terms of `x + a + b`, from the left. */
export function terms(node: SyntaxNode): SyntaxNode[] {
  const [left, right] = [node.childForFieldName("left"), node.childForFieldName("right")];
  const isSum = node.type === "binary_operator" && node.childForFieldName("operator")?.text === "+";
  return isSum && left && right ? [...terms(left), right] : [node];
}

export function calledName(call: SyntaxNode): string {
  return call.childForFieldName("function")?.text ?? "";
}

export function stringOf(node: SyntaxNode): string {
  try {
    const value: unknown = JSON.parse(node.text);
    if (typeof value === "string") return value;
  } catch {
    // Reported below.
  }
  throw new ErrorAt(node, `expected a plain string in double quotes, found ${node.text}`);
}

function literalOf(node: SyntaxNode): Literal {
  if (node.type === "string") return stringOf(node);
  if (node.type === "tuple") {
    const values = named(node).map((item) => {
      const value = literalOf(item);
      if (typeof value === "object") {
        throw new ErrorAt(item, `expected a number or a string, found ${item.text}`);
      }
      return value;
    });
    const [numbers, strings] = [
      values.filter((v) => typeof v === "number"),
      values.filter((v) => typeof v === "string"),
    ];
    if (numbers.length > 0 && strings.length > 0) {
      throw new ErrorAt(node, `expected numbers or strings, found both in ${node.text}`);
    }
    return numbers.length > 0 ? numbers : strings;
  }
  const value = /^-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(node.text) ? Number(node.text) : NaN;
  if (!Number.isFinite(value)) throw new ErrorAt(node, `expected a number or a string, found ${node.text}`);
  return value;
}

/** `input("i32", "T")`: the type, then the dimensions. */
export function inputType(call: SyntaxNode): TensorType {
  const list = call.childForFieldName("arguments");
  const [dtypeNode, ...dims] = list === null ? [] : named(list);
  const dtype = dtypeNode === undefined ? "" : literalOf(dtypeNode);
  if (dtype !== "i32" && dtype !== "f32") {
    throw new ErrorAt(call, 'expected a type, "i32" or "f32", and dimensions');
  }
  const shape = dims.map((node): Dim => {
    const dim = literalOf(node);
    if (dim === "T" || dim === "R" || (Number.isSafeInteger(dim) && Number(dim) > 0)) return dim as Dim;
    throw new ErrorAt(node, `expected a dimension, a positive whole number or "T", found ${node.text}`);
  });
  return { shape, dtype };
}
