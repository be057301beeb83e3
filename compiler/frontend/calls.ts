/** How arguments meet parameters, for functions of the file and built-in ones alike. */
import { didYouMean, type Span } from "./diagnostics.ts";
import type { Op, Params } from "../ir/ops.ts";
import {
  describe,
  isSequence,
  isTensor,
  isUnknown,
  type ModuleInstance,
  type Tensor,
  UNKNOWN,
  type Unknown,
  type Value,
} from "./values.ts";

/** A value and where it was written. */
export interface Argument {
  readonly value: Value;
  readonly span: Span;
}

export interface CallSite {
  readonly positional: readonly Argument[];
  readonly keywords: ReadonlyMap<string, Argument>;
  readonly span: Span;
}

export interface Signature {
  readonly name: string;
  readonly parameters: readonly {
    readonly name: string;
    readonly optional: boolean;
    readonly keywordOnly?: boolean;
  }[];
}

/** What built-in functions need of the interpreter. */
export interface Context {
  /** Reports, and stands for the value that could not be made. */
  fail(span: Span, message: string, ...notes: string[]): Unknown;
  /** Spends steps of the bounded trace. */
  spend(steps: number): void;
  /** Appends a node of one output to the graph; a shape that does not fit is reported at `span`. */
  node<P extends Op>(op: P, inputs: readonly Tensor[], params: Params[P], span: Span): Value;
  /** The name of the graph's rotation table with these numbers, made when there is none. */
  ropeTable(frequencies: readonly number[], scale: number): string;
  /** What a loop runs over, expanded; undefined when it is not iterable, which is reported. */
  items(value: Value, span: Span): readonly Value[] | undefined;
  /** A field of a record or attribute of a module, if it is there. */
  field(object: Value, name: string): Value | undefined;
  /** The tensor name without `.weight`; reports a module that no attribute holds. */
  path(module: ModuleInstance, span: Span): string | undefined;
  /** The number of the next attention: each has a key-value cache of its own. */
  nextAttention(): number;
}

/** Built from the signature as it is written: `rope(x, positions, theta)`, optional ones with `=`. */
export function signatureText(signature: Signature): string {
  const names = signature.parameters.map((p) => p.optional ? `${p.name}=...` : p.name);
  return `${signature.name}(${names.join(", ")})`;
}

/** A signature from `x positions scale=`: a trailing `=` marks an optional parameter. */
export function signature(name: string, parameters: string): Signature {
  return {
    name,
    parameters: parameters.split(" ").filter((p) => p !== "")
      .map((p) => ({ name: p.replace("=", ""), optional: p.endsWith("=") })),
  };
}

/** Arguments by parameter name; undefined when they do not fit, which is reported. */
export function bind(
  signature: Signature,
  site: CallSite,
  context: Context,
): Map<string, Argument> | undefined {
  const bound = new Map<string, Argument>();
  const accepted = `accepted: ${signatureText(signature)}`;
  const byPosition = signature.parameters.filter((p) => p.keywordOnly !== true);
  for (const [i, argument] of site.positional.entries()) {
    const parameter = byPosition[i];
    if (!parameter) {
      const count = `${byPosition.length} positional argument${byPosition.length === 1 ? "" : "s"}`;
      context.fail(
        argument.span,
        `${signature.name} takes ${count}, found ${site.positional.length}`,
        accepted,
      );
      return undefined;
    }
    bound.set(parameter.name, argument);
  }
  for (const [name, argument] of site.keywords) {
    if (bound.has(name)) {
      context.fail(argument.span, `${signature.name} got its argument ${name} twice`, accepted);
      return undefined;
    }
    if (!signature.parameters.some((p) => p.name === name)) {
      const near = didYouMean(name, signature.parameters.map((p) => p.name));
      context.fail(argument.span, `${signature.name} has no parameter ${name}${near}`, accepted);
      return undefined;
    }
    bound.set(name, argument);
  }
  const missing = signature.parameters.filter((p) => !p.optional && !bound.has(p.name)).map((p) => p.name);
  if (missing.length > 0) {
    context.fail(site.span, `${signature.name} misses its argument ${missing.join(", ")}`, accepted);
    return undefined;
  }
  return bound;
}

/** Largest size of a dimension: far above every published model, far below what could exhaust memory. */
const LARGEST_SIZE = 2 ** 26;

/** Bound arguments, read with the type that a built-in expects. A getter reports what does not fit. */
export class Arguments {
  #failed = false;

  constructor(
    readonly signature: Signature,
    readonly bound: ReadonlyMap<string, Argument>,
    readonly span: Span,
    readonly context: Context,
  ) {}

  /** Whether a getter reported, or met something unknown: the built-in then gives up. */
  get failed(): boolean {
    return this.#failed;
  }

  has(name: string): boolean {
    return this.bound.has(name);
  }

  value(name: string): Value {
    const value = this.bound.get(name)?.value ?? null;
    if (isUnknown(value)) this.#failed = true;
    return value;
  }

  spanOf(name: string): Span {
    return this.bound.get(name)?.span ?? this.span;
  }

  fail(name: string, message: string, ...notes: string[]): Unknown {
    this.#failed = true;
    return this.context.fail(this.spanOf(name), `${this.signature.name}: ${message}`, ...notes);
  }

  /** A whole number from 1. */
  size(name: string): number {
    const value = this.value(name);
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1 && value <= LARGEST_SIZE) {
      return value;
    }
    this.#expect(name, value, `a whole number from 1 to ${LARGEST_SIZE}`);
    return 1;
  }

  /** A finite number above zero. */
  positive(name: string): number {
    const value = this.value(name);
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    this.#expect(name, value, "a finite number above 0");
    return 1;
  }

  number(name: string): number {
    const value = this.value(name);
    if (typeof value === "number") return value;
    this.#expect(name, value, "a number");
    return 0;
  }

  integer(name: string): number {
    const value = this.value(name);
    if (typeof value === "number" && Number.isSafeInteger(value)) return value;
    this.#expect(name, value, "a whole number");
    return 0;
  }

  /** A list of finite numbers, not empty. */
  numbers(name: string): readonly number[] {
    const value = this.value(name);
    const items = isSequence(value) ? value.items : [];
    const numbers = items.filter((n): n is number => typeof n === "number" && Number.isFinite(n));
    if (numbers.length > 0 && numbers.length === items.length) return numbers;
    this.#expect(name, value, "a list of finite numbers");
    return [];
  }

  string(name: string): string {
    const value = this.value(name);
    if (typeof value === "string") return value;
    this.#expect(name, value, "a string");
    return "";
  }

  tensor(name: string): Tensor | undefined {
    const value = this.value(name);
    if (isTensor(value)) return value;
    this.#expect(name, value, "a tensor");
    return undefined;
  }

  #expect(name: string, value: Value, expected: string): void {
    if (!isUnknown(value)) {
      const found = value === null && !this.has(name) ? "nothing" : describe(value);
      this.fail(name, `${name} must be ${expected}, found ${found}`);
    }
  }

  /** What `make` makes, unless a getter reported or met something unknown. */
  unlessFailed(make: () => Value): Value {
    return this.#failed ? UNKNOWN : make();
  }
}
