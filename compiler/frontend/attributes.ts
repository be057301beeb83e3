/** Reading attributes (`config.x`, `self.y`, `module.forward`) and items (`list[i]`, `config["x"]`). */
import { didYouMean, type Span } from "./diagnostics.ts";
import type { Tracing } from "./tracing.ts";
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

/** `object.name`, named at `span`. */
export function readAttribute(object: Value, name: string, span: Span, tracing: Tracing): Value {
  if (isUnknown(object)) return UNKNOWN;
  const found = tracing.field(object, name);
  if (found !== undefined) return found;
  if (isRecord(object)) {
    const near = didYouMean(name, Object.keys(object.fields));
    const note = `where a field may be missing: getattr(config, "${name}", default)`;
    return tracing.fail(span, `${recordName(object)} has no field "${name}"${near}`, note);
  }
  if (isModule(object)) return readMethod(object, name, span, tracing);
  const note = isTensor(object) ? ["operations on tensors are functions: rope(x, ...), not x.rope(...)"] : [];
  return tracing.fail(span, `${describe(object)} has no attribute ${name}`, ...note);
}

/** A method of a module, bound to it. */
export function readMethod(module: ModuleInstance, name: string, span: Span, tracing: Tracing): Value {
  const { type, attributes } = module;
  if (type.kind === "class") {
    const definition = type.methods.get(name);
    if (definition) return { kind: "function", definition, self: module };
    if (module.incomplete) return UNKNOWN;
  } else {
    const method = type.methods.get(name);
    if (method) return method(module);
  }
  const near = didYouMean(name, [...attributes.keys(), ...type.methods.keys()]);
  const notes = type.kind === "class" ? ["attributes are set in __init__"] : [];
  return tracing.fail(span, `${type.name} has no attribute ${name}${near}`, ...notes);
}

/** `object[index]`; `span` is of the whole, `indexSpan` of what stands in the brackets. */
export function readItem(
  object: Value,
  index: Value,
  span: Span,
  indexSpan: Span,
  tracing: Tracing,
): Value {
  if (isUnknown(object) || isUnknown(index)) return UNKNOWN;
  if (isRecord(object) && typeof index === "string") {
    const found = tracing.field(object, index);
    const near = didYouMean(index, Object.keys(object.fields));
    return found ?? tracing.fail(indexSpan, `${recordName(object)} has no field ${text(index)}${near}`);
  }
  if (isSequence(object) && typeof index === "number") {
    const item = Number.isInteger(index) ? object.items.at(index) : undefined;
    return item === undefined ? tracing.fail(indexSpan, `no item ${index} in ${describe(object)}`) : item;
  }
  return tracing.fail(
    span,
    `cannot take ${describe(index)} of ${describe(object)}`,
    "accepted: list[number]",
  );
}
