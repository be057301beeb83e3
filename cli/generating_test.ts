import assert from "node:assert/strict";
import { Command } from "commander";
import { HcinferError } from "../compiler/errors.ts";
import type { SamplingDefaults } from "../runtime/generation_config.ts";
import { chosenSampler, type GeneratingOptions, withGeneratingOptions } from "./generating.ts";

const MODEL: SamplingDefaults = { temperature: 0.6, topK: 20, topP: 0.95, repetitionPenalty: 1.05 };

function parsed(...args: string[]): GeneratingOptions {
  const command = withGeneratingOptions(new Command()).exitOverride().configureOutput({ writeErr: () => {} });
  return command.parse(args, { from: "user" }).opts();
}

function chosen(args: string[], defaults: SamplingDefaults = MODEL) {
  const { sampler, note } = chosenSampler(parsed(...args), defaults);
  const { temperature, topK, topP } = sampler;
  return { temperature, topK, topP, seed: sampler.seed, note };
}

Deno.test("the model's defaults hold where nothing else is asked for, and are said", () => {
  const { seed: _, ...all } = chosen([]);
  assert.deepEqual(all, {
    temperature: 0.6,
    topK: 20,
    topP: 0.95,
    note: "the model's sampling: temperature 0.6, top-k 20, top-p 0.95, repetition penalty 1.05 " +
      "(--temperature 0 takes the most probable)",
  });
  const some = chosen(["--temperature", "1", "--top-k", "0", "--seed", "3"]);
  assert.deepEqual([some.temperature, some.topK, some.topP, some.seed], [1, 0, 0.95, 3]);
  assert.equal(some.note, "the model's sampling: top-p 0.95, repetition penalty 1.05");
  // Greedy: only what has an effect is said.
  const greedy = chosen(["--temperature", "0"]);
  assert.deepEqual([greedy.temperature, greedy.note], [0, "the model's sampling: repetition penalty 1.05"]);
  assert.equal(chosen(["--temperature", "0", "--repetition-penalty", "1"]).note, undefined);
  assert.deepEqual([chosen([], {}).temperature, chosen([], {}).note], [0, undefined]);
});

Deno.test("a seed or a filter without sampling is refused", () => {
  const refused = (args: string[], defaults: SamplingDefaults, message: RegExp) =>
    assert.throws(
      () => chosen(args, defaults),
      (error) => error instanceof HcinferError && error.kind === "usage" && message.test(error.message),
    );
  refused(["--seed", "1"], {}, /^--seed needs sampling: add --temperature 0\.8, say$/);
  refused(["--seed", "1", "--top-p", "0.5"], {}, /^--top-p, --seed need sampling/);
  refused(["--min-p", "0.5", "--temperature", "0"], MODEL, /^--min-p needs sampling/);
  assert.equal(chosen(["--seed", "1"]).seed, 1);
});

Deno.test("options of generation", () => {
  assert.deepEqual(parsed("--stop", "a", "--stop", "\nb").stop, ["a", "\nb"]);
  assert.deepEqual(parsed("--presence-penalty", "-1", "--frequency-penalty", "0.5"), {
    presencePenalty: -1,
    frequencyPenalty: 0.5,
  });
  for (
    const wrong of [["--stop", ""], ["--top-p", "0"], ["--repetition-penalty", "0"], [
      "--presence-penalty",
      "3",
    ]]
  ) {
    assert.throws(() => parsed(...wrong), /Expected|invalid/, wrong.join(" "));
  }
});
