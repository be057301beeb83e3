/** What run and chat share: options that say how tokens are chosen and where an answer ends. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { HcinferError } from "../compiler/errors.ts";
import type { SamplingDefaults } from "../runtime/generation_config.ts";
import { Sampler, type SamplerOptions } from "../runtime/sampler.ts";
import { between, whole } from "./arguments.ts";

/** Tokens of a prompt between two looks at its progress: within 5 % of the speed of longer chunks. */
export const PROMPT_CHUNK = 256;

export interface GeneratingOptions extends Partial<Record<keyof SamplerOptions, number>> {
  readonly stop?: readonly string[];
}

/** The command with the options of `GeneratingOptions`. */
export function withGeneratingOptions(command: Command): Command {
  const penalties: readonly [string, number, number, string][] = [
    ["repetition", 0.01, 100, "divides what prompt and answer have already; 1: none"],
    ["frequency", -2, 2, "for every time the answer has a token; 0: none"],
    ["presence", -2, 2, "once for every token the answer has; 0: none"],
  ];
  command
    .addOption(
      new Option("--temperature <t>", "0 takes the most probable token (default: the model's)")
        .argParser(between(0, 1000)),
    )
    .addOption(
      new Option("--top-k <n>", "sample from the n most probable tokens; 0: all (default: the model's)")
        .argParser(whole(0)),
    )
    .addOption(
      new Option("--top-p <p>", "from the fewest whose probabilities reach p (default: the model's)")
        .argParser(between(Number.MIN_VALUE, 1)),
    )
    .addOption(
      new Option("--min-p <p>", "from those p times as probable as the best").argParser(between(0, 1)),
    )
    .addOption(new Option("--seed <s>", "the same seed gives the same text").argParser(whole(0)))
    .addOption(
      new Option("--stop <text>", "ends the answer, which lacks it; repeatable").argParser(stopText),
    );
  for (const [name, least, most, does] of penalties) {
    command.addOption(new Option(`--${name}-penalty <p>`, does).argParser(between(least, most)));
  }
  return command;
}

function stopText(text: string, before: readonly string[] = []): string[] {
  if (text === "") throw new InvalidArgumentError("Expected at least one character.");
  return [...before, text];
}

const NAMES = {
  temperature: "temperature",
  topK: "top-k",
  topP: "top-p",
  minP: "min-p",
  repetitionPenalty: "repetition penalty",
  frequencyPenalty: "frequency penalty",
  presencePenalty: "presence penalty",
  seed: "seed",
} as const satisfies Record<keyof SamplerOptions, string>;
const FIELDS = Object.keys(NAMES) as (keyof SamplerOptions)[];

/** A sampler and, where the model's defaults decide something, a line that says what. */
export interface ChosenSampler {
  readonly sampler: Sampler;
  readonly note: string | undefined;
}

/**
 * What was asked for before what the model's makers chose.
 * @throws {HcinferError} "usage": an option that has no effect because nothing is sampled
 */
export function chosenSampler(options: GeneratingOptions, defaults: SamplingDefaults): ChosenSampler {
  const asked = FIELDS.filter((field) => options[field] !== undefined);
  const temperature = options.temperature ?? defaults.temperature ?? 0;
  const needSampling = (["topK", "topP", "minP", "seed"] as const).filter((field) => asked.includes(field));
  if (temperature === 0 && needSampling.length > 0) {
    const names = needSampling.map((field) => `--${NAMES[field]}`);
    throw new HcinferError(
      "usage",
      `${names.join(", ")} need${names.length > 1 ? "" : "s"} sampling: add --temperature 0.8, say`,
    );
  }
  const given = Object.fromEntries(asked.map((field) => [field, options[field]]));
  const used = FIELDS.filter((field) => {
    return options[field] === undefined && field in defaults &&
      (temperature > 0 || field === "repetitionPenalty");
  });
  const values: SamplerOptions = { ...defaults, ...given, temperature };
  const text = used.map((field) => `${NAMES[field]} ${values[field]}`).join(", ");
  const note = used.includes("temperature") ? `${text} (--temperature 0 takes the most probable)` : text;
  return {
    sampler: new Sampler(values),
    note: used.length > 0 ? `the model's sampling: ${note}` : undefined,
  };
}
