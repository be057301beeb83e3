/**
 * What a model description can use without defining it: the ops of the graph and a few static functions of Python.
 * Layers, which hold weights, are in layers.ts. To add an op to the language, add it to OPERATIONS.
 */
import type { Op, Params } from "../ir/ops.ts";
import { type Arguments, builtin } from "./calls.ts";
import { didYouMean } from "./diagnostics.ts";
import { LAYERS } from "./layers.ts";
import {
  type Builtin,
  describe,
  isModule,
  isObject,
  isRecord,
  isSequence,
  isUnknown,
  type Tensor,
  UNKNOWN,
  type Value,
} from "./values.ts";

/** An op of the graph: tensors first, then static parameters. */
function operation<P extends Op>(
  op: P,
  tensors: string,
  others: string,
  params: (found: Arguments, inputs: readonly Tensor[]) => Params[P],
): Builtin {
  const names = tensors.split(" ");
  return builtin(op, `${tensors} ${others}`, (found, tracing) => {
    const inputs = names.map((n) => found.tensor(n)).filter((t) => t !== undefined);
    const made = params(found, inputs);
    return found.unlessFailed(() => tracing.node(op, inputs, made, found.span));
  });
}

const OPERATIONS: readonly Builtin[] = [
  operation("silu", "x", "", () => ({})),
  operation("rope", "x positions", "frequencies scale=", (found) => {
    const frequencies = found.numbers("frequencies");
    const scale = found.has("scale") ? found.positive("scale") : 1;
    return { table: found.failed ? "" : found.tracing.builder.ropeTable(frequencies, scale) };
  }),
  operation("split_heads", "x", "head_dim", (found) => ({ headDim: found.size("head_dim") })),
  operation("merge_heads", "x", "", () => ({})),
  operation("attention", "q k v positions", "scale=", (found, [q]) => {
    const width = q?.value.type.shape.at(-1);
    const usual = typeof width === "number" ? 1 / Math.sqrt(width) : 1;
    const scale = found.value("scale") === null ? usual : found.positive("scale");
    return { layer: found.failed ? 0 : found.tracing.nextAttention(), scale };
  }),
];

/** A function of numbers. */
function arithmetic(name: string, parameters: string, apply: (...numbers: number[]) => number): Builtin {
  const names = parameters.split(" ");
  return builtin(name, parameters, (found) => {
    const numbers = names.map((n) => found.number(n));
    return found.unlessFailed(() => {
      const result = apply(...numbers);
      if (Number.isFinite(result)) return result;
      return found.fail(names[0] ?? "", `${name}(${numbers.join(", ")}) is no finite number`);
    });
  });
}

const STATIC: readonly Builtin[] = [
  arithmetic("int", "x", Math.trunc),
  arithmetic("float", "x", (x) => x),
  arithmetic("min", "a b", Math.min),
  arithmetic("max", "a b", Math.max),
  arithmetic("floor", "x", Math.floor),
  arithmetic("ceil", "x", Math.ceil),
  arithmetic("log", "x", Math.log),
  arithmetic("sqrt", "x", Math.sqrt),
  builtin("range", "start stop= step=", (found) => {
    const from = found.integer("start");
    const [start, stop] = found.has("stop") ? [from, found.integer("stop")] : [0, from];
    const step = found.has("step") ? found.integer("step") : 1;
    if (step === 0) return found.fail("step", "step must not be 0");
    const length = Math.max(0, Math.ceil((stop - start) / step));
    return found.unlessFailed(() => ({ kind: "range", start, step, length }));
  }),
  builtin("len", "items", (found) => {
    const value = found.value("items");
    if (isUnknown(value)) return UNKNOWN;
    if (isSequence(value)) return value.items.length;
    if (isObject(value) && value.kind === "range") return value.length;
    return found.fail("items", `expected a list or a range, found ${describe(value)}`);
  }),
  builtin("enumerate", "items", (found, tracing) => {
    const items = tracing.items(found.value("items"), found.spanOf("items"));
    if (!items) return UNKNOWN;
    return { kind: "list", items: items.map((item, i) => ({ kind: "tuple", items: [i, item] })) };
  }),
  builtin("getattr", "object name default=", (found, tracing) => {
    const object = found.value("object");
    const name = found.string("name");
    if (found.failed) return UNKNOWN;
    const value = tracing.field(object, name);
    if (value !== undefined) return value;
    if (found.has("default")) return found.value("default");
    const near = isRecord(object) ? didYouMean(name, Object.keys(object.fields)) : "";
    return found.fail(
      "name",
      `${describe(object)} has no field "${name}"${near}`,
      "a third argument is its default",
    );
  }),
  builtin("hasattr", "object name", (found, tracing) => {
    const object = found.value("object");
    const name = found.string("name");
    return found.unlessFailed(() => tracing.field(object, name) !== undefined);
  }),
  builtin("ModuleList", "modules", (found, tracing) => {
    const items = tracing.items(found.value("modules"), found.spanOf("modules"));
    if (!items) return UNKNOWN;
    const other = items.find((item) => !isModule(item) && !isUnknown(item));
    if (other !== undefined) return found.fail("modules", `expected modules, found ${describe(other)}`);
    return { kind: "list", items };
  }),
];

/** What every description can name without defining it. */
export const PREDEFINED: ReadonlyMap<string, Value> = new Map<string, Value>([
  ...[...OPERATIONS, ...STATIC, ...LAYERS].map((builtin) => [builtin.name, builtin] as const),
  ["pi", Math.PI],
]);
