/** What the study writes: study.json. Bytes are of weights in layers, which corrections correct; losses are in nats. */
import { z } from "zod";
import { SERIES } from "./configurations.ts";

/** A mean over tokens and its standard error over windows; null for a text of one window. */
const Measured = z.strictObject({ mean: z.number(), error: z.number().nullable() });
export type Measured = z.infer<typeof Measured>;

const TextResult = z.strictObject({
  text: z.string(),
  tokens: z.int().positive(),
  perplexity: Measured,
  /** Compared with bf16, which has neither. */
  kl: Measured.nullable(),
  top1: Measured.nullable(),
});
export type TextResult = z.infer<typeof TextResult>;

export const Result = z.strictObject({
  bytes: z.strictObject({
    /** Read per token. */
    backbone: z.number(),
    corrections: z.number(),
    /** Of corrections, in memory. */
    stored: z.number(),
    /** Embedding and output head: the same for all but bf16. */
    head: z.number(),
  }),
  /** Bits of the backbone and of corrections read per token, by the weights of the layers. */
  bitsPerWeight: z.number(),
  /** What compiling predicted of the divergence, nats per token. */
  predicted: z.number().nullable(),
  texts: z.array(TextResult),
  compileSeconds: z.number(),
  /** Formats of llama.cpp's that the layers' matrices have. */
  llamaFormats: z.string().optional(),
});
export type Result = z.infer<typeof Result>;

const Named = z.strictObject({
  name: z.string(),
  series: z.enum(["reference", ...SERIES]),
  /** Command lines that made it, in order, after those of `Study.preparation`. */
  commands: z.array(z.string()),
});

export const Row = z.union([
  Named.extend({ result: Result }),
  /** What a command said that failed. */
  Named.extend({ error: z.string() }),
]);
export type Row = z.infer<typeof Row>;
export type MeasuredRow = Extract<Row, { result: Result }>;

export const Study = z.strictObject({
  hcinfer: z.string(),
  model: z.string(),
  /** Of its tensors. */
  checksums: z.record(z.string(), z.string()),
  window: z.int(),
  preparation: z.array(z.string()),
  rows: z.array(Row),
});
export type Study = z.infer<typeof Study>;

export function isMeasured(row: Row): row is MeasuredRow {
  return "result" in row;
}

export function bytesRead({ bytes }: Result): number {
  return bytes.backbone + bytes.corrections;
}

/**
 * The rows on the Pareto front of one text: nobody reads as few bytes and diverges less. By ascending bytes, so by descending
 * divergence. Rows without a divergence are not compared.
 */
export function paretoFront(rows: readonly MeasuredRow[], text: number): MeasuredRow[] {
  const divergence = ({ result }: MeasuredRow) => result.texts[text]?.kl?.mean ?? Infinity;
  const sorted = rows.filter((row) => divergence(row) < Infinity)
    .sort((a, b) => bytesRead(a.result) - bytesRead(b.result) || divergence(a) - divergence(b));
  const front: MeasuredRow[] = [];
  let least = Infinity;
  for (const row of sorted) {
    if (divergence(row) >= least) continue;
    least = divergence(row);
    front.push(row);
  }
  return front;
}
