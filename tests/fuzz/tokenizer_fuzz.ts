/**
 * Changes tiny-dense's tokenizer.json and chat templates at random, in ways that keep most of their structure, and uses
 * what comes out. Whatever is changed, the result is tokens, text or an HcinferError, within its limit in time.
 *
 *   deno run -A tests/fuzz/tokenizer_fuzz.ts [seconds, default 20] [seed, default 1]
 *
 * The same seed makes the same cases, in the same order. Ends with 1 at the first case that fails, and shows it.
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../../compiler/errors.ts";
import { ChatTemplate } from "../../runtime/chat.ts";
import { secondsFor } from "../../runtime/time_limit.ts";
import { Tokenizer } from "../../runtime/tokenizer.ts";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const MODEL = fileURLToPath(new URL("../../examples/models/tiny-dense", import.meta.url));
const ORIGINAL = readFileSync(`${MODEL}/tokenizer.json`, "utf8");
const CONFIG = readFileSync(`${MODEL}/tokenizer_config.json`);
const TEMPLATE: string = JSON.parse(CONFIG.toString()).chat_template;

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
  "{{ range(9999999) | length }}",
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

/** Mulberry32 (Tommy Ettinger): 32 bits of state are enough to choose cases. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

class Fuzzer {
  readonly #random: () => number;

  constructor(seed: number) {
    this.#random = generator(seed);
  }

  below(n: number): number {
    return Math.floor(this.#random() * n);
  }

  one<T>(of: readonly T[]): T {
    return of[this.below(of.length)]!;
  }

  #value(): Json {
    const odd: readonly Json[] = [null, true, false, 0, -1, 1.5, 2 ** 31, 1e300, "", "a", "▁", "Ġ", [], {}, [
      [],
    ], ["a", 0]];
    return this.one([...odd, ...PATTERNS]);
  }

  #rule(part: string, depth = 0): Json {
    if (depth < 3 && this.below(3) === 0) {
      const inner = Array.from({ length: this.below(4) }, () => this.#rule(part, depth + 1));
      return { type: "Sequence", [SEQUENCES[part]!]: inner };
    }
    return {
      type: this.one(RULES[part]!),
      pattern: this.one(PATTERNS),
      content: this.one(["", " ", "xx", "▁"]),
      behavior: this.one(["Isolated", "Removed", "MergedWithPrevious", "Contiguous", "Bogus"]),
      invert: this.below(2) === 0,
      replacement: this.one(["▁", "", "__"]),
      add_prefix_space: this.below(2) === 0,
      prepend: "▁",
      start: this.below(3),
      stop: this.below(3),
      prefix: "##",
      cleanup: true,
      individual_digits: this.below(2) === 0,
      single: [{ SpecialToken: { id: "<|im_start|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      sep: ["<|im_end|>", 2],
      cls: ["<|im_start|>", 1],
    };
  }

  /** Changes one value below `root`, at a random depth. */
  #disturb(root: Json): void {
    let at = root;
    for (;;) {
      if (typeof at !== "object" || at === null) return;
      const parent: Json[] | { [key: string]: Json } = at;
      const keys = Object.keys(parent);
      if (keys.length === 0) return;
      const key = this.one(keys);
      const child = Array.isArray(parent) ? parent[Number(key)]! : parent[key]!;
      if (typeof child === "object" && child !== null && this.below(4) > 0) {
        at = child;
        continue;
      }
      const value = this.below(3) === 0 ? undefined : this.#value();
      if (Array.isArray(parent)) parent.splice(Number(key), 1, ...(value === undefined ? [] : [value]));
      else if (value === undefined) delete parent[key];
      else parent[key] = value;
      return;
    }
  }

  tokenizer(): string {
    const file: { [key: string]: Json } = JSON.parse(ORIGINAL);
    for (let changes = 1 + this.below(3); changes > 0; changes--) {
      const part = this.one(Object.keys(RULES));
      const kind = this.below(6);
      if (kind < 3) file[part] = this.#rule(part);
      else if (kind === 3) this.#disturb(file);
      else if (kind === 4) this.#disturb(this.one([file["added_tokens"] ?? null, file[part] ?? null]));
      else Object.assign(file["model"] ?? {}, { type: this.one(["BPE", "WordPiece", "Unigram", null]) });
    }
    const text = JSON.stringify(file);
    if (this.below(20) > 0) return text;
    const at = this.below(text.length);
    return text.slice(0, at) + this.one(["", "\u0000", '"', "}", "[[[["]) + text.slice(at + this.below(3));
  }

  template(): string {
    const text = this.below(4) === 0 ? TEMPLATE : this.#block(0);
    if (this.below(3) > 0) return text;
    const at = this.below(text.length);
    return text.slice(0, at) + this.one(FAULTS) + text.slice(at + this.below(3));
  }

  #block(depth: number): string {
    const parts = Array.from({ length: 1 + this.below(4) }, () => {
      if (depth > 3 || this.below(3) > 0) return this.one(STATEMENTS);
      const [open, close] = this.one(BLOCKS);
      return open + this.#block(depth + 1) + close;
    });
    return parts.join("");
  }
}

