/**
 * Sequences on the cpu executor: whatever shares a step, a page or a fork with a sequence, its logits are bit for bit
 * those of the same tokens alone.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Bundle } from "../../compiler/bundle.ts";
import type { CompileOptions } from "../../compiler/compile.ts";
import { HcinferError } from "../../compiler/errors.ts";
import { PAGE_POSITIONS } from "../../compiler/memory.ts";
import type { Run, StepKind } from "../../runtime/executor.ts";
import { type CpuExecutor, createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import type { PagedSequence } from "../../runtime/executors/pages.ts";
import { Session } from "../../runtime/session.ts";
import { assertSameBits, stepOne } from "../fixtures/steps.ts";
import { RandomModels, SHAPES, someTokens } from "./random_models.ts";

const CONTEXT = 320;
const SHAPE = { ...SHAPES["qwen3, 4 heads on 2, tied"], context: CONTEXT };

const FORMS = {
  none: { weights: "q8", correct: "none" },
  sparse: { weights: "q3", correct: "sparse", budget: { kind: "channels", channels: 5 } },
  low_rank: { weights: "q4", correct: "low_rank", budget: { kind: "rank", rank: 3 } },
  both: { weights: "q2", correct: "both", budget: { kind: "rank+channels", rank: 2, channels: 9 } },
} as const satisfies Record<string, Partial<CompileOptions>>;

/** Tokens as they were run. */
type History = readonly { readonly token: number; readonly as: StepKind }[];

function history(tokens: ArrayLike<number>, as: StepKind): History {
  return Array.from(tokens, (token) => ({ token, as }));
}

/** Logits after the last token of what a new sequence of its own is given. */
function alone(cpu: CpuExecutor, text: History): Float32Array {
  using sequence = cpu.sequence();
  let logits = new Float32Array(0);
  for (let start = 0, end = 1; start < text.length; start = end++) {
    while (end < text.length && text[end]!.as === text[start]!.as) end++;
    const tokens = text.slice(start, end).map(({ token }) => token);
    logits = Float32Array.from(stepOne(cpu, sequence, tokens, { as: text[start]!.as, logits: "last" }));
  }
  return logits;
}

/** The plainest executor: what all others are compared with. */
function plain(bundle: Bundle): CpuExecutor {
  return createCpuExecutor(bundle, { threads: 1, corrections: "inline" });
}

for (const [form, options] of Object.entries(FORMS)) {
  Deno.test(`${form}: decoded tokens of five sequences and a chunk of a prompt share steps`, async () => {
    using models = new RandomModels();
    using bundle = await models.compile(SHAPE, { group: 32, ...options });
    const { vocabularySize } = bundle.plan.model;
    using oracle = plain(bundle);
    const prompts = [1, 17, 63, 64, 130, 10].map((n, i) => someTokens(n, vocabularySize, i + 1));
    const [chunk, next] = [someTokens(70, vocabularySize, 7), someTokens(12, vocabularySize, 8)];
    // Of each sequence, what is run in the step after the prompts and in the one after that.
    const first = prompts.map((_, i) => i < 5 ? history([next[i]!], "decode") : history(chunk, "prefill"));
    const second = prompts.map((_, i) => history([next[6 + i]!], "decode"));
    const texts = prompts.map((prompt) => history(prompt, "prefill"));
    const expected = [
      texts.map((text, i) => alone(oracle, [...text, ...first[i]!])),
      texts.map((text, i) => alone(oracle, [...text, ...first[i]!, ...second[i]!])),
    ];
    for (const threads of [1, 2]) {
      for (const corrections of ["inline", "async"] as const) {
        const options = { threads, corrections, cachePositions: 6 * CONTEXT };
        using cpu = createCpuExecutor(bundle, options);
        const sequences = prompts.map((prompt) => {
          const sequence = cpu.sequence();
          stepOne(cpu, sequence, prompt, { as: "prefill", logits: "none" });
          return sequence;
        });
        [first, second].forEach((added, n) => {
          const runs = sequences.map((sequence, i): Run => ({
            sequence,
            position: sequence.length,
            tokens: Int32Array.from(added[i]!, ({ token }) => token),
            as: added[i]![0]!.as,
            logits: "last",
          }));
          cpu.step({ runs }).forEach((logits, i) => {
            const what = `${threads} threads, ${corrections}, step ${n}, sequence ${i}`;
            assertSameBits(logits, expected[n]![i]!, what);
          });
        });
      }
    }
  });
}

Deno.test("every run of a mixed step gets the rows of logits that it asks for", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.sparse });
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "async", cachePositions: 6 * CONTEXT });
  using oracle = plain(bundle);
  const tokens = someTokens(9, cpu.model.vocabularySize);
  const choices = (["decode", "prefill"] as const).flatMap((as) =>
    (["all", "none", "last"] as const).map((logits) => ({ as, logits }))
  );
  const sequences = choices.map(() => cpu.sequence());
  const runs = choices.map((choice, i) => ({ sequence: sequences[i]!, position: 0, tokens, ...choice }));
  const found = cpu.step({ runs: runs.toReversed() }).toReversed();
  runs.forEach(({ as, logits }, i) => {
    using sequence = oracle.sequence();
    const expected = stepOne(oracle, sequence, tokens, { as, logits });
    assertSameBits(found[i]!, expected, `${as}, ${logits}`);
  });
});

