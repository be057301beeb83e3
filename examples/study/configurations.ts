/** What the study compares: every configuration is a name and the options of `hcinfer compile` that make it. */
import type { LlamaType } from "./llama_weights.ts";

/** How a configuration is drawn: what stands beside its backbone. */
export const SERIES = [
  "backbone alone",
  "rows",
  "factors",
  "rows and factors",
  "mixed bits",
  "llama.cpp",
] as const;
export type Series = (typeof SERIES)[number];

export interface Configuration {
  /** Unique: its label in the table and the figure. */
  readonly name: string;
  readonly series: Series;
  /** Options of compile besides the model, its output and its statistics. */
  readonly options: readonly string[];
  /** Whether it is compiled with the statistics of a calibration. */
  readonly fitted: boolean;
  /** What llama.cpp rounds the layers to, before they are compiled. */
  readonly llama?: LlamaType;
  /** Whether it is also on the short list, for models that take minutes each. */
  readonly short: boolean;
}

type Quantizer = "rtn" | "gptq" | "awq" | "haq" | "joint";

interface Backbone {
  readonly quantizer: Quantizer;
  readonly weights: string;
}

/** Round-to-nearest needs no calibration, and neither do its corrections: those are the error itself. */
function configuration(
  { quantizer, weights }: Backbone,
  series: Series,
  what: string,
  corrections: readonly string[],
): Configuration {
  return {
    name: `${quantizer} ${weights}${what}`,
    series,
    options: ["--weights", weights, "--quantizer", quantizer, ...corrections],
    fitted: quantizer !== "rtn",
    short: false,
  };
}

function alone(quantizer: Quantizer, weights: string): Configuration {
  return configuration({ quantizer, weights }, "backbone alone", "", ["--correct", "none"]);
}

/** llama.cpp's weights, computed here: in bf16, with embedding and head as the others have them. */
function llama(type: LlamaType): Configuration {
  return {
    name: `llama.cpp ${type}`,
    series: "llama.cpp",
    options: ["--weights", "bf16", "--head", "q8", "--correct", "none"],
    fitted: false,
    llama: type,
    short: true,
  };
}

/** Bits of a residual's code that names do not say. */
const WIDTH = 3;

interface Rows {
  readonly width?: 3 | 4 | 5;
  readonly choice?: "threshold" | "count";
  readonly budget?: "bytes" | "auto";
  /** Inputs of the output head that share a scale, of its weights and of its int8 input. */
  readonly headGroup?: 32 | 64;
}

/** Rows of so many percent of the backbone's bytes. */
function rows(
  quantizer: Quantizer,
  weights: string,
  percent: number,
  { width = WIDTH, choice = "threshold", budget = "bytes", headGroup = 64 }: Rows = {},
): Configuration {
  const notes = [
    ...width === WIDTH ? [] : [`${width} bits`],
    ...choice === "count" && quantizer !== "rtn" ? ["by count"] : [],
    ...budget === "auto" ? ["auto"] : [],
    ...headGroup === 64 ? [] : [`head in groups of ${headGroup}`],
  ];
  return configuration(
    { quantizer, weights },
    "rows",
    ` + rows ${percent} %${notes.map((note) => `, ${note}`).join("")}`,
    [
      ...["--correct", "sparse", "--residual-width", `${width}`, "--budget", `${budget}:${percent}%`],
      ...quantizer === "rtn" ? [] : ["--choice", choice],
      ...headGroup === 64 ? [] : ["--group", `${headGroup}`],
    ],
  );
}

/** Paper's is the rule by which HCInfer divides ranks among matrices. */
function factors(
  quantizer: Quantizer,
  weights: string,
  percent: number,
  budget: "bytes" | "paper" = "bytes",
): Configuration {
  const what = ` + factors ${percent} %${budget === "paper" ? ", paper" : ""}`;
  const corrections = ["--correct", "low_rank", "--budget", `${budget}:${percent}%`];
  return configuration({ quantizer, weights }, "factors", what, corrections);
}

function both(weights: string, percent: number): Configuration {
  const corrections = ["--correct", "both", "--residual-width", `${WIDTH}`, "--budget", `bytes:${percent}%`];
  const what = ` + both ${percent} %`;
  return configuration({ quantizer: "joint", weights }, "rows and factors", what, corrections);
}

/** The sceptic's: what corrections would cost is spent on bits of the backbone where they win most. */
function mixed(percent: number): Configuration {
  const corrections = ["--correct", "none", "--budget", `auto:${percent}%`];
  return configuration(
    { quantizer: "joint", weights: "q3s" },
    "mixed bits",
    ` mixed, + ${percent} %`,
    corrections,
  );
}

const short = (configuration: Configuration): Configuration => ({ ...configuration, short: true });

export const CONFIGURATIONS: readonly Configuration[] = [
  short(alone("rtn", "q3")),
  alone("rtn", "q4"),
  alone("rtn", "q3s"),
  alone("rtn", "q4s"),
  llama("Q3_K_S"),
  llama("Q3_K_M"),
  llama("Q4_0"),
  short(alone("awq", "q3")),
  short(alone("haq", "w8a8")),
  alone("gptq", "q3"),
  alone("gptq", "q2s"),
  alone("gptq", "q3s"),
  alone("gptq", "q4s"),
  alone("joint", "q2s"),
  short(alone("joint", "q3s")),
  short(alone("joint", "q4s")),
  mixed(10),
  short(mixed(20)),
  short(rows("rtn", "q3", 10, { width: 4 })),
  factors("rtn", "q3", 10),
  rows("gptq", "q3s", 10),
  rows("joint", "q2s", 10),
  rows("joint", "q2s", 20),
  short(rows("joint", "q3s", 5)),
  short(rows("joint", "q3s", 10)),
  short(rows("joint", "q3s", 20)),
  rows("joint", "q3s", 10, { choice: "count" }),
  rows("joint", "q3s", 10, { width: 4 }),
  rows("joint", "q3s", 10, { width: 5 }),
  short(rows("joint", "q3s", 5, { budget: "auto" })),
  short(rows("joint", "q3s", 10, { budget: "auto" })),
  rows("joint", "q3s", 10, { width: 4, budget: "auto" }),
  rows("joint", "q3s", 10, { width: 5, budget: "auto" }),
  short(rows("joint", "q3s", 20, { budget: "auto" })),
  rows("joint", "q4s", 5),
  short(rows("joint", "q4s", 10)),
  short(rows("joint", "q4s", 10, { headGroup: 32 })),
  factors("joint", "q3s", 10),
  factors("joint", "q3s", 10, "paper"),
  short(both("q3s", 10)),
];

export type List = "full" | "short";

/** Configurations of a list whose names match. */
export function configurationsOf(list: List, only = /^/): Configuration[] {
  return CONFIGURATIONS.filter(({ name, short }) => (list === "full" || short) && only.test(name));
}
