/** Reading attributes (`config.x`, `self.y`, `module.forward`) and items (`list[i]`, `config["x"]`). */
import { didYouMean, type Span } from "./diagnostics.ts";
import { Reported, type Tracing } from "./tracing.ts";
import {
  describe,
  is,
  isList,
  type ModuleInstance,
  recordName,
  text,
  UNKNOWN,
  type Value,
} from "./values.ts";

/** What a name or attribute holds; one whose assignment was reported is not reported again. */
export function known(value: Value): Value {
  if (value === UNKNOWN) throw new Reported();
  return value;
}

/** `object.name`, named at `span`. */
export function readAttribute(object: Value, name: string, span: Span, tracing: Tracing): Value {
  const found = tracing.field(object, name);
  if (found !== undefined) return known(found);
  if (is("record", object)) {
    const near = didYouMean(name, Object.keys(object.fields));
    const note = `where a field may be missing: getattr(config, "${name}", default)`;
    return tracing.fail(span, `${recordName(object)} has no field "${name}"${near}`, note);
  }
  if (is("module", object)) return readMethod(object, name, span, tracing);
  const ops = is("tensor", object)
    ? ["operations on tensors are functions: rope(x, ...), not x.rope(...)"]
    : [];
  return tracing.fail(span, `${describe(object)} has no attribute ${name}`, ...ops);
}

/** A method of a module, bound to it. */
export function readMethod(module: ModuleInstance, name: string, span: Span, tracing: Tracing): Value {
  const { type, attributes, incomplete } = module;
  const method = type.methods.get(name);
  if (method) return method(module);
  if (incomplete) throw new Reported();
  const near = didYouMean(name, [...attributes.keys(), ...type.methods.keys()]);
  return tracing.fail(span, `${type.name} has no attribute ${name}${near}`, "attributes are set in __init__");
}

/** `object[index]`; `span` is of the whole, `indexSpan` of what stands in the brackets. */
export function readItem(object: Value, index: Value, span: Span, indexSpan: Span, tracing: Tracing): Value {
  if (is("record", object) && typeof index === "string") {
    const found = tracing.field(object, index);
    if (found !== undefined) return found;
    const near = didYouMean(index, Object.keys(object.fields));
    return tracing.fail(indexSpan, `${recordName(object)} has no field ${text(index)}${near}`);
  }
  if (isList(object) && typeof index === "number") {
    const item = Number.isInteger(index) ? object.at(index) : undefined;
    return item === undefined ? tracing.fail(indexSpan, `no item ${index} in ${describe(object)}`) : item;
  }
  return tracing.fail(
    span,
    `cannot take ${describe(index)} of ${describe(object)}`,
    "accepted: list[number]",
  );
}
