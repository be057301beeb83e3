/**
 * JSON that somebody else wrote. A parsed value takes some fifty bytes and a fault of a schema some hundreds, so a few
 * megabytes of brackets would take gigabytes: `parseJson` counts before it parses, and `listOf` and `tableOf` stop at
 * the first element that does not fit, where zod's own arrays and records collect the faults of all.
 */
import { z } from "zod";

export interface JsonLimits {
  /** Most values: numbers, strings, lists, objects and so on, and keys of objects once more. */
  readonly values: number;
  readonly depth: number;
}

/** The plan of the largest dense model known (126 layers) has 120 000 values 8 deep. */
export const JSON_LIMITS: JsonLimits = { values: 4_000_000, depth: 64 };

/** Parses UTF-8 JSON. Throws Error naming the limit or the fault of the text. */
export function parseJson(bytes: Uint8Array, limits = JSON_LIMITS): unknown {
  checkLimits(bytes, limits);
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
}

const [QUOTE, BACKSLASH, COMMA, COLON] = [0x22, 0x5c, 0x2c, 0x3a];
const [OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT] = [0x5b, 0x5d, 0x7b, 0x7d];

/** Counts what separates values, outside strings; whether the text is JSON at all is the parser's business. */
function checkLimits(bytes: Uint8Array, { values, depth }: JsonLimits): void {
  let count = 1;
  let open = 0;
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === QUOTE) {
      at = endOfString(bytes, at);
    } else if (byte === COMMA || byte === COLON) {
      count++;
    } else if (byte === OPEN_LIST || byte === OPEN_OBJECT) {
      count++;
      if (++open > depth) throw new Error(`it is nested more than ${depth} deep`);
    } else if (byte === CLOSE_LIST || byte === CLOSE_OBJECT) {
      open--;
    }
    if (count > values) throw new Error(`it has more than ${values} values`);
  }
}

/** Index of the quote that ends the string which begins at `start`, or the text's end. */
function endOfString(bytes: Uint8Array, start: number): number {
  for (let at = start + 1; at < bytes.length; at++) {
    if (bytes[at] === BACKSLASH) at++;
    else if (bytes[at] === QUOTE) return at;
  }
  return bytes.length;
}

/** A list of `element`. */
export function listOf<S extends z.ZodType>(element: S) {
  return z.array(z.unknown()).transform((items, context): z.output<S>[] => {
    const list: z.output<S>[] = [];
    for (const [index, item] of items.entries()) {
      const parsed = element.safeParse(item);
      if (!parsed.success) return firstFault(parsed.error, index, context);
      list.push(parsed.data);
    }
    return list;
  });
}

/** An object of any keys whose values are `value`. */
export function tableOf<S extends z.ZodType>(value: S) {
  return z.record(z.string(), z.unknown()).transform((items, context): Record<string, z.output<S>> => {
    const entries: [string, z.output<S>][] = [];
    for (const [key, item] of Object.entries(items)) {
      const parsed = value.safeParse(item);
      if (!parsed.success) return firstFault(parsed.error, key, context);
      entries.push([key, parsed.data]);
    }
    return Object.fromEntries(entries);
  });
}

function firstFault(error: z.ZodError, key: PropertyKey, context: z.RefinementCtx): never {
  const [fault] = error.issues;
  context.addIssue({ code: "custom", message: fault?.message ?? "", path: [key, ...fault?.path ?? []] });
  return z.NEVER;
}

const MOST_FAULTS = 5;
const MOST_FAULT_TEXT = 300;

/** The first faults in words, one a line; however many there are and however long they say it. */
export function faultsText(error: z.ZodError): string {
  return error.issues.slice(0, MOST_FAULTS).map(({ path, message }) => {
    const place = path.map(String).join(".");
    const text = `${place === "" ? "" : `${place}: `}${message}`;
    return text.length > MOST_FAULT_TEXT ? `${text.slice(0, MOST_FAULT_TEXT)}...` : text;
  }).join("\n");
}
