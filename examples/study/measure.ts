/**
 * Measures configurations of one model: compile, then eval beside the bf16 model. A result is kept under the hash of all
 * that it depends on, so that a study that was interrupted goes on where it was; what failed is tried again.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { z } from "zod";
import { figures, windows } from "../../cli/summary.ts";
import { readPlan, sha256 } from "../../compiler/bundle.ts";
import { MOST_TEXT_BYTES, readRegularFile } from "../../compiler/files.ts";
import { PLAN_VERSION } from "../../compiler/plan.ts";
import { openCheckpoint } from "../../compiler/weights/checkpoint.ts";
import { fileChecksum } from "../../compiler/weights/checksum.ts";
import manifest from "../../deno.json" with { type: "json" };
import { Interrupted } from "../../cli/interrupted.ts";
import { type Command, commandLine, run } from "./commands.ts";
import type { Configuration } from "./configurations.ts";
import { LLAMA_VERSION } from "./llama_install.ts";
import { formatsText, readSummary } from "./llama_weights.ts";
import { Result, type Row, type TextResult } from "./rows.ts";

export interface MeasureOptions {
  /** A checkpoint, such as a Hugging Face folder. */
  readonly model: string;
  readonly texts: readonly string[];
  readonly windows: number;
  readonly threads: number;
  /** Where bundles, statistics and results of all models are kept. */
  readonly work: string;
  readonly signal: AbortSignal;
}

export const VERSION = `${manifest.version}, plan ${PLAN_VERSION}`;

/** Tokens in a window of text. */
export const WINDOW = 256;

/** Where numbers must not depend on whether the machine has a GPU. */
const DEVICE = ["--device", "cpu"];

/** The command that has llama.cpp quantise a model. */
const LLAMA_CPP = "examples/study/llama_cpp.ts";

const Evaluated = z.object({
  texts: z.array(z.object({
    file: z.string(),
    perplexity: z.number(),
    kl: z.number().nullable(),
    top1: z.number().nullable(),
    tokens: z.number(),
    standardErrors: z.object({
      negativeLogLikelihood: z.number().nullable(),
      kl: z.number().nullable(),
      top1: z.number().nullable(),
    }),
  })),
});

/** Of a bundle's report. */
const Predicted = z.object({ predicted: z.object({ corrected: z.number() }).optional() });

export class Measurements {
  readonly model: string;
  readonly checksums: Readonly<Record<string, string>>;
  readonly #options: MeasureOptions;
  readonly #folder: string;
  readonly #texts: readonly string[];

