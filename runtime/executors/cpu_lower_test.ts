/**
 * Programs for threads, checked as such: whatever graph is lowered, no two instructions that may run at once touch the
 * same memory unless both only read it, and no memory is read before it is written.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { packedShape } from "../../compiler/weights/format.ts";
import { formatText } from "../../compiler/weights/format.ts";
import { inventory } from "../../compiler/weights/inventory.ts";
import { arbitrarySizes, type Sizes, TINY, transformer } from "../../compiler/ir/fixture.ts";
import { arbitraryChoices, CHOICES, type Choices, passes, tinyPlan } from "../../tests/fixtures/passes.ts";
import type { Plan } from "../../compiler/plan.ts";
import { lower, type Lowered, type LoweredMode } from "./cpu_lower.ts";
import { type Draft, layOut, type Place, times } from "./cpu_memory.ts";

const MODES = ["async", "inline", "off"] as const;
const STEPS = ["prefill", "decode"] as const;

/** What an instruction writes; it reads its other operands. */
const WRITTEN: { readonly [P in Draft["op"]]: readonly string[] } = {
  signal: [],
  wait: [],
  embed: ["out"],
  norm: ["sum", "out", "codes", "scales", "sums"],
  quantize: ["codes", "scales", "sums"],
  siluMul: ["out", "codes", "scales", "sums"],
  elementwise: ["out"],
  heads: ["qOut", "cacheK", "cacheV"],
  attention: ["out"],
  linear: ["y"],
  sparseSelect: ["index", "coefficient", "selectionScale", "selectionSum"],
  sparseSum: ["delta"],
  lowRankDown: ["hidden"],
  lowRankUp: ["delta"],
};

function planOf(sizes: Sizes, choices: Choices): Plan {
  const { graph, lanes } = passes(transformer(sizes), choices).schedule;
  const weights = inventory(graph).matrices.map(({ name, rows, inputs, format }) => ({
    tensor: `${name}.packed`,
    format: formatText(format!),
    rows,
    inputs,
    bytes: packedShape(format!, rows, inputs).bytes,
    sections: [],
  }));
  return { ...tinyPlan(), graph, lanes, weights };
}

function lowered(plan: Plan, mode: LoweredMode): Lowered {
  return lower(plan, { mode, contextLength: 40, weight: () => ({ segment: "weights", offset: 0 }) });
}

interface Access {
  readonly lane: "backbone" | "compensation";
  /** Index in its lane's program, and barriers met before it in this kind of step. */
  readonly index: number;
  readonly slot: number;
  /** Index of the instruction that it waits for, without a barrier between them. */
  readonly after: number | undefined;
  readonly what: string;
  readonly writes: boolean;
}

interface Region {
  readonly from: number;
  readonly to: number;
  readonly accesses: Access[];
}

/** What runs in one kind of step, and which of two accesses must come first. */
class Timeline {
  readonly regions = new Map<string, Region>();
  readonly #signals = new Map<string, { index: number; slot: number }>();
  readonly #waits = new Map<string, number>();

  constructor(program: Lowered, step: typeof STEPS[number], capacity: number) {
    const layout = layOut(program.backbone, program.flights, capacity);
    for (const lane of ["backbone", "compensation"] as const) {
      const running = program[lane].map((instruction) =>
        instruction.when === "always" || instruction.when === step
          ? instruction
          // What ends work begun before it does so in steps that skip it, too.
          : { ...instruction, barrier: instruction.barrier && instruction.after > 0, operands: {} } as Draft
      );
      const slots = times(running);
      running.forEach((instruction, index) => {
        const slot = slots[index]!;
        const runs = program[lane][index]!.when === "always" || program[lane][index]!.when === step;
        const after = runs && instruction.after > 0 ? index - instruction.after : undefined;
        if (after !== undefined) {
          const { when } = program[lane][after]!;
          assert.ok(when === "always" || when === step, `${lane} ${index} waits for what never runs`);
        }
        if (instruction.op === "signal") {
          this.#signals.set(`${lane} ${instruction.integers.event}`, { index, slot });
        }
        if (instruction.op === "wait") this.#waits.set(`${lane} ${instruction.integers.event}`, index);
        for (const [name, place] of Object.entries<Place | undefined>(instruction.operands)) {
          if (place === undefined) continue;
          const writes = WRITTEN[instruction.op].includes(name);
          const access = {
            lane,
            index,
            slot,
            after,
            what: `${lane} ${index} ${instruction.op}.${name}`,
            writes,
          };
          if ("buffer" in place) {
            const from = layout.offsets.get(place.buffer.id)!;
            const to = from + place.buffer.bytesPerToken * capacity;
            assert.ok(to <= layout.bytes && place.offset <= place.buffer.bytesPerToken, access.what);
            this.#add(`arena ${place.buffer.id}`, from, to, access);
          } else if (place.segment === "cache") {
            this.#add(`cache ${place.offset}`, 0, 0, access);
          } else {
            assert.ok(!writes, `${access.what} writes to ${place.segment}`);
          }
        }
      });
    }
  }

