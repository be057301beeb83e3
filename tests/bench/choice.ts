/**
 * Decoding with rows chosen by one threshold beside a fixed number of rows a token, at equal mean bytes. On text, since how
 * many rows a token chooses depends on it.
 */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { measureSpeed, median } from "../../cli/bench.ts";
import { OpenModel } from "../../cli/opening.ts";
import { figures } from "../../cli/summary.ts";
import { bytesText } from "../../cli/terminal.ts";
import type { Choice } from "../../compiler/calibration/planned.ts";
import { run } from "../../examples/study/commands.ts";
import { cacheFolder } from "./shape.ts";
import { spread } from "./spread.ts";

const TEXT = fileURLToPath(new URL("../../examples/models/far.txt", import.meta.url));
const CHOICES: readonly Choice[] = ["count", "threshold"];

export interface ChoiceOptions {
  /** A checkpoint, such as a Hugging Face folder. */
  readonly model: string;
  readonly threads: number;
  readonly repeats: number;
  readonly prompt: number;
  readonly tokens: number;
  readonly note: (text: string) => void;
}

/** A row a choice: its name, tokens per second, the ratio to the count, bytes of corrections a token is expected to read. */
export async function choiceRows(
  { model, threads, repeats, prompt, tokens, note }: ChoiceOptions,
): Promise<string[][]> {
  const folder = join(cacheFolder(), `choice-${basename(model)}`);
  mkdirSync(folder, { recursive: true });
  const statistics = join(folder, "stats.safetensors"), never = new AbortController().signal;
  if (!existsSync(statistics)) {
    note(`calibrating ${model}`);
    await run(["hcinfer", "calibrate", model, "-o", statistics], never);
  }
  const models: OpenModel[] = [];
  try {
    for (const choice of CHOICES) {
      note(`compiling, rows by ${choice}`);
      const output = join(folder, choice);
      const how = ["--quantizer", "joint", "--weights", "q3s", "--budget", "bytes:10%", "--device", "cpu"];
      const options = ["--statistics", statistics, ...how, "--choice", choice];
      await run(["hcinfer", "compile", model, "-o", output, ...options], never);
      models.push(OpenModel.open(output, {
        device: "cpu",
        threads,
        corrections: "inline",
        contextLength: prompt + tokens,
      }));
    }
    const ids = models[0]!.tokenizer().encode(readFileSync(TEXT, "utf8")).subarray(0, prompt + tokens);
    const found = models.map((): number[] => []);
    for (let repeat = 0; repeat <= repeats; repeat++) {
      models.forEach((model, i) => {
        const { decode } = measureSpeed(model, prompt, tokens, ids);
        if (repeat > 0) found[i]!.push(decode);
      });
    }
    return models.map((model, i) => [
      `by ${CHOICES[i]}`,
      spread(found[i]!),
      `${(median(found[i]!) / median(found[0]!)).toFixed(2)}x`,
      bytesText(figures(model.bundle.plan).correctionBytesRead),
    ]);
  } finally {
    for (const model of models) model[Symbol.dispose]();
  }
}