Deno.test("a step of as many runs as there may be", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.both });
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "async", cachePositions: 64 * 64 });
  using oracle = plain(bundle);
  const runs = Array.from({ length: 64 }, (_, i): Run => ({
    sequence: cpu.sequence(),
    position: 0,
    tokens: Int32Array.of(i % cpu.model.vocabularySize),
    as: i % 3 === 0 ? "prefill" : "decode",
    logits: "last",
  }));
  cpu.step({ runs }).forEach((logits, i) => {
    const { tokens, as } = runs[i]!;
    assertSameBits(logits, alone(oracle, history(tokens, as)), `run ${i}`);
  });
  assert.equal(cpu.freePositions, 0);
});

Deno.test("forks inside a page and at its edges go on like sequences of their own", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.sparse });
  const { vocabularySize } = bundle.plan.model;
  using oracle = plain(bundle);
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "async", cachePositions: 8 * CONTEXT });
  const all = cpu.freePositions;
  for (const length of [0, 1, 40, 63, 64, 65, 127, 128, 200]) {
    const base = history(someTokens(length, vocabularySize), "prefill");
    const root = cpu.sequence();
    if (length > 0) stepOne(cpu, root, base.map((t) => t.token), { as: "prefill", logits: "none" });
    const child = root.fork();
    const grandchild = child.fork();
    const held = all - cpu.freePositions;
    assert.equal(held, Math.ceil(length / PAGE_POSITIONS) * PAGE_POSITIONS, "forks take no page");
    const family = [root, child, grandchild].map((sequence, i) => ({
      sequence,
      added: history(someTokens(70, vocabularySize, 20 + i), i === 1 ? "decode" : "prefill"),
    }));
    for (const [from, to] of [[0, 1], [1, 70]] as const) {
      for (const { sequence, added } of family) {
        const part = added.slice(from, to);
        const logits = stepOne(cpu, sequence, part.map((t) => t.token), { as: part[0]!.as, logits: "last" });
        assertSameBits(logits, alone(oracle, [...base, ...added.slice(0, to)]), `forked at ${length}`);
      }
    }
    // A fork of what has been written since, closed in another order than made.
    const late = child.fork();
    const more = stepOne(cpu, late, [5]).slice();
    child[Symbol.dispose]();
    assertSameBits(more, alone(oracle, [...base, ...family[1]!.added, { token: 5, as: "decode" }]), "late");
    root[Symbol.dispose]();
    late[Symbol.dispose]();
    assertSameBits(
      stepOne(cpu, grandchild, [3]),
      alone(oracle, [...base, ...family[2]!.added, { token: 3, as: "decode" }]),
      "the last of the family",
    );
    grandchild[Symbol.dispose]();
    assert.equal(cpu.freePositions, all, "all pages come back");
  }
});

Deno.test("scattered pages: sequences that grow in turns, and go back into own and shared pages", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.both });
  const { vocabularySize } = bundle.plan.model;
  using oracle = plain(bundle);
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "inline", cachePositions: 8 * CONTEXT });
  const texts = [1, 2, 3].map((seed) => history(someTokens(230, vocabularySize, seed), "prefill"));
  const sequences = texts.map(() => cpu.sequence());
  for (let start = 0; start < 230; start += 23) {
    sequences.forEach((sequence, i) => {
      const tokens = texts[i]!.slice(start, start + 23).map((t) => t.token);
      stepOne(cpu, sequence, tokens, { as: "prefill", logits: "none" });
    });
  }
  // Each sequence's pages lie apart.
  for (const { pages } of sequences) assert.ok(pages.slice(1).every((page, i) => page !== pages[i]! + 1));
  const fork = sequences[0]!.fork();
  for (const position of [200, 192, 191, 128, 65, 64, 1, 0]) {
    const sequence: PagedSequence = sequences[0]!;
    const logits = stepOne(cpu, sequence, [7, 8], { position, logits: "last" });
    const text = [...texts[0]!.slice(0, position), ...history([7, 8], "decode")];
    assertSameBits(logits, alone(oracle, text), `back to ${position}`);
    assert.equal(sequence.length, position + 2);
  }
  // What the others hold is what it was.
  assertSameBits(stepOne(cpu, fork, [4]), alone(oracle, [...texts[0]!, ...history([4], "decode")]), "fork");
  for (const i of [1, 2]) {
    const text = [...texts[i]!, ...history([4], "decode")];
    assertSameBits(stepOne(cpu, sequences[i]!, [4]), alone(oracle, text), `sequence ${i}`);
  }
});