  #add(key: string, from: number, to: number, access: Access): void {
    const region = this.regions.get(key) ?? { from, to, accesses: [] };
    region.accesses.push(access);
    this.regions.set(key, region);
  }

  before(a: Access, b: Access): boolean {
    if (a.lane === b.lane) return a.slot < b.slot || b.after === a.index;
    // Past a signal of its lane by a barrier, and the other beyond the wait for it.
    for (const [key, signal] of this.#signals) {
      const [lane, event] = key.split(" ");
      const wait = this.#waits.get(`${b.lane} ${event}`);
      if (lane === a.lane && a.slot < signal.slot && wait !== undefined && wait < b.index) return true;
    }
    return false;
  }
}

function checkProgram(program: Lowered): void {
  for (const step of STEPS) {
    const timeline = new Timeline(program, step, 5);
    const regions = [...timeline.regions];
    for (const [key, { accesses }] of regions) {
      const writes = accesses.filter((a) => a.writes);
      for (const a of accesses) {
        for (const b of writes) {
          if (a === b) continue;
          assert.ok(
            timeline.before(a, b) || timeline.before(b, a),
            `${step}: ${a.what} and ${b.what} run at once on ${key}`,
          );
        }
        // The cache holds what earlier steps wrote, too.
        const written = a.writes || writes.some((w) => timeline.before(w, a));
        assert.ok(written, `${step}: ${a.what} reads ${key} before it is written`);
      }
    }
    for (const [key, a] of regions) {
      for (const [other, b] of regions) {
        if (key >= other || a.to <= b.from || b.to <= a.from) continue;
        const first = a.accesses.every((x) => b.accesses.every((y) => timeline.before(x, y)));
        const last = a.accesses.every((x) => b.accesses.every((y) => timeline.before(y, x)));
        assert.ok(first || last, `${step}: ${key} and ${other} share memory while both are in use`);
      }
    }
  }
}

for (const mode of MODES) {
  Deno.test(`${mode}: nothing that runs at once conflicts, nothing is read before it is written`, () => {
    fc.assert(
      fc.property(arbitrarySizes, arbitraryChoices, (sizes, choices) => {
        checkProgram(lowered(planOf(sizes, choices), mode));
      }),
      { numRuns: 40 },
    );
  });
}

Deno.test("a program without one of its barriers conflicts", () => {
  const program = lowered(planOf(TINY, { ...CHOICES, correct: "both" }), "async");
  checkProgram(program);
  let found = 0;
  program.backbone.forEach((instruction, n) => {
    if (!instruction.barrier) return;
    const backbone = program.backbone.with(n, { ...instruction, barrier: false });
    try {
      checkProgram({ ...program, backbone });
    } catch {
      found++;
    }
  });
  // All but those of instructions that run beside others that end in a barrier, and the last one's.
  assert.ok(found > 0.5 * program.backbone.filter((i) => i.barrier).length, `${found} found`);
});

Deno.test("async: the deltas of a window are made in the other lane, between two events", () => {
  const plan = planOf(TINY, { ...CHOICES, correct: "both" });
  const [apart, together] = [lowered(plan, "async"), lowered(plan, "inline")];
  const count = (program: readonly Draft[], op: Draft["op"]) => program.filter((i) => i.op === op).length;
  for (const op of ["sparseSelect", "sparseSum", "lowRankDown", "lowRankUp"] as const) {
    assert.equal(count(apart.backbone, op), 0);
    assert.equal(count(apart.compensation, op), count(together.backbone, op));
  }
  assert.deepEqual(together.compensation, []);
  assert.equal(together.events, 0);
  assert.equal(count(apart.backbone, "wait"), count(apart.compensation, "signal"));
  assert.equal(count(apart.compensation, "wait"), count(apart.backbone, "signal"));
  assert.equal(count(lowered(plan, "off").backbone, "sparseSum"), 0);
});
