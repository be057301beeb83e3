/** hcinfer compile: a checkpoint becomes a bundle. */
import { Command, Option } from "commander";
import process from "node:process";
import {
  COMPILE_DEFAULTS,
  compileModel,
  type CompileOptions,
  type CompileReport,
  defaultHead,
  defaultResidualWidth,
} from "../compiler/compile.ts";
import { type Whitening, WHITENINGS } from "../compiler/calibration/fit_factors.ts";
import { type Choice, CHOICES } from "../compiler/calibration/planned.ts";
import { readStatistics } from "../compiler/calibration/statistics.ts";
import { HcinferError } from "../compiler/errors.ts";
import { type Stage, STAGES } from "../compiler/ir/graph.ts";
import { genericProfile } from "../compiler/profile.ts";
import type { Report } from "../compiler/report.ts";
import { RESIDUAL_WIDTHS, type ResidualWidth } from "../compiler/weights/correction.ts";
import { FORMAT_KINDS, type FormatKind, GROUP_SIZES } from "../compiler/weights/format.ts";
import { withoutText } from "../compiler/weights/huggingface.ts";
import { type QuantizerName, QUANTIZERS } from "../compiler/weights/quantizer.ts";
import { describeFirstGpu } from "../runtime/gpu_machine.ts";
import {
  budget,
  checkDevice,
  contextOption,
  deviceOption,
  given,
  gpuMemoryOption,
  physicalCores,
  type PlaceOptions,
  refuse,
  threadsOption,
  whole,
} from "./arguments.ts";
import { calibrateOnBundledTexts } from "./calibration_text.ts";
import { measureBundle, type MeasureOptions } from "./compile_measure.ts";
import { interruptible } from "./interrupted.ts";
import { machineNamed, machineOption } from "./machine.ts";
import { planSummary } from "./summary.ts";
import { bytesText, printable, Progress, secondsText, writeOut } from "./terminal.ts";

export function compileCommand(): Command {
  return new Command("compile")
    .description("Compile a Hugging Face folder to a bundle.")
    .argument("<model>", "folder with config.json and *.safetensors")
    .requiredOption(
      "-o, --output <bundle>",
      "folder to write; a bundle that is there is replaced, links to it stay",
    )
    .addOption(
      choice(
        "--weights <format>",
        "format of the backbone; w8a8 is q8 quantised by haq and not corrected, unless options say otherwise",
        [...FORMAT_KINDS, W8A8],
        COMPILE_DEFAULTS.weights,
      ),
    )
    .addOption(
      choice(
        "--group <n>",
        "inputs that share a scale; of formats with an s only the head's",
        GROUP_SIZES,
        COMPILE_DEFAULTS.group,
      ),
    )
    .option(
      "--statistics <file>",
      "what calibrate wrote; without it, a quantiser that needs it calibrates first",
    )
    .addOption(
      choice("--quantizer <name>", "how weights become codes", Object.keys(QUANTIZERS), "rtn"),
    )
    .addOption(
      new Option("--choice <kind>", "how rows are chosen for a token, with statistics (default: threshold)")
        .choices(CHOICES),
    )
    .addOption(
      new Option(
        "--head <format>",
        "format of the embedding and the output head (default: q8, bf16 with --weights bf16)",
      ).choices(FORMAT_KINDS),
    )
    .addOption(
      choice(
        "--correct <forms>",
        "corrections of the backbone's error; auto: rows and factors, whichever is worth its bytes, with statistics",
        ["none", "low_rank", "sparse", "both", "auto"],
        COMPILE_DEFAULTS.correct,
      ),
    )
    .addOption(
      new Option(
        "--budget <budget>",
        "bytes:N% of the backbone's bytes read per token, auto or auto:N% (formats compete with corrections for " +
          "backbone and share together), paper or paper:N% (ranks by HCInfer's rule, for low_rank), rank:N, channels:N, or rank:N,channels:N for both",
      )
        .argParser(budget).default(COMPILE_DEFAULTS.budget, "bytes:10%"),
    )
    .addOption(
      new Option(
        "--residual-width <bits>",
        `bits of a row's code (default: ${defaultResidualWidth(false)}, ${
          defaultResidualWidth(true)
        } with statistics)`,
      ).choices(RESIDUAL_WIDTHS.map(String)),
    )
    .addOption(
      choice(
        "--factor-dtype <type>",
        "type of low-rank factors",
        ["i8", "bf16"],
        COMPILE_DEFAULTS.factorDType,
      ),
    )
    .addOption(
      new Option(
        "--factors <whitening>",
        "moments of inputs that factors are fitted under, with statistics (default: full; svd is all there is without)",
      ).choices(WHITENINGS),
    )
    .addOption(
      new Option("--max-rank <n>", "most components that factors store").argParser(whole())
        .default(COMPILE_DEFAULTS.maxRank),
    )
    .addOption(machineOption("this one, by number of cores"))
    .addOption(new Option("--print-after <stage>", "print the graph after a pass").choices(STAGES))
    .addOption(contextOption())
    .addOption(deviceOption())
    .addOption(gpuMemoryOption())
    .addOption(threadsOption())
    .addHelpText(
      "after",
      `
Examples:
  hcinfer compile my-model -o bundles/my-model
  hcinfer compile my-model -o bundles/r16 --correct low_rank --budget rank:16
  hcinfer compile my-model -o bundles/exact --weights bf16 --correct none`,
    )
    .hook("preAction", checkDevice)
    .action(compile);
}

