/** Decoding with corrections of as many bytes as this machine's measured profile says can hide, beside decoding without. */
import { percentText, secondsText } from "../../cli/terminal.ts";
import type { MachineProfile } from "../../compiler/profile.ts";
import { figures } from "../../cli/summary.ts";
import { measureFirstGpu } from "../../runtime/gpu_machine.ts";
import { measureMachine } from "../../runtime/machine.ts";
import { measureModel, randomBundle, thisMachine } from "./model.ts";
import { notMeasured, type Part, type Row, type Setting } from "./setting.ts";

const FORMS = ["sparse", "low_rank"] as const;
/** Beside a GPU, a budget of bytes stops where corrections would no longer hide. */
export const AS_MUCH_AS_HIDES = { kind: "bytes", share: 1 } as const;
const SMALL_BUDGETS = {
  sparse: { kind: "channels", channels: 8 },
  low_rank: { kind: "rank", rank: 4 },
} as const;

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
  correct: typeof FORMS[number],
  profile: MachineProfile,
  setting: Setting,
): Promise<Row[]> {
  const { path, plan } = await randomBundle(setting, `q4-${correct}`, {
    weights: "q4",
    correct,
    budget: setting.isSmoke ? SMALL_BUDGETS[correct] : AS_MUCH_AS_HIDES,
    profile,
  });
  const without = measureModel(path, setting, "off"), beside = measureModel(path, setting, "async");
  const { correctionBytesRead: read, backboneBytes } = figures(plan);
  return [{
    what: `${correct}, ${(read / 1e6).toPrecision(3)} MB a token (${percentText(read / backboneBytes)})`,
    found: `${secondsText(beside.step)}, ${(without.step / beside.step).toFixed(3)}x of without`,
    target: "0.95x",
  }];
}

function measured({ isSmoke, threads }: Setting): MachineProfile {
  if (isSmoke) return thisMachine(threads);
  const gpu = measureFirstGpu();
  const { profile: machine } = measureMachine(threads);
  return gpu === undefined ? machine : { ...machine, gpu };
}
