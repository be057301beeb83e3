/** What inspect prints: the ranking, windows by kind, what is measured beside it, and the words for all of them. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { readPlan } from "../compiler/bundle.ts";
import { predictPlan } from "../compiler/inspect.ts";
import { laplaceShare } from "../compiler/passes/gain.ts";
import type { Plan } from "../compiler/plan.ts";
import type { Report } from "../compiler/report.ts";
import { assertFailed, assertWorked, hcinfer } from "../tests/command_line.ts";
import { withLetterBundle as withBundle } from "../tests/fixtures/letter_model.ts";
import { tinyPlan } from "../tests/fixtures/passes.ts";
import type { Measured } from "./inspect_measure.ts";
import { rankingText } from "./inspect_ranking.ts";
import { kindTable, lossTable, windowTable } from "./inspect_windows.ts";
import { madeWith } from "./made_with.ts";
import { correctedError, errorLeft, figures, planSummary, storesMore, windows, wrapped } from "./summary.ts";

function assertNarrow(text: string): void {
  assert.deepEqual(text.split("\n").filter((line) => line.length > 80), []);
}

Deno.test("inspect: kinds first, then windows by kind, or every one with --windows", () =>
  withBundle(async (bundle) => {
    const shown = await hcinfer(["inspect", bundle]);
    assertWorked(shown, /^$/);
    assert.match(shown.out, /^Where a token's time and bytes go\nkind +nodes +bytes read +us +share\n/);
    assert.match(shown.out, /^output head +1 /m);
    assert.match(shown.out, /^all +\d+ .* 100\.0 %$/m);
    assert.match(shown.out, /^gate_up +2 q3g32 /m);
    assert.doesNotMatch(shown.out, /^0\.qkv|^ +layer, us|sparse_residual in|only lane|measured us/m);
    assert.match(
      shown.out,
      /^made with {3}--weights q3 --group 32 --head q8 --quantizer rtn --correct sparse$/m,
    );
    const all = await hcinfer(["inspect", bundle, "--windows"]);
    assert.match(all.out, /^0\.qkv +q3g32 /m);
    assert.match(all.out, /^ +layer, us/m);
    assertNarrow(shown.out);
    assertNarrow(all.out);
  }));

Deno.test("inspect --measure: decodes, and shows what every kind took", () =>
  withBundle(async (bundle, folder, model) => {
    const shown = await hcinfer(["inspect", bundle, "--measure", "--threads", "1"]);
    assertWorked(shown, /^$/);
    assert.match(shown.out, /^kind +nodes +bytes read +predicted us +measured us +share +GB\/s$/m);
    assert.match(
      shown.out,
      /^measured on cpu \(\w+, 1 threads\), corrections in line, 63 positions\s+cached: medians/m,
    );
    assertNarrow(shown.out);
    const { measured, prediction } = JSON.parse(
      (await hcinfer(["inspect", bundle, "--measure", "--threads", "1", "--json"])).out,
    ) as { measured: Measured; prediction: ReturnType<typeof predictPlan> };
    assert.deepEqual(
      measured.kinds.map(({ kind }) => kind).sort(),
      prediction.kinds.map(({ kind }) => kind).sort(),
    );
    assert.deepEqual([measured.mode, prediction.kindsMode, prediction.threads], ["inline", "inline", 1]);
    const sum = measured.kinds.reduce((total, { microseconds }) => total + microseconds, 0);
    assert.ok(
      measured.microseconds > 0 && sum > 0.5 * measured.microseconds && sum < 1.5 * measured.microseconds,
    );
    assertFailed(await hcinfer(["inspect", bundle, "--threads", "1"]), 2, /nothing runs without --measure/);
    assertFailed(
      await hcinfer(["inspect", bundle, "--measure", "--gpu-memory", "1GiB"]),
      2,
      /cannot be used with/,
    );
    // Without corrections, and planned for a GPU.
    const [plain, planned] = [join(folder, "plain"), join(folder, "planned")];
    await hcinfer(["compile", model, "-o", plain, "--correct", "none"]);
    const { out } = await hcinfer(["inspect", plain, "--measure"]);
    assert.match(out, /^measured on .*, no\s+corrections,/m);
    assert.doesNotMatch(out, /^corrections +\d/m);
    assert.doesNotMatch(out, /after correction|^warning/m);
    await hcinfer(["compile", model, "-o", planned, "--machine", "rtx-4060-laptop"]);
    assertFailed(await hcinfer(["inspect", planned, "--measure"]), 2, /this plan has nodes on a GPU/);
  }));

Deno.test("what was measured ranks kinds, wherever the prediction put them", () => {
  const prediction = predictPlan(tinyPlan(), { kindsMode: "inline" });
  const { kinds } = prediction;
  const measured: Measured = {
    device: "cpu (avx2, 2 threads)",
    threads: 2,
    mode: "inline",
    context: 100,
    steps: 64,
    microseconds: 1000,
    kinds: kinds.map(({ kind }, i) => ({ kind, microseconds: 10 * (i + 1) })),
  };
  const order = (text: string) =>
    text.split("\n").slice(2, 2 + kinds.length).map((line) => line.split(/ {2,}/)[0]);
  assert.deepEqual(order(rankingText(prediction)), kinds.map(({ kind }) => kind));
  const text = rankingText(prediction, measured);
  assert.deepEqual(order(text), kinds.map(({ kind }) => kind).reverse());
  const { kind, bytesRead } = kinds.at(-1)!;
  const rate = (bytesRead / (10 * kinds.length) / 1e3).toFixed(1);
  assert.match(
    text,
    new RegExp(`^${kind} .* ${10 * kinds.length}\\.0 +${kinds.length}\\.0 % +${rate}$`, "m"),
  );
  assertNarrow(text);
});

/** A letter bundle's plan and report, with changes of its windows: a format of the first, losses of all. */
function changed(plan: Plan, report: Report, format: string): { plan: Plan; report: Report } {
  const [first, ...rest] = plan.weights.filter((w) => windows(plan).some(({ weight }) => weight === w));
  const weights = plan.weights.map((w) => w === first ? { ...w, format } : w);
  assert.ok(rest.length > 0);
  const predicted = { alone: 0.4, corrected: 0.1, chosen: 3 };
  return {
    plan: { ...plan, weights },
    report: {
      ...report,
      predicted: { alone: 3.2, corrected: 0.8 },
      windows: report.windows.map((window, i) => ({
        ...window,
        predicted: { ...predicted, alone: i === 0 ? 0.5 : 0.4 },
      })),
    },
  };
}