  constructor(options: MeasureOptions) {
    this.#options = options;
    using checkpoint = openCheckpoint(options.model);
    this.model = checkpoint.name;
    this.checksums = Object.fromEntries(
      checkpoint.weightFiles.map((file) => [basename(file), fileChecksum(file, options.threads)]),
    );
    this.#texts = options.texts.map((file) => sha256(readRegularFile(file, MOST_TEXT_BYTES)));
    this.#folder = join(options.work, `${this.model}-${hashOf(this.checksums).slice(0, 8)}`);
    mkdirSync(join(this.#folder, "results"), { recursive: true });
  }

  /** What is made once and read by all: the bf16 model, and the statistics. */
  get preparation(): string[] {
    return [this.#compileReference, this.#calibrate].map(commandLine);
  }

  /** Makes what `configurations` need and is not there. */
  async prepare(configurations: readonly Configuration[]): Promise<void> {
    const wanted = configurations.filter((configuration) =>
      this.#kept(this.#commands(configuration)) === undefined
    );
    const reference = this.#commands();
    if (wanted.length > 0 || this.#kept(reference) === undefined) await this.#run(this.#compileReference);
    if (wanted.some(({ fitted }) => fitted) && !existsSync(this.#statistics)) {
      await this.#run(this.#calibrate);
    }
  }

  /** The model in bf16. */
  async reference(): Promise<Row> {
    const commands = this.#commands();
    const row = { name: "bf16", series: "reference" as const, commands: commands.map(commandLine) };
    return { ...row, ...await this.#result(commands, this.#reference) };
  }

  async measure(configuration: Configuration): Promise<Row> {
    const { name, series } = configuration;
    const commands = this.#commands(configuration);
    const row = { name, series, commands: commands.map(commandLine) };
    const output = this.#bundle(configuration), weights = this.#llamaWeights(configuration);
    try {
      return { ...row, ...await this.#result(commands, output, weights) };
    } finally {
      // One model's bundles would fill a disk.
      for (const folder of [output, weights]) if (folder) rmSync(folder, { recursive: true, force: true });
    }
  }

  /** What `commands` find of `bundle`, which was compiled of llama.cpp's weights where those are given. */
  async #result(
    commands: readonly Command[],
    bundle: string,
    llamaWeights?: string,
  ): Promise<{ result: Result } | { error: string }> {
    const kept = this.#kept(commands);
    if (kept !== undefined) return { result: kept };
    try {
      const started = performance.now();
      for (const command of commands.slice(0, -1)) await this.#run(command);
      const compileSeconds = Math.round((performance.now() - started) / 100) / 10;
      const evaluated = Evaluated.parse(JSON.parse(await this.#run(commands.at(-1)!)));
      const result = {
        ...llamaWeights === undefined ? sizes(bundle) : llamaSizes(bundle, llamaWeights),
        texts: evaluated.texts.map(textResult),
        compileSeconds,
      };
      writeFileSync(this.#cacheFile(commands), `${JSON.stringify(result)}\n`);
      return { result };
    } catch (error) {
      if (error instanceof Interrupted) throw error;
      return { error: error instanceof Error ? error.message : String(error) };
    }
  }

  #kept(commands: readonly Command[]): Result | undefined {
    const file = this.#cacheFile(commands);
    return existsSync(file) ? Result.parse(JSON.parse(readFileSync(file, "utf8"))) : undefined;
  }

  #cacheFile(commands: readonly Command[]): string {
    const key = [VERSION, this.preparation, commands.map(commandLine), this.checksums, this.#texts];
    return join(this.#folder, "results", `${hashOf(key).slice(0, 16)}.json`);
  }

  get #reference(): string {
    return join(this.#folder, "bf16");
  }

  get #statistics(): string {
    return join(this.#folder, "stats.safetensors");
  }

  get #compileReference(): Command {
    return ["hcinfer", "compile", this.#options.model, "-o", this.#reference, "--weights", "bf16", ...DEVICE];
  }

  get #calibrate(): Command {
    return ["hcinfer", "calibrate", this.#options.model, "-o", this.#statistics];
  }

  #bundle({ name }: Configuration): string {
    return join(this.#folder, name.replaceAll("%", "").replaceAll(/[^\w]+/g, "-").replace(/-$/, ""));
  }

  /** Where llama.cpp's weights of a configuration lie. The release is named, so that another one's results are others. */
  #llamaWeights({ llama }: Configuration): string | undefined {
    return llama && join(this.#folder, `node-llama-cpp-${LLAMA_VERSION}-${llama}`);
  }

  /** Command lines that make a configuration and measure it; without one, the bf16 model's. */
  #commands(configuration?: Configuration): Command[] {
    const { model, texts, windows } = this.#options;
    const onTexts = texts.flatMap((text) => ["--text", text]);
    const how = [...onTexts, "--windows", `${windows}`, "--window", `${WINDOW}`, ...DEVICE, "--json"];
    const evaluate = (bundle: string, ...reference: string[]): Command => {
      return ["hcinfer", "eval", bundle, ...reference, ...how];
    };
    if (configuration === undefined) return [evaluate(this.#reference)];
    const output = this.#bundle(configuration);
    const { llama } = configuration, weights = this.#llamaWeights(configuration) ?? model;
    const statistics = configuration.fitted ? ["--statistics", this.#statistics] : [];
    return [
      ...llama === undefined ? [] : [["deno", "run", "-A", LLAMA_CPP, model, llama, "-o", weights] as const],
      ["hcinfer", "compile", weights, "-o", output, ...statistics, ...configuration.options, ...DEVICE],
      evaluate(output, "--reference", this.#reference),
    ];
  }

  /** The number of threads changes no number, so it is no part of a command that is kept. */
  async #run(command: Command): Promise<string> {
    return await run([...command, "--threads", `${this.#options.threads}`], this.#options.signal);
  }
}

/** Bytes that a bundle's plan says, and the divergence that its report predicts. */
function sizes(bundle: string): Pick<Result, "bytes" | "bitsPerWeight" | "predicted"> {
  const { plan, report } = readPlan(bundle);
  const { backboneBytes, headBytes, correctionBytesRead, correctionBytesStored } = figures(plan);
  const weights = windows(plan).reduce((sum, { weight }) => sum + weight.rows * weight.inputs, 0);
  return {
    bytes: {
      backbone: backboneBytes,
      corrections: Math.round(correctionBytesRead),
      stored: correctionBytesStored,
      head: headBytes,
    },
    bitsPerWeight: 8 * (backboneBytes + correctionBytesRead) / weights,
    predicted: Predicted.parse(report).predicted?.corrected ?? null,
  };
}

/** As `sizes`, of a bundle of llama.cpp's weights as numbers: the backbone's bytes are those of its blocks. */
function llamaSizes(
  bundle: string,
  weights: string,
): ReturnType<typeof sizes> & Pick<Result, "llamaFormats"> {
  const found = sizes(bundle), summary = readSummary(weights);
  return {
    ...found,
    bytes: { ...found.bytes, backbone: summary.bytes },
    bitsPerWeight: 8 * summary.bytes / summary.weights,
    llamaFormats: formatsText(summary),
  };
}

function textResult(
  { file, tokens, perplexity, kl, top1, standardErrors }: z.infer<typeof Evaluated>["texts"][number],
): TextResult {
  const { negativeLogLikelihood } = standardErrors;
  return {
    text: basename(file),
    tokens,
    // exp of a mean, whose error is the mean's times it.
    perplexity: {
      mean: perplexity,
      error: negativeLogLikelihood === null ? null : perplexity * negativeLogLikelihood,
    },
    kl: kl === null ? null : { mean: kl, error: standardErrors.kl },
    top1: top1 === null ? null : { mean: top1, error: standardErrors.top1 },
  };
}

function hashOf(value: unknown): string {
  return sha256(new TextEncoder().encode(JSON.stringify(value)));
}