function choice(
  flags: string,
  text: string,
  choices: readonly (string | number)[],
  standard: string | number,
) {
  return new Option(flags, text).choices(choices.map(String)).default(String(standard));
}

/**
 * HAQ's setting: weights and activations of 8 bits. Activations are int8 in the groups of the weights beside every quantised
 * format, so it is q8 with smoothed inputs; one scale a channel, which is coarser, has no kernels.
 */
const W8A8 = "w8a8";

interface Options extends PlaceOptions {
  readonly output: string;
  readonly weights: FormatKind;
  readonly group: string;
  readonly statistics?: string;
  readonly quantizer: QuantizerName;
  readonly choice?: Choice;
  readonly head?: FormatKind;
  readonly correct: CompileOptions["correct"] | "auto";
  readonly factors?: Whitening;
  readonly budget: CompileOptions["budget"];
  readonly residualWidth?: string;
  readonly factorDtype: CompileOptions["factorDType"];
  readonly maxRank: number;
  readonly machine?: string;
  readonly context?: number;
  readonly printAfter?: Stage;
  readonly threads: number;
}

/** The options that `--weights w8a8` stands for; given ones stay. */
function expandWeights(
  options: Omit<Options, "weights"> & { readonly weights: FormatKind | typeof W8A8 },
  command: Command,
): Options {
  const { weights, ...others } = options;
  if (weights !== W8A8) return { ...others, weights };
  return {
    ...others,
    weights: "q8",
    ...(given(command, "quantizer") ? {} : { quantizer: "haq" }),
    ...(given(command, "correct") ? {} : { correct: "none" }),
  };
}

async function compile(
  model: string,
  asked: Parameters<typeof expandWeights>[0],
  command: Command,
): Promise<void> {
  const options = expandWeights(asked, command);
  const correct = checkKnobs(options, command);
  const silent = withoutText(model);
  if (silent !== undefined) process.stderr.write(`${printable(silent)}\n`);
  const progress = new Progress("compile");
  let compiled: CompileReport;
  try {
    compiled = await interruptible(async (check) => {
      const onProgress = (done: number, total: number, what: string) => {
        check();
        progress.show(done, total, what);
      };
      const fitted = await fitting(model, options, onProgress);
      const compiled = await compileModel({
        model,
        output: options.output,
        weights: options.weights,
        group: Number(options.group) as CompileOptions["group"],
        ...(options.head ? { head: options.head } : {}),
        correct,
        budget: options.budget,
        ...(options.residualWidth === undefined ? {} : { residualWidth: widthOf(options.residualWidth) }),
        factorDType: options.factorDtype,
        maxRank: options.maxRank,
        ...(options.factors ? { whitening: options.factors } : {}),
        ...fitted,
        threads: options.threads,
        ...placement(options),
        onProgress,
        ...(options.printAfter ? { printAfter: { stages: [options.printAfter], sink: writeOut } } : {}),
      });
      return { ...compiled, report: await measured(model, compiled.report, options, fitted, onProgress) };
    });
  } finally {
    progress.finish();
  }
  process.stderr.write(
    printable(
      `${planSummary(compiled.plan, compiled.report)}\nwrote ${options.output}: ${
        bytesText(compiled.bytes)
      } in ${secondsText(compiled.seconds)}\n`,
    ),
  );
}

/** The report with the loss that the finished bundle is measured to have; as it was where that cannot be done here. */
async function measured(
  model: string,
  report: Report,
  { output, threads }: Options,
  { statistics }: Pick<CompileOptions, "statistics">,
  onProgress: MeasureOptions["onProgress"],
): Promise<Report> {
  if (statistics === undefined) return report;
  try {
    return await measureBundle({ model, bundle: output, text: statistics.text, threads, onProgress });
  } catch (error) {
    if (!(error instanceof HcinferError)) throw error;
    process.stderr.write(printable(`the loss was not measured: ${error.message}\n`));
    return report;
  }
}