Deno.test("a kind's line: formats are counted, numbers are ranges, bytes are sums", () =>
  withBundle((bundle) => {
    const { plan, report } = readPlan(bundle);
    const mixed = changed(plan, report, "q4g32");
    const all = windows(mixed.plan);
    const kind = all[0]!.name.replace(/^\d+\./, "");
    const text = kindTable(all, mixed.report);
    assert.match(text, new RegExp(`^${kind} +1 q4g32 .*\\n +1 q3g32$`, "m"));
    const errors = all.filter(({ name }) => name.endsWith(`.${kind}`))
      .map(({ weight }) => Math.max(...weight.sections.map((section) => 100 * section.relativeError)))
      .sort((a, b) => a - b).map((error) => error.toPrecision(2));
    const shown = errors[0] === errors[1] ? errors[0]! : errors.join("-");
    assert.ok(text.split("\n").some((line) => line.startsWith(kind) && line.includes(` ${shown} `)), text);
    const losses = lossTable(all, mixed.report);
    assert.match(losses, new RegExp(`^${kind} +0\\.9 +0\\.2 +0\\.4-0\\.5 +0\\.1$`, "m"));
    assert.equal(lossTable(all, report), "");
    for (const table of [text, losses, windowTable(all, mixed.report)]) assertNarrow(table);
    // Both forms, with as many digits as there may be.
    const wide = all.map((window, i) => ({
      ...window,
      weight: { ...window.weight, format: "q4g128", bytes: 987.6e6 },
      channels: i < 4 ? 0.195 : 1234.5,
      rank: i < 4 ? 3 : 64,
      bytesStored: 987.6e6,
      bytesRead: 987.6e3,
    }));
    const both = kindTable(wide, mixed.report);
    assert.match(both, /^kind +windows +bytes +error +left +rows, +stored +read\n +rank$/m);
    assert.match(both, new RegExp(`^${kind} .* 0\\.2-1235, .*\\n +3-64$`, "m"));
    assertNarrow(both);
    assertNarrow(windowTable(wide, mixed.report));
    // Without corrections there is nothing to say of them.
    const bare = all.map((window) => ({ ...window, channels: 0, rank: 0, bytesStored: 0, bytesRead: 0 }));
    assert.match(kindTable(bare, report), /^kind +windows +bytes +error\n/);
    return Promise.resolve();
  }));

