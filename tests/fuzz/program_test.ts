/** Lanes of random graphs as programs: nothing that runs at once conflicts, and every read means what was written. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Plan } from "../../compiler/plan.ts";
import { layout } from "../../compiler/passes/layout.ts";
import { lower } from "../../compiler/passes/lower.ts";
import { formatText } from "../../compiler/weights/format.ts";
import { inventory } from "../../compiler/weights/inventory.ts";
import { onDevices } from "../fixtures/passes.ts";
import { compensated, packingOf, planOf, profile } from "./bundle.ts";
import { arbitraryScript, graphOf, numbers, type Script } from "./graphs.ts";
import { findRace, type Programs, programsOf, STEPS } from "./races.ts";

const MODES = ["async", "inline", "off"] as const;

/** A plan without numbers. */
function plan(script: Script, packing: readonly number[]): Plan {
  const model = graphOf(script);
  const logical = compensated(model.graph, packingOf(packing));
  const { matrices } = inventory(logical);
  return planOf(model, lower(logical, { profile }), {
    weights: matrices.map(({ name, sections, rows, inputs, format }) => ({
      tensor: `${name}.packed`,
      format: formatText(format!),
      rows,
      inputs,
      bytes: 1,
      sections: sections.map(({ path, outputs }) => ({ path, firstRow: 0, rows: outputs, relativeError: 0 })),
    })),
    vectors: {},
    windows: matrices.flatMap(({ window, inputs, rows }) =>
      window === undefined
        ? []
        : [{ window, inputs, outputs: rows, errorEnergy: 1, residual: null, factors: null }]
    ),
  });
}

function race(programs: Programs): string | undefined {
  return STEPS.map((step) => findRace(programs, step)).find((found) => found !== undefined);
}

const plans = fc.tuple(arbitraryScript, numbers(8))
  .map(([script, packing]) => plan(script, packing));

for (const mode of MODES) {
  Deno.test(`${mode}: nothing that runs at once conflicts, and reads see what they mean`, () => {
    fc.assert(fc.property(plans, (plan) => assert.equal(race(programsOf(plan, mode)), undefined)), {
      numRuns: 40,
    });
  });
}

Deno.test("on two devices: nothing that runs at once conflicts, and reads see what they mean", () => {
  const devices = fc.infiniteStream(fc.boolean());
  fc.assert(
    fc.property(plans, devices, (plan, onGpu) => {
      const { graph, lanes } = onDevices(plan.graph, () => onGpu.next().value === true);
      const placed = { ...plan, graph, lanes, memory: layout(graph) };
      assert.equal(race(programsOf(placed, "async")), undefined);
    }),
    { numRuns: 40 },
  );
});

/** Two layers of attention and feed-forward, corrected in both forms. */
const SCRIPT: Script = { head: [0, 1], steps: [[1, 0, 0, 0, 0, 1], [2, 0], [1, 0], [2, 0]] };
const BOTH = [1, 0, 0, 0, 0, 1, 1, 0, 7];

Deno.test("a program without one of its barriers conflicts", () => {
  for (const mode of ["async", "inline"] as const) {
    const programs = programsOf(plan(SCRIPT, BOTH), mode);
    assert.equal(race(programs), undefined);
    const [backbone, ...others] = programs.lanes;
    let barriers = 0, found = 0;
    backbone!.program.slice(0, -1).forEach((instruction, n) => {
      if (!instruction.barrier) return;
      barriers++;
      const program = backbone!.program.with(n, { ...instruction, barrier: false });
      if (race({ ...programs, lanes: [{ ...backbone!, program }, ...others] }) !== undefined) found++;
    });
    // All but those between instructions that have nothing to do with each other.
    assert.ok(found > 0.8 * barriers, `${mode}: ${found} of ${barriers}`);
  }
});
