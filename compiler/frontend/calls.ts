/** How arguments meet parameters, for functions of a description and built-in ones alike, and what a call runs. */
import { readMethod } from "./attributes.ts";
import { didYouMean, type Span } from "./diagnostics.ts";
import type { Tracing } from "./tracing.ts";
import {
  type Callable,
  describe,
  is,
  isList,
  type ModuleInstance,
  newModule,
  type Tensor,
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

/** A built-in function; its parameters are written `x positions scale=`, where `=` marks what is optional. */
export function callable(name: string, parameters: string, call: Callable["call"]): Callable {
  const names = parameters.split(" ").filter((p) => p !== "");
  const list = names.map((p) => ({ name: p.replace("=", ""), optional: p.endsWith("=") }));
  return { kind: "function", name, parameters: list, call };
}

/** Arguments by parameter name. */
function bind({ name, parameters }: Callable, site: CallSite, tracing: Tracing): Map<string, Argument> {
  const names = parameters.map((p) => p.optional ? `${p.name}=...` : p.name);
  const fail = (span: Span, message: string): never =>
    tracing.fail(span, `${name} ${message}`, `accepted: ${name}(${names.join(", ")})`);
  const bound = new Map<string, Argument>();
  const byPosition = parameters.filter((p) => p.keywordOnly !== true);
  for (const [i, argument] of site.positional.entries()) {
    const parameter = byPosition[i];
    if (!parameter) {
      const count = `${byPosition.length} positional argument${byPosition.length === 1 ? "" : "s"}`;
      return fail(argument.span, `takes ${count}, found ${site.positional.length}`);
    }
    bound.set(parameter.name, argument);
  }
  for (const [keyword, argument] of site.keywords) {
    if (bound.has(keyword)) fail(argument.span, `got its argument ${keyword} twice`);
    if (!parameters.some((p) => p.name === keyword)) {
      const near = didYouMean(keyword, parameters.map((p) => p.name));
      fail(argument.span, `has no parameter ${keyword}${near}`);
    }
    bound.set(keyword, argument);
  }
  const missing = parameters.filter((p) => !p.optional && !bound.has(p.name)).map((p) => p.name);
  if (missing.length > 0) fail(site.span, `misses its argument ${missing.join(", ")}`);
  return bound;
}

/** Largest size of a dimension: far above every published model, far below what could exhaust memory. */
const LARGEST_SIZE = 2 ** 26;

const isNumber = (value: Value): value is number => typeof value === "number";
const isFinite = (value: Value): value is number => isNumber(value) && Number.isFinite(value);
const isInteger = (value: Value): value is number => Number.isSafeInteger(value);

/** Bound arguments, read with the type that a built-in expects; what does not fit is reported. */
export class Arguments {
  constructor(
    readonly name: string,
    readonly bound: ReadonlyMap<string, Argument>,
    readonly span: Span,
    readonly tracing: Tracing,
  ) {}

  has(name: string): boolean {
    return this.bound.has(name);
  }

  /** None where it is not given. */
  value(name: string): Value {
    return this.bound.get(name)?.value ?? null;
  }

  spanOf(name: string): Span {
    return this.bound.get(name)?.span ?? this.span;
  }

  fail(name: string, message: string, ...notes: string[]): never {
    return this.tracing.fail(this.spanOf(name), `${this.name}: ${message}`, ...notes);
  }

  #read<T extends Value>(name: string, expected: string, fits: (value: Value) => value is T): T {
    const value = this.value(name);
    if (fits(value)) return value;
    const found = this.has(name) ? describe(value) : "nothing";
    return this.fail(name, `${name} must be ${expected}, found ${found}`);
  }

  /** A whole number from 1. */
  size(name: string): number {
    const fits = (v: Value): v is number => isInteger(v) && v >= 1 && v <= LARGEST_SIZE;
    return this.#read(name, `a whole number from 1 to ${LARGEST_SIZE}`, fits);
  }

  positive(name: string): number {
    return this.#read(name, "a finite number above 0", (v): v is number => isFinite(v) && v > 0);
  }

  number(name: string): number {
    return this.#read(name, "a number", isNumber);
  }

  integer(name: string): number {
    return this.#read(name, "a whole number", isInteger);
  }

  numbers(name: string): readonly number[] {
    const fits = (v: Value): v is readonly number[] => isList(v) && v.length > 0 && v.every(isFinite);
    return this.#read(name, "a list of finite numbers", fits);
  }

  string(name: string): string {
    return this.#read(name, "a string", (v) => typeof v === "string");
  }

  tensor(name: string): Tensor {
    return this.#read(name, "a tensor", (v) => is("tensor", v));
  }

  items(name: string): readonly Value[] {
    return this.tracing.items(this.value(name), this.spanOf(name));
  }
}

/** Calls what can be called; `at` is where it is named. */
export function call(callee: Value, site: CallSite, at: Span, tracing: Tracing): Value {
  if (is("module", callee)) return call(readMethod(callee, "forward", at, tracing), site, at, tracing);
  if (is("class", callee)) return construct(newModule(callee), site, tracing);
  if (!is("function", callee)) return tracing.fail(at, `${describe(callee)} cannot be called`);
  return callee.call(new Arguments(callee.name, bind(callee, site, tracing), site.span, tracing));
}

/** Runs the `__init__` of a new module. Where that is given up, the module stands for what could be made of it. */
export function construct(module: ModuleInstance, site: CallSite, tracing: Tracing): ModuleInstance {
  const { name, methods } = module.type;
  const init = methods.get("__init__")?.(module) ?? callable(name, "", () => null);
  module.constructing = true;
  module.incomplete = !tracing.attempt(() => call(init, site, site.span, tracing));
  module.constructing = false;
  return module;
}
