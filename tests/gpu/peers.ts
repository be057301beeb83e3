/** Others on the same shapes: PyTorch in bf16 where python3 has it, and llama.cpp's llama-bench where its path is given. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { secondsText } from "../../cli/terminal.ts";
import { linearsOf, notMeasured, type Part, type Row, type Setting, shapeOf } from "./setting.ts";

const SCRIPT = fileURLToPath(new URL("./peer_torch.py", import.meta.url));
const CAP_GIB = 8;

/** What peer_torch.py prints. */
interface TorchFigures {
  readonly version: string;
  readonly products: readonly { readonly name: string; readonly seconds: number }[];
  readonly step: number | string;
  readonly capped: number | string;
}

export const peers: Part = {
  title: "Peers in this run",
  async measure(setting) {
    return [...await torch(setting), ...await llama(setting)];
  },
};

async function torch(setting: Setting): Promise<Row[]> {
  const shape = shapeOf(setting), linears = linearsOf(shape);
  const tokens = setting.isSmoke ? 16 : 2048;
  const asked = JSON.stringify({
    linears,
    tokens,
    layers: shape.num_hidden_layers,
    heads: shape.num_attention_heads,
    kvHeads: shape.num_key_value_heads,
    headDim: shape.head_dim,
    vocabulary: shape.vocab_size,
    context: setting.isSmoke ? 16 : 512,
    capGiB: CAP_GIB,
  });
  try {
    const { stdout } = await promisify(execFile)("python3", [SCRIPT, asked], { timeout: 240_000 });
    const found = JSON.parse(stdout) as TorchFigures;
    const { known } = setting;
    const products = tokens * linears.reduce((sum, [, rows, inputs]) => sum + rows * inputs, 0);
    known.torchRate = products / found.products.reduce((sum, { seconds }) => sum + seconds, 0);
    if (typeof found.step === "number") known.torchStep = found.step;
    if (typeof found.capped === "number") known.torchCapped = found.capped;
    const time = (figure: number | string) =>
      typeof figure === "number" ? secondsText(figure) : notMeasured(new Error(figure));
    return [
      { what: "PyTorch", found: found.version },
      ...found.products.map(({ name, seconds }, i) => {
        const rate = 2 * tokens * linears[i]![1] * linears[i]![2] / seconds / 1e12;
        return { what: `PyTorch bf16, ${name}, ${tokens} tokens`, found: `${rate.toPrecision(3)} TFLOP/s` };
      }),
      { what: "PyTorch bf16, decode step as one CUDA graph", found: time(found.step) },
      { what: `PyTorch bf16, decode step under ${CAP_GIB} GiB, layers streamed`, found: time(found.capped) },
    ];
  } catch (error) {
    return [{ what: "PyTorch bf16", found: notMeasured(shortened(error)) }];
  }
}

async function llama({ llamaBench, gguf }: Setting): Promise<Row[]> {
  const what = "llama.cpp, llama-bench";
  if (llamaBench === undefined || gguf === undefined) {
    return [{ what, found: notMeasured("give --llama-bench <program> and --gguf <model>") }];
  }
  try {
    const options = ["-m", gguf, "-p", "2048", "-n", "64", "-ngl", "99", "-o", "json"];
    const { stdout } = await promisify(execFile)(llamaBench, options, { timeout: 240_000 });
    const rows = JSON.parse(stdout) as {
      n_prompt: number;
      n_gen: number;
      avg_ts: number;
      model_type: string;
    }[];
    return rows.map(({ n_prompt, n_gen, avg_ts, model_type }) => ({
      what: `llama.cpp ${model_type}, ${n_gen > 0 ? "decode" : `prompt of ${n_prompt}`}`,
      found: `${avg_ts.toFixed(1)} tokens/s`,
    }));
  } catch (error) {
    return [{ what, found: notMeasured(shortened(error)) }];
  }
}

/** The last line that a program wrote, which says why. */
function shortened(error: unknown): unknown {
  const { stderr = "" } = error as { stderr?: string };
  return stderr.trim().split("\n").at(-1) || error;
}
