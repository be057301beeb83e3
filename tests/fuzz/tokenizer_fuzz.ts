/**
 * tiny-dense's tokenizer.json and chat templates, changed in ways that keep most of their structure: opened, and used
 * on texts. Nothing may take longer than its limit in time.
 */
import { readFileSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../../compiler/errors.ts";
import { ChatTemplate } from "../../runtime/chat.ts";
import { secondsFor } from "../../runtime/time_limit.ts";
import { Tokenizer } from "../../runtime/tokenizer.ts";
import { type Case, main } from "./fuzz.ts";
import { type Json, mutate } from "./mutate.ts";
import type { Random } from "./random.ts";

const MODEL = fileURLToPath(new URL("../../examples/models/tiny-dense", import.meta.url));
const ORIGINAL = readFileSync(`${MODEL}/tokenizer.json`, "utf8");
const TEMPLATE: string = JSON.parse(readFileSync(`${MODEL}/tokenizer_config.json`, "utf8")).chat_template;

/** On top of a limit: for reading the file, for operations that cannot be stopped halfway, and for a busy machine. */
const SLACK_SECONDS = 6;

const EXPRESSIONS = [
  String.raw`\p{L}+|\p{N}|\s+(?!\S)|.`,
  String.raw`(?i:'s|'t)|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*`,
  "(a+)+$",
  String.raw`(\w|\s)*[^\w]{9}`,
  "(?<=a)b|(?<!b)c",
  "[",
  "",
  "(?:)",
  "x{1,65535}",
  String.raw`\p{Nothing}`,
  "[[:alpha:]&&[^a]]",
];
const PATTERNS: readonly Json[] = [
  ...EXPRESSIONS.map((Regex) => ({ Regex })),
  { String: " " },
  { String: "" },
  { String: "▁" },
  {},
  null,
];

/** Kinds of rules, with fields that random values make sound ones of often enough. */
const RULES: Readonly<Record<string, readonly string[]>> = {
  normalizer: [
    "NFC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Prepend",
    "Replace",
    "BertNormalizer",
    "Precompiled",
  ],
  pre_tokenizer: [
    "ByteLevel",
    "Whitespace",
    "Metaspace",
    "Split",
    "Punctuation",
    "Digits",
    "BertPreTokenizer",
    "Replace",
  ],
  post_processor: ["TemplateProcessing", "ByteLevel", "BertProcessing", "RobertaProcessing"],
  decoder: [
    "ByteLevel",
    "WordPiece",
    "Metaspace",
    "BPEDecoder",
    "CTC",
    "Replace",
    "Fuse",
    "Strip",
    "ByteFallback",
  ],
};
const SEQUENCES: Readonly<Record<string, string>> = {
  normalizer: "normalizers",
  pre_tokenizer: "pretokenizers",
  post_processor: "processors",
  decoder: "decoders",
};

const TEXTS = [
  "",
  "The compiler reads a file.",
  " two  spaces\n\n\tand more ",
  "naïve 12 ≠ 3 δx 👩‍🔬 한국어",
  "<|im_start|>user\nHi<|im_end|>",
  "\ud800 \u0000\ufffd",
  "a".repeat(40) + "b",
  "ab".repeat(2000),
  " ".repeat(3000),
];

/** Parts of templates that stand alone, parts around others, and parts that break them. */
const STATEMENTS = [
  "text\n",
  "{{ m.content | trim }}",
  "{{ messages[0]['role'] }}",
  "{{ bos_token ~ eos_token }}",
  "{{ raise_exception('no') }}",
  "{% set ns = namespace(x='x') %}",
  "{% set ns.x = ns.x ~ ns.x %}",
  "{{ ns.x }}",
  "{{ f(1) }}",
  "{{ range(999999) | length }}",
  "{{ messages | tojson }}",
  "{{ 1 // 0 }}",
  "{{ missing.field }}",
];
const BLOCKS: readonly (readonly [string, string])[] = [
  ["{% for m in messages %}", "{% endfor %}"],
  ["{% for i in range(300) %}", "{% endfor %}"],
  ["{% if m.role == 'user' %}", "{% endif %}"],
  ["{%- if add_generation_prompt -%}", "{%- else -%}no{%- endif -%}"],
  ["{% macro f(x) %}", "{{ f(x) }}{% endmacro %}"],
];
const FAULTS = ["", "{{", "%}", "{#", "{% endfor %}", "{% else %}", "'", "|", "("];

function rule(random: Random, part: string, depth = 0): Json {
  if (depth < 3 && random.chance(1 / 3)) {
    const inner = Array.from({ length: random.below(4) }, () => rule(random, part, depth + 1));
    return { type: "Sequence", [SEQUENCES[part] ?? part]: inner };
  }
  return {
    type: random.pick(RULES[part] ?? []),
    pattern: random.pick(PATTERNS),
    content: random.pick(["", " ", "xx", "▁"]),
    behavior: random.pick(["Isolated", "Removed", "MergedWithPrevious", "Contiguous", "Bogus"]),
    invert: random.chance(0.5),
    replacement: random.pick(["▁", "", "__"]),
    add_prefix_space: random.chance(0.5),
    prepend: "▁",
    start: random.below(3),
    stop: random.below(3),
    prefix: "##",
    cleanup: true,
    individual_digits: random.chance(0.5),
    single: [{ SpecialToken: { id: "<|im_start|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    sep: ["<|im_end|>", 2],
    cls: ["<|im_start|>", 1],
  };
}

/** Changes one to three parts of a tokenizer.json; what is told of it shows the rules whole. */
function changed(random: Random, note: (change: string) => void): string {
  const file: { [key: string]: Json } = JSON.parse(ORIGINAL);
  for (let changes = 1 + random.below(3); changes > 0; changes--) {
    const part = random.pick(Object.keys(RULES));
    const kind = random.below(6);
    if (kind < 3) {
      const made = rule(random, part);
      file[part] = made;
      note(`${part} ${JSON.stringify(made)}`);
    } else if (kind < 5) {
      const target = random.pick([file, file["added_tokens"] ?? null, file[part] ?? null]);
      note(mutate(target, random, Object.values(RULES).flat()));
    } else {
      const type = random.pick(["BPE", "WordPiece", "Unigram", null]);
      Object.assign(file["model"] ?? {}, { type });
      note(`model.type ${type}`);
    }
  }
  return JSON.stringify(file);
}

function block(random: Random, depth: number): string {
  const parts = Array.from({ length: 1 + random.below(4) }, () => {
    if (depth > 3 || random.chance(2 / 3)) return random.pick(STATEMENTS);
    const [open, close] = random.pick(BLOCKS);
    return open + block(random, depth + 1) + close;
  });
  return parts.join("");
}

function template(random: Random): string {
  const text = random.chance(1 / 4) ? TEMPLATE : block(random, 0);
  if (random.chance(2 / 3)) return text;
  const at = random.below(text.length);
  return text.slice(0, at) + random.pick(FAULTS) + text.slice(at + random.below(3));
}

/** What an operation returns, undefined for a typed error. Throws for any other error, and when it takes too long. */
function attempt<T>(seconds: number, operation: () => T): T | undefined {
  const began = performance.now();
  let result: T | undefined;
  try {
    result = operation();
  } catch (error) {
    if (!(error instanceof HcinferError)) throw error;
  }
  const took = (performance.now() - began) / 1000;
  if (took > seconds + SLACK_SECONDS) {
    throw new Error(`took ${took.toFixed(1)} s, at most ${seconds} are allowed`);
  }
  return result;
}

function tryTokenizer(json: string, random: Random): void {
  const bytes = new TextEncoder().encode(json);
  const files = { path: "fuzz", file: (name: string) => name === "tokenizer.json" ? bytes : undefined };
  const tokenizer = attempt(secondsFor(bytes.length), () => Tokenizer.open(files, 4096));
  if (tokenizer === undefined) return;
  const text = random.pick(TEXTS);
  const ids = attempt(secondsFor(text.length), () => tokenizer.encode(text)) ?? Int32Array.of(5, 300, 4095);
  if (ids.some((id) => id < 0 || id >= tokenizer.size)) throw new Error(`encode gave ${ids}`);
  const skipSpecialTokens = random.chance(0.5);
  const decoded = attempt(secondsFor(ids.length), () => tokenizer.decode(ids, { skipSpecialTokens })) ?? "";
  if (typeof decoded !== "string") throw new Error(`decode gave ${decoded}`);
}

function tryTemplate(text: string): void {
  const chat = attempt(secondsFor(text.length), () => new ChatTemplate(text, "fuzz", { bos_token: "<s>" }));
  const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];
  const rendered = chat && attempt(secondsFor(11), () => chat.render(messages));
  if (rendered !== undefined && typeof rendered !== "string") throw new Error(`render gave ${rendered}`);
}

function load(): Case {
  return (random, note) => {
    if (random.chance(2 / 3)) return tryTokenizer(changed(random, note), random);
    const text = template(random);
    note(text);
    return tryTemplate(text);
  };
}

if (import.meta.main) await main(import.meta.filename ?? "", { prepare: () => Promise.resolve(), load });