type Outcome = "used" | "refused";

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

function tryTokenizer(json: string, fuzzer: Fuzzer): Outcome {
  const bytes = new TextEncoder().encode(json);
  const files = {
    path: "fuzz",
    file: (name: string) =>
      name === "tokenizer.json" ? bytes : name === "tokenizer_config.json" ? CONFIG : undefined,
  };
  const tokenizer = attempt(secondsFor(0), () => Tokenizer.open(files, 4096));
  if (tokenizer === undefined) return "refused";
  const text = fuzzer.one(TEXTS);
  const ids = attempt(secondsFor(text.length), () => tokenizer.encode(text)) ?? Int32Array.of(5, 300, 4095);
  if (ids.some((id) => id < 0 || id >= tokenizer.size)) throw new Error(`encode gave ${ids}`);
  const skipSpecialTokens = fuzzer.below(2) === 0;
  const decoded = attempt(secondsFor(ids.length), () => tokenizer.decode(ids, { skipSpecialTokens })) ?? "";
  if (typeof decoded !== "string") throw new Error(`decode gave ${decoded}`);
  return "used";
}

function tryTemplate(text: string): Outcome {
  const chat = attempt(secondsFor(text.length), () => new ChatTemplate(text, "fuzz", { bos_token: "<s>" }));
  if (chat === undefined) return "refused";
  const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];
  const rendered = attempt(secondsFor(11), () => chat.render(messages));
  if (rendered !== undefined && typeof rendered !== "string") throw new Error(`render gave ${rendered}`);
  return rendered === undefined ? "refused" : "used";
}

function fuzz(seconds: number, seed: number): number {
  const fuzzer = new Fuzzer(seed);
  const counts = { tokenizers: { used: 0, refused: 0 }, templates: { used: 0, refused: 0 } };
  const end = performance.now() + seconds * 1000;
  for (let n = 0; performance.now() < end; n++) {
    const isTemplate = n % 3 === 0;
    const text = isTemplate ? fuzzer.template() : fuzzer.tokenizer();
    try {
      if (isTemplate) counts.templates[tryTemplate(text)]++;
      else counts.tokenizers[tryTokenizer(text, fuzzer)]++;
    } catch (error) {
      const { model: _, ...rules } = isTemplate ? { model: 0, text } : readable(text);
      console.error(`case ${n} of seed ${seed} failed\n${JSON.stringify(rules, null, 1)}`);
      console.error(error);
      return 1;
    }
  }
  console.log(`seed ${seed}: ${JSON.stringify(counts)}`);
  return 0;
}

function readable(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return { text: text.slice(0, 2000) };
  }
}

if (import.meta.main) process.exitCode = fuzz(Number(process.argv[2] ?? 20), Number(process.argv[3] ?? 1));
