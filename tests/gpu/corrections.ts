/** Decoding with corrections of as many bytes as this machine's measured profile says can hide, beside decoding without. */
import { secondsText } from "../../cli/terminal.ts";
import type { MachineProfile } from "../../compiler/profile.ts";
import { timelineOf } from "../../compiler/timeline.ts";
import { figures } from "../../cli/summary.ts";
import { measureFirstGpu } from "../../runtime/gpu_machine.ts";
import { measureMachine } from "../../runtime/machine.ts";
import { planRandomModel } from "../bench/random_bundle.ts";
import { measureModel, randomBundle, thisMachine } from "./model.ts";
import { notMeasured, type Part, type Row, type Setting, shapeOf } from "./setting.ts";

const FORMS = ["sparse", "low_rank"] as const;
/** A step may be predicted to take so much longer. */
const MOST_LOSS = 1.02;
const SHARES = [0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01];

export const corrections: Part = {
  title: "Decoding q4 with corrections beside it",
  async measure(setting) {
    const profile = measured(setting);
    const rows: Row[] = [];
    for (const form of FORMS) {
      try {
        rows.push(...await measureForm(form, profile, setting));
      } catch (error) {
        rows.push({ what: form, found: notMeasured(error) });
      }
    }
    return rows;
  },
};

async function measureForm(
  form: typeof FORMS[number],
  profile: MachineProfile,
  setting: Setting,
): Promise<Row[]> {
  const { share, bytes } = await hideable(form, profile, setting);
  const options = { weights: "q4", correct: form, budget: { kind: "bytes", share } } as const;
  const path = await randomBundle(setting, `q4-${form}`, options);
  const without = measureModel(path, setting, "off"), beside = measureModel(path, setting, "async");
  const read = `${(bytes / 1e6).toPrecision(3)} MB a token (${(100 * share).toFixed(0)} %)`;
  return [
    {
      what: `${form}, ${read}`,
      found: `${secondsText(beside.step)}, ${(without.step / beside.step).toFixed(3)}x of without`,
      target: "0.95x",
    },
  ];
}

/** The largest share of the backbone's bytes that is predicted to cost next to nothing. */
export async function hideable(
  correct: typeof FORMS[number],
  profile: MachineProfile,
  setting: Pick<Setting, "isSmoke">,
): Promise<{ readonly share: number; readonly bytes: number }> {
  for (const share of SHARES) {
    const budget = { kind: "bytes", share } as const;
    const shape = shapeOf(setting);
    const { plan } = await planRandomModel({ shape, weights: "q4", head: "q4", correct, budget, profile });
    const options = { profile, threads: profile.cpu.cores };
    const [beside, without] = [timelineOf(plan, "async", options), timelineOf(plan, "off", options)];
    const bytes = figures(plan).correctionBytesRead;
    if (beside.microseconds <= MOST_LOSS * without.microseconds || share === SHARES.at(-1)) {
      return { share, bytes };
    }
  }
  throw new Error("no share was tried");
}

function measured({ isSmoke, threads }: Setting): MachineProfile {
  if (isSmoke) return thisMachine(threads);
  const gpu = measureFirstGpu();
  const machine = measureMachine(threads);
  return gpu === undefined ? machine : { ...machine, gpu };
}
