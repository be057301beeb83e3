/**
 * What a model description can use without defining it: the ops of the graph and a few static functions of Python.
 * Layers, which hold weights, are in layers.ts. To add an op to the language, add it to OPERATIONS.
 */
import type { Op, Params } from "../ir/ops.ts";
import { known } from "./attributes.ts";
import { type Arguments, callable } from "./calls.ts";
import { didYouMean } from "./diagnostics.ts";
import { LAYERS } from "./layers.ts";
import { type Callable, describe, is, type Value } from "./values.ts";

/** An op of the graph: tensors first, then static parameters. */
function operation<P extends Op>(
  op: P,
  tensors: string,
  others: string,
  params: (found: Arguments) => Params[P],
): Callable {
  return callable(op, `${tensors} ${others}`, (found) => {
    const inputs = tensors.split(" ").map((name) => found.tensor(name));
    return found.tracing.node(op, inputs, params(found), found.span);
  });
}

const OPERATIONS: readonly Callable[] = [
  operation("silu", "x", "", () => ({})),
  operation("rope", "x positions", "frequencies scale=", (found) => {
    const scale = found.has("scale") ? found.positive("scale") : 1;
    return { table: found.tracing.builder.ropeTable(found.numbers("frequencies"), scale) };
  }),
  operation("split_heads", "x", "head_dim", (found) => ({ headDim: found.size("head_dim") })),
  operation("merge_heads", "x", "", () => ({})),
  operation("attention", "q k v positions", "scale=", (found) => {
    const usual = 1 / Math.sqrt(Number(found.tensor("q").value.type.shape.at(-1)));
    const scale = found.value("scale") === null ? usual : found.positive("scale");
    return { layer: found.tracing.nextAttention(), scale };
  }),
];

/** A function of numbers. */
function arithmetic(name: string, parameters: string, apply: (...numbers: number[]) => number): Callable {
  return callable(name, parameters, (found) => {
    const numbers = parameters.split(" ").map((n) => found.number(n));
    const result = apply(...numbers);
    if (Number.isFinite(result)) return result;
    return found.tracing.fail(found.span, `${name}(${numbers.join(", ")}) is no finite number`);
  });
}

const STATIC: readonly Callable[] = [
  arithmetic("int", "x", Math.trunc),
  arithmetic("float", "x", (x) => x),
  arithmetic("min", "a b", Math.min),
  arithmetic("max", "a b", Math.max),
  arithmetic("floor", "x", Math.floor),
  arithmetic("ceil", "x", Math.ceil),
  arithmetic("log", "x", Math.log),
  arithmetic("sqrt", "x", Math.sqrt),
  callable("range", "start stop= step=", (found) => {
    const from = found.integer("start");
    const [start, stop] = found.has("stop") ? [from, found.integer("stop")] : [0, from];
    const step = found.has("step") ? found.integer("step") : 1;
    if (step === 0) found.fail("step", "step must not be 0");
    const length = Math.max(0, Math.ceil((stop - start) / step));
    found.tracing.length(length, found.span, `a range of ${length}`);
    return Array.from({ length }, (_, i) => start + i * step);
  }),
  callable("len", "items", (found) => found.items("items").length),
  callable("enumerate", "items", (found) => found.items("items").map((item, i) => [i, item])),
  callable("getattr", "object name default=", (found) => {
    const [object, name] = [found.value("object"), found.string("name")];
    const value = found.tracing.field(object, name);
    if (value !== undefined) return known(value);
    if (found.has("default")) return found.value("default");
    const near = is("record", object) ? didYouMean(name, Object.keys(object.fields)) : "";
    const message = `${describe(object)} has no field "${name}"${near}`;
    return found.fail("name", message, "a third argument is its default");
  }),
  callable("hasattr", "object name", (found) => {
    return found.tracing.field(found.value("object"), found.string("name")) !== undefined;
  }),
  callable("ModuleList", "modules", (found) => {
    const items = found.items("modules");
    const other = items.find((item) => !is("module", item));
    if (other !== undefined) found.fail("modules", `expected modules, found ${describe(other)}`);
    return items;
  }),
];

/** What every description can name without defining it. */
export const PREDEFINED: ReadonlyMap<string, Value> = new Map<string, Value>([
  ...[...OPERATIONS, ...STATIC, ...LAYERS].map((known) => [known.name, known] as const),
  ["pi", Math.PI],
]);
