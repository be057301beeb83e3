/**
 * The demo: compiles a model five ways, lets it write, and compares quality, size and speed.
 *
 *   deno task demo [folder of a Hugging Face model] [--device auto|cpu|cuda] [--gpu-memory 8GiB] [--windows 24]
 */
import { readFileSync } from "node:fs";
import { Command, CommanderError, Option } from "commander";
import { basename, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import {
  checkDevice,
  deviceOption,
  gpuMemoryOption,
  physicalCores,
  type PlaceOptions,
  whole,
} from "../cli/arguments.ts";
import { measureSpeed, median } from "../cli/bench.ts";
import { calibrateOnBundledTexts } from "../cli/calibration_text.ts";
import { endWithReader, reportFailure } from "../cli/failure.ts";
import { OpenModel } from "../cli/opening.ts";
import { figures, planSummary } from "../cli/summary.ts";
import { bytesText, Progress, secondsText, table } from "../cli/terminal.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "../compiler/compile.ts";
import { genericProfile } from "../compiler/profile.ts";
import { joint } from "../compiler/weights/quantizer.ts";
import { build } from "../ffi/build.ts";
import { tokenLoss } from "../runtime/executors/cpu/executor.ts";
import { ChatTemplate } from "../runtime/chat.ts";
import { requireDevice } from "../runtime/devices.ts";
import { evaluate } from "../runtime/evaluate.ts";
import { Sampler } from "../runtime/sampler.ts";
import { Session } from "../runtime/session.ts";

const ROOT = fileURLToPath(new URL("../", import.meta.url));
const BUNDLED = "tiny-dense";
const WINDOW = 256;
const SAMPLING = { temperature: 0.8, topP: 0.95, topK: 40, seed: 3 };
const PROMPT = "The compiler reads the file and";
const QUESTION = "In two sentences: what does a compiler do?";

const threads = physicalCores();

interface Variant {
  readonly name: string;
  readonly folder: string;
  readonly options: Pick<CompileOptions, "weights" | "head" | "correct"> & Partial<CompileOptions>;
  /** Weights and rows are fitted to statistics of the texts that come with hcinfer. */
  readonly isFitted?: true;
}

const VARIANTS: readonly Variant[] = [
  { name: "bf16", folder: "bf16", options: { weights: "bf16", head: "bf16", correct: "none" } },
  { name: "3-bit", folder: "q3", options: { weights: "q3", head: "q8", correct: "none" } },
  {
    name: "3-bit + factors",
    folder: "q3-low-rank",
    options: { weights: "q3", head: "q8", correct: "low_rank" },
  },
  {
    name: "3-bit + rows",
    folder: "q3-sparse",
    options: { weights: "q3", head: "q8", correct: "sparse" },
  },
  {
    name: "3-bit fitted + its rows",
    folder: "q3s-fitted",
    options: {
      weights: "q3s",
      head: "q8",
      correct: "sparse",
      residualWidth: 3,
      quantizer: joint(threads),
      budget: { kind: "auto", share: 0.1 },
    },
    isFitted: true,
  },
];

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

async function compileAll(model: string): Promise<string[]> {
  const outputs: string[] = [];
  for (const { name, folder, options, isFitted } of VARIANTS) {
    const output = join(ROOT, "bundles", basename(model), folder);
    const calibration = new Progress("calibrate");
    const statistics = isFitted && await calibrateOnBundledTexts(model, threads, calibration.show);
    calibration.finish();
    const progress = new Progress(`compile ${name}`);
    const report = await compileModel({
      ...COMPILE_DEFAULTS,
      ...options,
      ...(statistics ? { statistics } : {}),
      model,
      output,
      threads,
      profile: genericProfile(threads),
      onProgress: progress.show,
    });
    progress.finish();
    say(
      `compiled ${name.padEnd(24)}${bytesText(report.bytes).padStart(8)} in ${secondsText(report.seconds)}`,
    );
    outputs.push(output);
  }
  return outputs;
}

async function generate(model: OpenModel): Promise<void> {
  const tokenizer = model.tokenizer();
  // The bundled model has a template but was not trained on conversations.
  const template = model.executor.model.name === BUNDLED
    ? undefined
    : ChatTemplate.find(model.bundle, tokenizer.config);
  const ids = template
    ? tokenizer.encode(template.render([{ role: "user", content: QUESTION }]), { addSpecialTokens: false })
    : tokenizer.encode(PROMPT);
  const sampler = new Sampler(SAMPLING);
  process.stdout.write(template ? `> ${QUESTION}\n` : PROMPT);
  using session = new Session(model.executor);
  for await (const piece of session.generate(ids, { sampler, tokenizer, maxTokens: 80 })) {
    process.stdout.write(piece.text);
  }
  say("");
}

interface Quality {
  readonly perplexity: number;
  readonly kl: number;
}

/**
 * Perplexity of every model, and its KL divergence from the first, over the windows of the held-out text. The first's
 * logits of a window are remembered, so that it runs once.
 */
async function compare(models: readonly OpenModel[], windows: number): Promise<Quality[]> {
  const [first] = models;
  if (first === undefined) return [];
  const text = readFileSync(join(ROOT, "examples/models/heldout.txt"), "utf8");
  const tokens = first.tokenizer().encode(text, { addSpecialTokens: false }).subarray(0, windows * WINDOW);
  const sums = models.map(() => ({ nll: 0, kl: 0, predictions: 0 }));
  const progress = new Progress("evaluate");
  for (let start = 0; start + 2 <= tokens.length; start += WINDOW) {
    progress.show(start, tokens.length, `window ${start / WINDOW + 1}`);
    const expected: Float32Array[] = [];
    for (const [i, { executor }] of models.entries()) {
      let prediction = 0;
      const sum = sums[i]!;
      await evaluate(executor, {
        tokens: tokens.subarray(start, start + WINDOW),
        window: WINDOW,
        tokenLoss(logits, _, target) {
          if (i === 0) expected.push(logits.slice());
          const loss = tokenLoss(logits, target, expected[prediction++]);
          sum.nll += loss.nll;
          sum.kl += loss.kl;
          sum.predictions++;
          return loss;
        },
      });
    }
  }
  progress.finish();
  return sums.map(({ nll, kl, predictions }) => ({
    perplexity: Math.exp(nll / predictions),
    kl: kl / predictions,
  }));
}

/** Tokens per second, the models in turn so that a busy machine is unfair to none; medians of 5. */
function speeds(models: readonly OpenModel[]): number[] {
  const progress = new Progress("measure speed");
  const found = models.map((): number[] => []);
  const [rounds, prompt, tokens] = [5, 32, 32];
  for (let round = 0; round < rounds; round++) {
    models.forEach((model, i) => {
      progress.show(round * models.length + i, rounds * models.length, VARIANTS[i]?.name ?? "");
      found[i]?.push(measureSpeed(model, prompt, tokens).decode);
    });
  }
  progress.finish();
  return found.map(median);
}

interface Options extends PlaceOptions {
  readonly windows: number;
}

async function demo(model: string, { windows, ...place }: Options): Promise<void> {
  await build();
  requireDevice(place.device);
  const outputs = await compileAll(model);
  const models = outputs.map((path) =>
    OpenModel.open(path, { ...place, threads, corrections: "auto", contextLength: WINDOW, capacity: WINDOW })
  );
  try {
    const last = models[models.length - 1]!;
    say(`\n${planSummary(last.bundle.plan)}\n`);
    await generate(last);
    const quality = await compare(models, windows);
    const speed = speeds(models);
    const rows = models.map(({ bundle: { plan } }, i) => {
      const { backboneBytes, correctionBytesStored, correctionBytesRead } = figures(plan);
      const { perplexity, kl } = quality[i]!;
      const size = (bytes: number) => bytes === 0 ? "-" : bytesText(bytes);
      return [
        VARIANTS[i]!.name,
        bytesText(backboneBytes),
        size(correctionBytesStored),
        size(correctionBytesRead),
        perplexity.toFixed(2),
        i === 0 ? "-" : kl.toFixed(4),
        speed[i]!.toFixed(speed[i]! < 100 ? 1 : 0),
      ];
    });
    const head = ["", "backbone", "stored", "read/token", "perplexity", "KL", "tokens/s"];
    say(`\n${table(head, rows)}\n`);
    say(
      `backbone: weights of all layers; stored, read/token: bytes of corrections.\n` +
        `Perplexity and KL to bf16: the first ${
          windows === 1 ? "window" : `${windows} windows`
        } of ${WINDOW} tokens of heldout.txt,\n` +
        `every position corrected as in decoding. Decoding on ${last.executor.name}.`,
    );
  } finally {
    for (const open of models) open[Symbol.dispose]();
  }
}

endWithReader();
try {
  const command = new Command("demo").exitOverride()
    .argument("[model]", "folder of a Hugging Face model", join(ROOT, "examples/models", BUNDLED))
    .addOption(deviceOption())
    .addOption(gpuMemoryOption())
    .addOption(new Option("--windows <n>", "windows of text to evaluate").argParser(whole()).default(24))
    .option("--debug", "print stack traces of errors")
    .hook("preAction", checkDevice)
    .action((model: string, options: Options) => demo(resolve(model), options));
  await command.parseAsync();
} catch (error) {
  // Commander has already written its message, or the help that was asked for.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = reportFailure(error, process.argv.includes("--debug"));
}
