/** Reading attributes (`config.x`, `self.y`, `module.forward`) and items (`list[i]`, `config["x"]`). */
import type { Context } from "./calls.ts";
import { didYouMean, type Span } from "./diagnostics.ts";
import { layerRule } from "./layers.ts";
import type { ExpressionOf } from "./syntax.ts";
import {
  describe,
  isModule,
  isRecord,
  isSequence,
  isTensor,
  isUnknown,
  type ModuleInstance,
  recordName,
  text,
  UNKNOWN,
  type Value,
} from "./values.ts";

export function readAttribute(object: Value, at: ExpressionOf<"attribute">, context: Context): Value {
  const { name, nameSpan } = at;
  if (isUnknown(object)) return UNKNOWN;
  const found = context.field(object, name);
  if (found !== undefined) return found;
  if (isRecord(object)) {
    const near = didYouMean(name, Object.keys(object.fields));
    const note = `where a field may be missing: getattr(config, "${name}", default)`;
    return context.fail(nameSpan, `${recordName(object)} has no field "${name}"${near}`, note);
  }
  if (isModule(object)) return readMethod(object, name, nameSpan, context);
  const note = isTensor(object) ? ["operations on tensors are functions: rope(x, ...), not x.rope(...)"] : [];
  return context.fail(nameSpan, `${describe(object)} has no attribute ${name}`, ...note);
}

/** A method of a module, bound to it. */
export function readMethod(module: ModuleInstance, name: string, span: Span, context: Context): Value {
  if (typeof module.type === "string") {
    const methods = layerRule(module.type).methods;
    if (methods.has(name)) return { kind: "layer_method", self: module, name };
    const near = didYouMean(name, [...methods.keys(), ...module.attributes.keys()]);
    return context.fail(span, `${module.type} has no attribute ${name}${near}`);
  }
  const definition = module.type.methods.get(name);
  if (definition) return { kind: "function", definition, self: module };
  if (module.incomplete) return UNKNOWN;
  const near = didYouMean(name, [...module.attributes.keys(), ...module.type.methods.keys()]);
  return context.fail(
    span,
    `${module.type.name} has no attribute ${name}${near}`,
    "attributes are set in __init__",
  );
}

export function readItem(
  object: Value,
  index: Value,
  at: ExpressionOf<"subscript">,
  context: Context,
): Value {
  if (isUnknown(object) || isUnknown(index)) return UNKNOWN;
  if (isRecord(object) && typeof index === "string") {
    const found = context.field(object, index);
    const near = didYouMean(index, Object.keys(object.fields));
    return found ?? context.fail(at.index.span, `${recordName(object)} has no field ${text(index)}${near}`);
  }
  if (isSequence(object) && typeof index === "number") {
    const item = Number.isInteger(index) ? object.items.at(index) : undefined;
    return item === undefined ? context.fail(at.index.span, `no item ${index} in ${describe(object)}`) : item;
  }
  return context.fail(
    at.span,
    `cannot take ${describe(index)} of ${describe(object)}`,
    "accepted: list[number]",
  );
}
