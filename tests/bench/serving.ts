/** Requests at the same time, as the server batches them: speed of all together, and how long a short one waits beside a long one. */
import { median } from "../../cli/bench.ts";
import { Batch } from "../../runtime/batch.ts";
import type { DeviceExecutor } from "../../runtime/devices.ts";
import { Sampler } from "../../runtime/sampler.ts";
import { spread } from "./spread.ts";

const STREAMS = [1, 2, 4, 8] as const;
const PROMPT = 16, TOKENS = 64;
const LONG = 2000, CHUNK = 256;

/** A row a number of streams: tokens per second of all, and their ratio to one's. */
export async function servingRows(
  executor: DeviceExecutor,
  repeats: number,
  note: (text: string) => void,
): Promise<string[][]> {
  const found = STREAMS.map((): number[] => []);
  await using batch = new Batch(executor, { slots: 8 });
  for (let repeat = 0; repeat <= repeats; repeat++) {
    for (const [i, streams] of STREAMS.entries()) {
      note(`serving, ${streams} streams, repeat ${repeat}`);
      const began = performance.now();
      await Promise.all(Array.from({ length: streams }, (_, n) => {
        return ask(batch, tokensOf(executor, PROMPT, 100 * repeat + 10 * i + n), TOKENS);
      }));
      const seconds = (performance.now() - began) / 1000;
      if (repeat > 0) found[i]!.push(streams * TOKENS / seconds);
    }
  }
  return STREAMS.map((streams, i) => [
    `${streams}`,
    spread(found[i]!),
    `${(median(found[i]!) / median(found[0]!)).toFixed(2)}x`,
  ]);
}

/** Milliseconds: of a decode step, of a chunk of a prompt, and to the first token of a short request beside a long prompt. */
export async function waitingTimes(
  executor: DeviceExecutor,
  repeats: number,
): Promise<{ readonly step: number; readonly chunk: number; readonly wait: number }> {
  const steps: number[] = [], chunks: number[] = [], waits: number[] = [];
  for (let repeat = 0; repeat < repeats; repeat++) {
    await using batch = new Batch(executor, { chunk: CHUNK });
    const began = performance.now();
    await ask(batch, tokensOf(executor, CHUNK, 7 * repeat + 1), 1);
    chunks.push(performance.now() - began);
    const times: number[] = [];
    await ask(batch, tokensOf(executor, PROMPT, 7 * repeat + 2), 20, () => times.push(performance.now()));
    steps.push((times.at(-1)! - times[0]!) / (times.length - 1));
    const long = ask(batch, tokensOf(executor, LONG, 7 * repeat + 3), 1);
    await new Promise((resolve) => setTimeout(resolve, 1.5 * median(chunks)));
    const asked = performance.now();
    let wait = 0;
    await ask(batch, tokensOf(executor, PROMPT, 7 * repeat + 4), 2, () => wait ||= performance.now() - asked);
    waits.push(wait);
    await long;
  }
  return { step: median(steps), chunk: median(chunks), wait: median(waits) };
}

function tokensOf({ model }: DeviceExecutor, length: number, seed: number): Int32Array {
  return Int32Array.from({ length }, (_, n) => ((n + 1) * 97 + seed * 1009) % model.vocabularySize);
}

async function ask(
  batch: Batch,
  prompt: Int32Array,
  maxTokens: number,
  onToken: () => unknown = () => {},
): Promise<void> {
  const sampler = new Sampler();
  await batch.answer({ prompt, sampler, maxTokens, stopTokens: [], onToken: () => (onToken(), true) });
}