Deno.test("the error that is left: predicted losses with a calibration, Laplace inputs without", () =>
  withBundle((bundle) => {
    const { plan, report } = readPlan(bundle);
    const [window] = windows(plan);
    const { inputs } = window!.weight;
    assert.equal(errorLeft(window!, report), 1 - laplaceShare(window!.channels / inputs));
    assert.equal(errorLeft({ ...window!, channels: inputs }, report), 0);
    // Factors: the energy of the components that are read.
    const spectrum = (energy: number) => ({
      ...report,
      windows: report.windows.map((w) => ({ ...w, errorEnergy: 4, spectrum: [Math.sqrt(energy), 0] })),
    });
    const factors = { ...window!, channels: 0, rank: 1 };
    assert.ok(Math.abs(errorLeft(factors, spectrum(1)) - 0.75) < 1e-6);
    const { report: fitted } = changed(plan, report, "q3g32");
    assert.equal(errorLeft(window!, fitted), 0.1 / 0.5);
    const { relativeError } = figures(plan);
    assert.ok(correctedError(plan, report) > 0 && correctedError(plan, report) < relativeError);
    assert.match(
      planSummary(plan, report),
      /^error {7}\S+ % of the weights' energy, about \S+ % after correction$/m,
    );
    return Promise.resolve();
  }));

Deno.test("a bundle that stores more than the next wider format is warned of", () =>
  withBundle((bundle) => {
    const { plan } = readPlan(bundle);
    const { backboneBytes } = figures(plan);
    // 3 bits and 2 x 16 a group of 32 become 4 bits and as much.
    const wider = 5 / 4 * backboneBytes;
    const storing = (bytes: number): Plan => {
      const [first, ...rest] = plan.windows;
      const residual = (bytes: number) => ({ width: 4, bytes });
      const stores = [
        { ...first!, residual: residual(bytes) },
        ...rest.map((store) => ({ ...store, residual: residual(0) })),
      ];
      return { ...plan, windows: stores };
    };
    assert.equal(storesMore(storing(wider - backboneBytes)), undefined);
    const said = storesMore(storing(wider - backboneBytes + 1));
    assert.match(said!, /^backbone and corrections store .*, more than q4g32 without corrections would \(/);
    assert.equal(storesMore(storing(0)), undefined);
    const summary = planSummary(storing(wider));
    assert.match(summary, /^warning {5}backbone and corrections store /m);
    assertNarrow(summary);
    return Promise.resolve();
  }));

Deno.test("a bundle was made with the options that matter for it, as compile takes them", () => {
  const plan = tinyPlan();
  const of = (options: object, more: object = {}) =>
    wrapped(madeWith({ ...plan, provenance: { options, quantizer: "gptq, 3 sweeps", ...more } }), 0);
  const stored = { weights: "q3s", group: 64, head: "q8", residualWidth: 4, factorDType: "i8", maxRank: 64 };
  const budget = { kind: "bytes", share: 0.1 };
  assert.equal(
    of({ ...stored, budget, correct: "none" }),
    "--weights q3s --head q8 --quantizer gptq --correct none",
  );
  assert.match(
    of({ ...stored, budget, correct: "low_rank", weights: "q3" }).replaceAll("\n", " "),
    /^--weights q3 --group 64 .* --correct low_rank --budget bytes:10% --factor-dtype i8 --max-rank 64$/,
  );
  // Provenance is not trusted to be what compile writes.
  assert.equal(of({ weights: 3 }, { quantizer: [] }), "");
});
