/** What a bundle was made with, from its provenance, as the options that make it again. */
import { z } from "zod";
import type { Plan } from "../compiler/plan.ts";
import { parseFormat } from "../compiler/weights/format.ts";
import { TIED } from "./summary.ts";

/** "--weights q4 --group 64 ...": the options of compile that a bundle was made with, and what it was calibrated on. */
export function madeWith({ provenance }: Plan): string {
  const { quantizer, options: made, statistics, rebudgeted } = MadeWith.parse(provenance);
  const { weights, correct, budget } = made;
  const hasRows = correct !== "none" && correct !== "low_rank";
  const hasFactors = correct !== "none" && correct !== "sparse";
  // A name that is a whole format leaves no group open.
  const hasGroup = weights !== undefined && parseFormat(weights) === undefined;
  const name = quantizer?.split(",")[0];
  const options = {
    weights,
    group: hasGroup ? made.group : undefined,
    head: made.head,
    quantizer: name === "round-to-nearest" ? "rtn" : name,
    correct,
    budget: budget === undefined || correct === "none" ? undefined : budgetText(budget),
    choice: hasRows ? made.choice : undefined,
    "residual-width": hasRows ? made.residualWidth : undefined,
    factors: hasFactors && statistics !== undefined ? made.whitening : undefined,
    "factor-dtype": hasFactors ? made.factorDType : undefined,
    "max-rank": hasFactors ? made.maxRank : undefined,
  };
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  const texts = statistics?.texts.map(({ name }) => name).join(", ");
  return [
    given.map(([option, value]) => `--${option}${TIED}${value}`).join(" "),
    rebudgeted?.from === undefined ? undefined : `rebudgeted from ${budgetText(rebudgeted.from)}`,
    statistics === undefined ? undefined : `calibrated on ${statistics.tokens} tokens of ${texts}`,
  ].filter(Boolean).join("; ");
}

const MadeBudget = z.object({
  kind: z.string(),
  share: z.number().optional(),
  rank: z.number().optional(),
  channels: z.number().optional(),
}).optional().catch(undefined);
const MadeText = z.string().optional().catch(undefined);
const MadeNumber = z.number().optional().catch(undefined);
/** Of provenance, which is for people: what does not fit is left out. */
const MadeWith = z.object({
  quantizer: MadeText,
  options: z.object({
    weights: MadeText,
    group: MadeNumber,
    head: MadeText,
    correct: MadeText,
    budget: MadeBudget,
    choice: MadeText,
    residualWidth: MadeNumber,
    whitening: MadeText,
    factorDType: MadeText,
    maxRank: MadeNumber,
  }).catch({}),
  statistics: z.object({ tokens: z.number(), texts: z.array(z.object({ name: z.string() })) }).optional()
    .catch(undefined),
  rebudgeted: z.object({ from: MadeBudget }).optional().catch(undefined),
});

function budgetText({ kind, share, rank, channels }: NonNullable<z.infer<typeof MadeBudget>>): string {
  if (share !== undefined) return `${kind}:${Number((100 * share).toPrecision(4))}%`;
  return [rank === undefined ? "" : `rank:${rank}`, channels === undefined ? "" : `channels:${channels}`]
    .filter(Boolean).join(",");
}
