/**
 * What a model description can use without defining it: the ops of the graph and a few static functions of Python.
 * Layers, which hold weights, are in layers.ts. To add an op to the language, add it to OPERATIONS.
 */
import type { Op, Params } from "../ir/ops.ts";
import type { Arguments, Context, Signature } from "./calls.ts";
import { signature } from "./calls.ts";
import { didYouMean } from "./diagnostics.ts";
import {
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

export interface Builtin {
  readonly signature: Signature;
  readonly call: (found: Arguments, context: Context) => Value;
}

/** An op of the graph: tensors first, then static parameters. */
function operation<P extends Op>(
  op: P,
  tensors: string,
  others: string,
  params: (found: Arguments, inputs: readonly Tensor[]) => Params[P],
): Builtin {
  const names = tensors.split(" ");
  return {
    signature: signature(op, `${tensors} ${others}`),
    call(found, context) {
      const inputs = names.map((n) => found.tensor(n)).filter((t) => t !== undefined);
      const made = params(found, inputs);
      return found.unlessFailed(() => context.node(op, inputs, made, found.span));
    },
  };
}

const OPERATIONS: readonly Builtin[] = [
  operation("silu", "x", "", () => ({})),
  operation("rope", "x positions", "frequencies scale=", (found) => {
    const frequencies = found.numbers("frequencies");
    const scale = found.has("scale") ? found.positive("scale") : 1;
    return { table: found.failed ? "" : found.context.ropeTable(frequencies, scale) };
  }),
  operation("split_heads", "x", "head_dim", (found) => ({ headDim: found.size("head_dim") })),
  operation("merge_heads", "x", "", () => ({})),
  operation("attention", "q k v positions", "scale=", (found, [q]) => {
    const width = q?.value.type.shape.at(-1);
    const usual = typeof width === "number" ? 1 / Math.sqrt(width) : 1;
    const scale = found.value("scale") === null ? usual : found.positive("scale");
    return { layer: found.failed ? 0 : found.context.nextAttention(), scale };
  }),
];

/** A function of numbers. */
function arithmetic(name: string, parameters: string, apply: (...numbers: number[]) => number): Builtin {
  const names = parameters.split(" ");
  return {
    signature: signature(name, parameters),
    call(found) {
      const numbers = names.map((n) => found.number(n));
      return found.unlessFailed(() => apply(...numbers));
    },
  };
}

const STATIC: readonly Builtin[] = [
  arithmetic("int", "x", Math.trunc),
  arithmetic("float", "x", (x) => x),
  arithmetic("min", "a b", Math.min),
  arithmetic("max", "a b", Math.max),
  {
    signature: signature("range", "start stop= step="),
    call(found) {
      const from = found.integer("start");
      const [start, stop] = found.has("stop") ? [from, found.integer("stop")] : [0, from];
      const step = found.has("step") ? found.integer("step") : 1;
      if (step === 0) return found.fail("step", "step must not be 0");
      const length = Math.max(0, Math.ceil((stop - start) / step));
      return found.unlessFailed(() => ({ kind: "range", start, step, length }));
    },
  },
  {
    signature: signature("len", "items"),
    call(found) {
      const value = found.value("items");
      if (isUnknown(value)) return UNKNOWN;
      if (isSequence(value)) return value.items.length;
      if (isObject(value) && value.kind === "range") return value.length;
      return found.fail("items", `expected a list or a range, found ${describe(value)}`);
    },
  },
  {
    signature: signature("enumerate", "items"),
    call(found, context) {
      const items = context.items(found.value("items"), found.spanOf("items"));
      if (!items) return UNKNOWN;
      return { kind: "list", items: items.map((item, i) => ({ kind: "tuple", items: [i, item] })) };
    },
  },
  {
    signature: signature("getattr", "object name default="),
    call(found, context) {
      const object = found.value("object");
      const name = found.string("name");
      if (found.failed) return UNKNOWN;
      const value = context.field(object, name);
      if (value !== undefined) return value;
      if (found.has("default")) return found.value("default");
      const near = isRecord(object) ? didYouMean(name, Object.keys(object.fields)) : "";
      return found.fail(
        "name",
        `${describe(object)} has no field "${name}"${near}`,
        "a third argument is its default",
      );
    },
  },
  {
    signature: signature("hasattr", "object name"),
    call(found, context) {
      const object = found.value("object");
      const name = found.string("name");
      return found.unlessFailed(() => context.field(object, name) !== undefined);
    },
  },
  {
    signature: signature("ModuleList", "modules"),
    call(found, context) {
      const items = context.items(found.value("modules"), found.spanOf("modules"));
      if (!items) return UNKNOWN;
      const other = items.find((item) => !isModule(item) && !isUnknown(item));
      if (other !== undefined) return found.fail("modules", `expected modules, found ${describe(other)}`);
      return { kind: "list", items };
    },
  },
];

export const BUILTINS: ReadonlyMap<string, Builtin> = new Map(
  [...OPERATIONS, ...STATIC].map((builtin) => [builtin.signature.name, builtin]),
);
