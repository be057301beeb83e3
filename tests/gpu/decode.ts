/** (e) A whole model: a decode step beside the bytes that it must read, a prompt, and both under a cap of 8 GiB. */
import { secondsText } from "../../cli/terminal.ts";
import { measureModel, PROMPT, randomBundle, thisMachine } from "./model.ts";
import { linearsOf, type Part, type Row, type Setting, shapeOf, shareText } from "./setting.ts";

const CAP = 8 * 2 ** 30;
const NO_BUDGET = { kind: "bytes", share: 0.1 } as const;

export const decode: Part = {
  title: "The whole model in q4, without corrections",
  async measure(setting) {
    const { path } = await randomBundle(setting, "q4", {
      weights: "q4",
      correct: "none",
      budget: NO_BUDGET,
      profile: thisMachine(setting.threads),
    });
    const free = measureModel(path, setting, "off");
    const rows: Row[] = [
      {
        what: `decode step, context 512, ${(free.bytes / 1e9).toFixed(2)} GB to read`,
        found: `${secondsText(free.step)}, ${shareText(free.bytes / free.step, setting.known)}`,
        target: "50 % of the copy's",
      },
      promptRow(free.prompt, setting),
    ];
    if (setting.known.torchStep !== undefined) {
      rows.push({
        what: "decode step beside PyTorch's in bf16",
        found: ratio(setting.known.torchStep, free.step),
      });
    }
    if (setting.isSmoke) return rows;
    const capped = measureModel(path, setting, "off", CAP);
    const { torchCapped } = setting.known;
    const beside = torchCapped === undefined
      ? ""
      : `, ${ratio(torchCapped, capped.step)} of PyTorch's bf16 with offload`;
    return [...rows, { what: "decode step under 8 GiB", found: secondsText(capped.step) + beside }];
  },
};

function promptRow(seconds: number, setting: Setting): Row {
  const tokens = setting.isSmoke ? 32 : PROMPT;
  const shape = shapeOf(setting), { torchRate } = setting.known;
  const products = shape.num_hidden_layers * tokens *
    linearsOf(shape).reduce((sum, [, rows, inputs]) => sum + rows * inputs, 0);
  const beside = torchRate === undefined
    ? ""
    : `, ${(products / seconds / torchRate).toFixed(2)}x of PyTorch's bf16 products alone`;
  return {
    what: `prompt of ${tokens} tokens`,
    found: `${secondsText(seconds)}, ${(tokens / seconds).toFixed(0)} tokens/s${beside}`,
    target: "0.5x of the vendor's bf16",
  };
}

/** How many times as fast. */
function ratio(theirs: number, ours: number): string {
  return `${(theirs / ours).toFixed(2)}x`;
}