function widthOf(text: string): ResidualWidth {
  return RESIDUAL_WIDTHS.find((width) => String(width) === text)!;
}

/** What weights are fitted to. A calibration of this model is made where one is needed and none is given. */
async function fitting(
  model: string,
  { statistics, quantizer, choice, correct, factors, budget, threads }: Options,
  onProgress: NonNullable<CompileOptions["onProgress"]>,
): Promise<Pick<CompileOptions, "quantizer" | "statistics" | "choice">> {
  const chosen = { quantizer: QUANTIZERS[quantizer](threads), ...(choice ? { choice } : {}) };
  const isNeeded = quantizer !== "rtn" || budget.kind === "auto" || budget.kind === "paper" ||
    correct === "auto" ||
    choice !== undefined || (factors !== undefined && factors !== "svd");
  if (statistics !== undefined) return { ...chosen, statistics: readStatistics(statistics) };
  if (!isNeeded) return chosen;
  process.stderr.write("no --statistics are given: calibrating on the texts that come with hcinfer\n");
  return { ...chosen, statistics: await calibrateOnBundledTexts(model, threads, onProgress) };
}

/** What is planned for: a machine, and how much of its GPU. */
function placement(
  { device, gpuMemory, machine: name, context }: Options,
): Pick<CompileOptions, "device" | "gpuMemory" | "contextLength" | "profile"> {
  const profile = name === undefined ? genericProfile(physicalCores()) : machineNamed(name);
  // Without a profile, a GPU of this machine is planned for as its driver describes it.
  const gpu = name === undefined && device !== "cpu" ? describeFirstGpu() : undefined;
  const machine = gpu === undefined ? profile : { ...profile, name: `${profile.name}, ${gpu.name}`, gpu };
  if (machine.gpu === undefined && (device === "cuda" || gpuMemory !== undefined)) {
    const asked = device === "cuda" ? "--device cuda" : "--gpu-memory";
    throw new HcinferError(
      "usage",
      `${asked} plans for a GPU, and ${
        name === undefined ? "this machine" : `the profile ${profile.name}`
      } has none: give --machine rtx-4090, say (hcinfer profile --list shows all)`,
    );
  }
  return {
    device: device === "cuda" ? "gpu" : device,
    ...(gpuMemory === undefined ? {} : { gpuMemory }),
    ...(context === undefined ? {} : { contextLength: context }),
    profile: machine,
  };
}

/** Refuses knobs that contradict each other; returns the corrections to make (bf16 has no error to correct). */
function checkKnobs(options: Options, command: Command): CompileOptions["correct"] {
  const { weights, head = defaultHead(weights), correct, budget } = options;
  if (weights === "bf16") {
    if (given(command, "correct") && correct !== "none") {
      throw new HcinferError(
        "usage",
        `--weights bf16 has no error, so --correct ${correct} has nothing to correct`,
      );
    }
    if (head === "bf16") refuse(command, "nothing is quantised", "group");
    refuse(command, "--weights bf16 is not quantised", "quantizer", "statistics");
    refuse(
      command,
      "--weights bf16 has no corrections",
      "choice",
      "budget",
      "residualWidth",
      "factors",
      "factorDtype",
      "maxRank",
    );
    return "none";
  }
  if (correct === "none") {
    // Bytes that go to formats alone need no corrections.
    const without = budget.kind === "auto" ? [] : ["budget"];
    refuse(
      command,
      "--correct none makes no corrections",
      ...without,
      "choice",
      "residualWidth",
      "factors",
      "factorDtype",
      "maxRank",
    );
  }
  if (correct === "low_rank") {
    refuse(command, "--correct low_rank stores no residual", "residualWidth", "choice");
  }
  if (correct === "sparse") {
    refuse(command, "--correct sparse has no factors", "factors", "factorDtype", "maxRank");
  }
  if (budget.kind === "rank" && correct === "sparse") {
    throw new HcinferError(
      "usage",
      "--budget rank:N is for low_rank; give --correct sparse channels:N or bytes:N%",
    );
  }
  if (budget.kind === "channels" && correct === "low_rank") {
    throw new HcinferError(
      "usage",
      "--budget channels:N is for sparse; give --correct low_rank rank:N or bytes:N%",
    );
  }
  if ("rank" in budget && budget.rank > options.maxRank) {
    throw new HcinferError(
      "usage",
      `--budget rank:${budget.rank} is more than --max-rank ${options.maxRank}`,
    );
  }
  if (budget.kind === "paper" && correct !== "low_rank") {
    throw new HcinferError("usage", "--budget paper divides ranks: give --correct low_rank");
  }
  return correct === "auto" ? "both" : correct;
}
