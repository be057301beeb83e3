/**
 * Formats that follow errors: which weight gets how many bits, from what each format was measured to lose of it. The
 * pass `quantize` asks here when there are measurements; without, formats follow from options alone.
 */
import { HcinferError } from "../errors.ts";
import { formatText, type WeightFormat } from "../weights/format.ts";

/** How formats are chosen. `bits`: most bits a weight of the windows on average, scales and padding included. */
export interface FormatPolicy {
  readonly kind: "bitsPerWeight";
  readonly bits: number;
}

/** What a packed weight would be in one format. */
export interface FormatError {
  readonly format: WeightFormat;
  readonly bytes: number;
  /** ||W - Wq||^2 / ||W||^2. */
  readonly relativeError: number;
}

export interface MeasuredWeight {
  /** Of the packed weight, `model.layers.0.mlp.gate_proj+up_proj`. */
  readonly name: string;
  /** Without padding. */
  readonly elements: number;
  readonly candidates: readonly FormatError[];
}

export interface MeasuredFormats {
  readonly weights: readonly MeasuredWeight[];
  readonly policy: FormatPolicy;
}

/** What weights lose together, in elements: relative, because norms and neighbours fix the scale of each at will. */
export function lossOf({ elements }: MeasuredWeight, { relativeError }: FormatError): number {
  return elements * relativeError;
}

/** A weight's format and why it is this one. */
export interface ChosenFormat {
  readonly format: WeightFormat;
  readonly cause: string;
}

/** From one format of a weight to the next larger one. */
interface Step {
  readonly weight: MeasuredWeight;
  readonly to: FormatError;
  readonly bytes: number;
  readonly gainPerByte: number;
}

/**
 * A format for every measured weight, each with its cause. A greedy from the smallest formats: bytes go where they win most
 * of the loss. A weight's steps win less and less per byte (its candidates' convex hull), so the greedy is within one
 * step of the best. Throws HcinferError("usage") when even the smallest formats take more bits than allowed.
 */
export function chooseFormats(
  { weights, policy }: MeasuredFormats,
): Map<string, ChosenFormat> {
  const elements = weights.reduce((sum, w) => sum + w.elements, 0);
  const hulls = weights.map((weight) => ({ weight, hull: lowerHull(weight) }));
  const chosen = new Map(hulls.map(({ weight, hull: [smallest] }) => {
    if (smallest === undefined) throw new Error(`${weight.name} was measured in no format`);
    return [weight, smallest];
  }));
  const least = [...chosen.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  let left = Math.floor(policy.bits * elements / 8) - least;
  if (!(left >= 0)) {
    const needed = (Math.ceil(800 * least / elements) / 100).toFixed(2);
    throw new HcinferError("usage", `bits per weight must be ${needed} or more here, found ${policy.bits}`);
  }
  const steps = hulls.flatMap(({ weight, hull }) =>
    hull.slice(1).map((to, i) => stepOf(weight, hull[i]!, to))
  );
  steps.sort((a, b) => b.gainPerByte - a.gainPerByte);
  const full = new Set<MeasuredWeight>();
  for (const { weight, to, bytes } of steps) {
    if (bytes > left) full.add(weight);
    if (full.has(weight)) continue;
    chosen.set(weight, to);
    left -= bytes;
  }
  return new Map([...chosen].map(([{ name }, { format }]) => {
    const cause = `${
      formatText(format)
    }: where bytes win most of the measured error, within ${policy.bits} bits a weight`;
    return [name, { format, cause }];
  }));
}

function stepOf(weight: MeasuredWeight, from: FormatError, to: FormatError): Step {
  const bytes = to.bytes - from.bytes;
  return { weight, to, bytes, gainPerByte: (lossOf(weight, from) - lossOf(weight, to)) / bytes };
}

/** Candidates by size that no other, nor a mixture of two others, beats in both bytes and error. */
function lowerHull(weight: MeasuredWeight): FormatError[] {
  const hull: FormatError[] = [];
  const bySize = weight.candidates.toSorted((a, b) => a.bytes - b.bytes || a.relativeError - b.relativeError);
  for (const next of bySize) {
    const last = hull.at(-1);
    if (last !== undefined && next.relativeError >= last.relativeError) continue;
    while (hull.length > 1) {
      const [before, middle] = hull.slice(-2) as [FormatError, FormatError];
      if (stepOf(weight, before, middle).gainPerByte > stepOf(weight, middle, next).gainPerByte) break;
      hull.pop();
    }
    hull.push(next);
  }
  return hull;
}
