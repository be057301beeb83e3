/**
 * Changes of JSON documents that keep most of their structure, so that they come past the first checks: one value made
 * extreme, elements dropped, doubled or exchanged, and one number or name replaced wherever it stands.
 */
import type { Random } from "./random.ts";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const NUMBERS = [0, -1, 1, 2, 3, 15, 16, 17, 31, 32, 64, 127, 128, 255, 256, 4095, 65_536, 1e6, 2 ** 31 - 1]
  .concat([
    2 ** 31,
    2 ** 32,
    2 ** 32 + 16,
    2 ** 48,
    2 ** 53 - 1,
    2 ** 53,
    -(2 ** 31),
    -(2 ** 53),
    1e300,
    0.5,
    1e-9,
  ]);
const STRINGS = [
  "",
  "x",
  "__proto__",
  "constructor",
  "../x",
  "T",
  "tokens",
  "positions",
  "\u0000",
  "\u202e",
  "a".repeat(5000),
];

/** Changes `document` in place; returns what was done, in words. `words` are strings that mean something somewhere. */
export function mutate(document: Json, random: Random, words: readonly string[]): string {
  const path: string[] = [];
  let parent: Json = document;
  for (;;) {
    if (parent === null || typeof parent !== "object") return "nothing";
    const keys = Object.keys(parent);
    if (keys.length === 0) return "nothing";
    const key = random.pick(keys);
    path.push(key);
    const child: Json = Array.isArray(parent) ? parent[Number(key)] ?? null : parent[key] ?? null;
    const isLeaf = child === null || typeof child !== "object";
    if (isLeaf || random.chance(0.12)) {
      return `${path.join(".")} ${change(parent, key, child, random, words)}`;
    }
    parent = child;
  }
}

function change(
  parent: Json[] | { [key: string]: Json },
  key: string,
  value: Json,
  random: Random,
  words: readonly string[],
): string {
  const put = (changed: Json): string => {
    if (Array.isArray(parent)) parent[Number(key)] = changed;
    else parent[key] = changed;
    return `${short(value)} -> ${short(changed)}`;
  };
  if (Array.isArray(parent) && random.chance(0.35)) return changeList(parent, Number(key), random);
  if (!Array.isArray(parent) && random.chance(0.12)) return changeObject(parent, key, random);
  if (typeof value === "number") return put(otherNumber(value, random));
  if (typeof value === "string") return put(otherString(value, random, words));
  if (typeof value === "boolean") return put(!value);
  if (Array.isArray(value) && value.length > 0) return changeList(value, random.below(value.length), random);
  return put(random.pick<Json>([null, 0, "", [], {}, true]));
}

function changeList(list: Json[], at: number, random: Random): string {
  const other = random.below(list.length);
  const [a = null, b = null] = [list[at], list[other]];
  if (random.chance(0.03)) {
    const copies = 10 ** random.pick([3, 4, 5]);
    list.splice(at, 0, ...Array<Json>(copies).fill(a));
    return `element ${at} ${copies} times more`;
  }
  switch (random.below(4)) {
    case 0:
      list.splice(at, 1);
      return `dropped element ${at}`;
    case 1:
      list.splice(other, 0, structuredClone(a));
      return `doubled element ${at} at ${other}`;
    case 2:
      [list[at], list[other]] = [b, a];
      return `exchanged elements ${at} and ${other}`;
    default:
      list[at] = structuredClone(b);
      return `element ${other} over ${at}`;
  }
}

function changeObject(object: { [key: string]: Json }, key: string, random: Random): string {
  const other = random.pick(Object.keys(object));
  const [a = null, b = null] = [object[key], object[other]];
  switch (random.below(3)) {
    case 0:
      delete object[key];
      return "deleted";
    case 1:
      object[key] = b;
      object[other] = a;
      return `exchanged with ${other}`;
    default:
      object[random.pick(STRINGS)] = structuredClone(a);
      return "copied under another key";
  }
}

function otherNumber(value: number, random: Random): number {
  const near = [
    value + 1,
    value - 1,
    value * 2,
    Math.floor(value / 2),
    value + 16,
    value - 16,
    value * 16,
    -value,
  ];
  return random.chance(0.5) ? random.pick(near) : random.pick(NUMBERS);
}

function otherString(value: string, random: Random, words: readonly string[]): string {
  if (random.chance(0.7)) return random.pick(words);
  return random.chance(0.5) ? random.pick(STRINGS) : value.replaceAll(/\d+/g, () => `${random.below(5)}`);
}

/** Replaces one number or string of the document wherever it stands: sizes that agree still do. */
export function mutateEverywhere(document: Json, random: Random, words: readonly string[]): string {
  const leaves = [...leavesOf(document)];
  if (leaves.length === 0) return "nothing";
  const from = random.pick(leaves);
  const to = typeof from === "number" ? otherNumber(from, random) : otherString(from, random, words);
  const replaced = (value: Json): Json => {
    if (value === from) return to;
    if (Array.isArray(value)) value.forEach((item, i) => value[i] = replaced(item));
    else if (value !== null && typeof value === "object") {
      for (const [key, item] of Object.entries(value)) value[key] = replaced(item);
    }
    return value;
  };
  replaced(document);
  return `everywhere ${short(from)} -> ${short(to)}`;
}

function* leavesOf(value: Json): Generator<number | string> {
  if (typeof value === "number" || typeof value === "string") yield value;
  else if (value !== null && typeof value === "object") {
    for (const item of Object.values(value)) yield* leavesOf(item);
  }
}

/** Every string of a document, also its keys. */
export function wordsOf(value: Json, words = new Set<string>()): Set<string> {
  if (typeof value === "string") words.add(value);
  else if (value !== null && typeof value === "object") {
    for (const [key, item] of Object.entries(value)) {
      if (!Array.isArray(value)) words.add(key);
      wordsOf(item, words);
    }
  }
  return words;
}

function short(value: Json): string {
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}