Deno.test("any history of steps, forks, goings back and closings, in a cache that is often full", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.both });
  const { vocabularySize } = bundle.plan.model;
  using oracle = plain(bundle);
  const pick = fc.nat(1000);
  const run = fc.record({
    pick,
    /** Share of the sequence that stays, in eighths. */
    kept: fc.constantFrom(8, 8, 8, 5, 0),
    count: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 66 })),
    as: fc.constantFrom<StepKind>("decode", "prefill"),
    seed: fc.integer({ min: 1, max: 1000 }),
  });
  const operation = fc.oneof(
    { weight: 5, arbitrary: fc.record({ runs: fc.array(run, { minLength: 1, maxLength: 3 }) }) },
    { weight: 2, arbitrary: fc.record({ fork: pick }) },
    { weight: 1, arbitrary: fc.record({ close: pick }) },
  );
  let refusals = 0, steps = 0;
  fc.assert(
    fc.property(fc.array(operation, { minLength: 5, maxLength: 25 }), (operations) => {
      using cpu = createCpuExecutor(bundle, {
        threads: 2,
        corrections: "async",
        contextLength: 200,
        cachePositions: 256,
      });
      const all = cpu.freePositions;
      const open = [1, 2, 3].map((): { sequence: PagedSequence; text: History } => (
        { sequence: cpu.sequence(), text: [] }
      ));
      for (const operation of operations) {
        if ("fork" in operation) {
          const from = open[operation.fork % open.length]!;
          open.push({ sequence: from.sequence.fork(), text: from.text });
        } else if ("close" in operation) {
          const [gone] = open.splice(operation.close % open.length, 1);
          gone!.sequence[Symbol.dispose]();
          if (open.length === 0) open.push({ sequence: cpu.sequence(), text: [] });
        } else {
          const chosen = new Map(operation.runs.map((run) => [open[run.pick % open.length]!, run]));
          const planned = [...chosen].map(([entry, { kept, count, as, seed }]) => {
            const position = Math.floor(entry.text.length * kept / 8);
            const tokens = someTokens(Math.min(count, 200 - position), vocabularySize, seed);
            return { entry, position, tokens, as };
          }).filter(({ tokens }) => tokens.length > 0);
          if (planned.length === 0) continue;
          const runs = planned.map(({ entry, position, tokens, as }): Run => (
            { sequence: entry.sequence, position, tokens, as, logits: "last" }
          ));
          const free = cpu.freePositions;
          let logits: readonly Float32Array[];
          try {
            logits = cpu.step({ runs });
          } catch (error) {
            assert.ok(error instanceof HcinferError && /the cache holds 256/.test(error.message), `${error}`);
            assert.equal(cpu.freePositions, free);
            for (const { sequence, text } of open) assert.equal(sequence.length, text.length);
            refusals++;
            continue;
          }
          steps++;
          planned.forEach(({ entry, position, tokens, as }, i) => {
            entry.text = [...entry.text.slice(0, position), ...history(tokens, as)];
            assert.equal(entry.sequence.length, entry.text.length);
            assertSameBits(logits[i]!, alone(oracle, entry.text), `run ${i} of ${planned.length}`);
          });
        }
      }
      for (const { sequence } of open) sequence[Symbol.dispose]();
      assert.equal(cpu.freePositions, all);
    }),
    { numRuns: 40 },
  );
  assert.ok(refusals > 0 && steps > refusals, `${steps} steps, ${refusals} refused`);
});

Deno.test("sessions on one executor: each as if alone, forks and reused prefixes too", async () => {
  using models = new RandomModels();
  using bundle = await models.compile(SHAPE, { group: 32, ...FORMS.sparse });
  const { vocabularySize } = bundle.plan.model;
  using oracle = plain(bundle);
  using cpu = createCpuExecutor(bundle, { threads: 2, corrections: "async", cachePositions: 4 * CONTEXT });
  const [one, two] = [someTokens(90, vocabularySize, 1), someTokens(33, vocabularySize, 2)];
  using first = new Session(cpu, { chunk: 20 });
  using second = new Session(cpu);
  const a = (await first.prefill(one)).slice();
  assertSameBits(await second.prefill(two), alone(oracle, history(two, "prefill")), "second prompt");
  assertSameBits(a, alone(oracle, history(one, "prefill")), "first prompt");
  const decoded = (prompt: Int32Array, ...tokens: number[]) =>
    alone(oracle, [...history(prompt, "prefill"), ...history(tokens, "decode")]);
  assertSameBits(first.decode(3), decoded(one, 3), "first");
  assertSameBits(second.decode(4), decoded(two, 4), "second");
  using fork = first.fork();
  assertSameBits(fork.decode(5), decoded(one, 3, 5), "fork");
  assertSameBits(first.decode(6), decoded(one, 3, 6), "first after the fork");
  // What was decoded is another thing as a prompt: only the prompt before it is reused.
  const longer = Int32Array.of(...one, 3, 5, 9);
  assert.equal(fork.reuse(longer), one.length);
  const logits = await fork.prefill(longer.subarray(fork.position));
  assertSameBits(logits, alone(oracle, history(longer, "prefill")), "reused");
  fork.rewind(10);
  assertSameBits(fork.decode(1), decoded(one.subarray(0, 10), 1), "gone back");
  assertSameBits(first.decode(7), decoded(one, 3, 6, 7), "first at last");
});
