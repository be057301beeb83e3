/** Several texts at once: tokens per second of all of them together, one token of each a step. */
import { median } from "../../cli/bench.ts";
import type { Executor } from "../../runtime/executor.ts";
import { spread } from "./spread.ts";

/** How many sequences a step may hold. */
export const MOST_SEQUENCES = 16;
const COUNTS = [1, 2, 4, 8, MOST_SEQUENCES] as const;

/** Tokens of every sequence before the measurement, and in it. */
const PROMPT = 16, STEPS = 64;

/** A row a number of sequences: tokens per second, and their ratio to one's. */
export function sequenceRows(executor: Executor, repeats: number, note: (text: string) => void): string[][] {
  const found = COUNTS.map((): number[] => []);
  for (let repeat = 0; repeat <= repeats; repeat++) {
    note(`sequences, repeat ${repeat}`);
    COUNTS.forEach((count, i) => {
      const speed = decodeTogether(executor, count);
      if (repeat > 0) found[i]!.push(speed);
    });
  }
  return COUNTS.map((count, i) => [
    `${count}`,
    spread(found[i]!),
    `${(median(found[i]!) / median(found[0]!)).toFixed(2)}x`,
  ]);
}

function decodeTogether(executor: Executor, count: number): number {
  const sequences = Array.from({ length: count }, () => executor.sequence());
  const step = (position: number) =>
    executor.step({
      runs: sequences.map((sequence, n) => {
        const tokens = Int32Array.of((position * 97 + n * 31 + 5) % executor.model.vocabularySize);
        return { sequence, position, tokens, as: "decode", logits: "last" } as const;
      }),
    });
  for (let position = 0; position < PROMPT; position++) step(position);
  const began = performance.now();
  for (let position = PROMPT; position < PROMPT + STEPS; position++) step(position);
  const seconds = (performance.now() - began) / 1000;
  for (const sequence of sequences) sequence[Symbol.dispose]();
  return count * STEPS / seconds;
}
