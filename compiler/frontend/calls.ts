/** How arguments meet parameters, for functions of the file and built-in ones alike. */
import { didYouMean, type Span } from "./diagnostics.ts";
import { readMethod } from "./attributes.ts";
import type { Tracing } from "./tracing.ts";
import {
  type Builtin,
  type ClassDefinition,
  describe,
  type FunctionDefinition,
  isModule,
  isObject,
  isSequence,
  isTensor,
  isUnknown,
  type ModuleInstance,
  newModule,
  type Parameter,
  type Scope,
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
  readonly parameters: readonly Parameter[];
}

/** Built from the signature as it is written: `rope(x, positions, theta)`, optional ones with `=`. */
export function signatureText(signature: Signature): string {
  const names = signature.parameters.map((p) => p.optional ? `${p.name}=...` : p.name);
  return `${signature.name}(${names.join(", ")})`;
}

/** A built-in function; its parameters are written `x positions scale=`, where `=` marks what is optional. */
export function builtin(name: string, parameters: string, call: Builtin["call"]): Builtin {
  const names = parameters.split(" ").filter((p) => p !== "");
  const list = names.map((p) => ({ name: p.replace("=", ""), optional: p.endsWith("=") }));
  return { kind: "builtin", name, parameters: list, call };
}

/** Arguments by parameter name; undefined when they do not fit, which is reported. */
export function bind(
  signature: Signature,
  site: CallSite,
  tracing: Tracing,
): Map<string, Argument> | undefined {
  const bound = new Map<string, Argument>();
  const accepted = `accepted: ${signatureText(signature)}`;
  const byPosition = signature.parameters.filter((p) => p.keywordOnly !== true);
  for (const [i, argument] of site.positional.entries()) {
    const parameter = byPosition[i];
    if (!parameter) {
      const count = `${byPosition.length} positional argument${byPosition.length === 1 ? "" : "s"}`;
      tracing.fail(
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
      tracing.fail(argument.span, `${signature.name} got its argument ${name} twice`, accepted);
      return undefined;
    }
    if (!signature.parameters.some((p) => p.name === name)) {
      const near = didYouMean(name, signature.parameters.map((p) => p.name));
      tracing.fail(argument.span, `${signature.name} has no parameter ${name}${near}`, accepted);
      return undefined;
    }
    bound.set(name, argument);
  }
  const missing = signature.parameters.filter((p) => !p.optional && !bound.has(p.name)).map((p) => p.name);
  if (missing.length > 0) {
    tracing.fail(site.span, `${signature.name} misses its argument ${missing.join(", ")}`, accepted);
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
    readonly tracing: Tracing,
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
    return this.tracing.fail(this.spanOf(name), `${this.signature.name}: ${message}`, ...notes);
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
    // What is unknown in it was reported.
    if (items.some(isUnknown)) this.#failed = true;
    else this.#expect(name, value, "a list of finite numbers");
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

/** Calls what can be called; `at` is where it is named. */
export function call(callee: Value, site: CallSite, at: Span, tracing: Tracing): Value {
  if (isUnknown(callee)) return UNKNOWN;
  if (isModule(callee)) return call(readMethod(callee, "forward", at, tracing), site, at, tracing);
  if (isObject(callee)) {
    switch (callee.kind) {
      case "class":
        return construct(newModule(callee), callee, site, tracing);
      case "function":
        return callFunction(callee.definition, callee.self, site, tracing);
      case "builtin": {
        const bound = bind(callee, site, tracing);
        return bound ? callee.call(new Arguments(callee, bound, site.span, tracing), tracing) : UNKNOWN;
      }
    }
  }
  return tracing.fail(at, `${describe(callee)} cannot be called`);
}

/** Runs the `__init__` of a new module. */
export function construct(
  module: ModuleInstance,
  type: ClassDefinition,
  site: CallSite,
  tracing: Tracing,
): ModuleInstance {
  const init = type.methods.get("__init__");
  module.constructing = true;
  if (init) module.incomplete = isUnknown(callFunction(init, module, site, tracing));
  else bind({ name: type.name, parameters: [] }, site, tracing);
  module.constructing = false;
  return module;
}

export function callFunction(
  definition: FunctionDefinition,
  self: ModuleInstance | undefined,
  site: CallSite,
  tracing: Tracing,
): Value {
  const parameters = definition.parameters.slice(self ? 1 : 0);
  const name = self ? `${self.type.name}.${definition.name}` : definition.name;
  const bound = bind({ name, parameters }, site, tracing);
  if (!bound) return UNKNOWN;
  const scope: Scope = new Map();
  const own = definition.parameters[0];
  if (self && own) scope.set(own.name, self);
  for (const parameter of parameters) {
    const given = bound.get(parameter.name);
    scope.set(parameter.name, given ? given.value : parameter.default?.(new Map()) ?? null);
  }
  if (self) tracing.running.push(self);
  const outcome = definition.run(scope);
  if (self) tracing.running.pop();
  return outcome ? outcome.value : null;
}
