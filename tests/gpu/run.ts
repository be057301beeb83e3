/**
 * Everything that needs a GPU, in one command: parity on the device, equality with the CPU executor, compute-sanitizer
 * where it is, and the benchmark. Writes the measured table of tests/gpu/RESULTS.md. What is missing is said there.
 *
 *   deno task gpu [--only part,...] [--threads N] [--llama-bench program --gguf model] [--no-write]
 *   deno task gpu --predict            the null executor's figures for machines that are not here, into RESULTS.md
 *   deno task gpu --kernels            bytes, registers and occupancy of every kernel, into RESULTS.md; needs nvcc
 *   HCINFER_CUDA=sim deno task gpu --smoke    tests this script itself: tiny sizes, no file is written
 */
import { execFile } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { physicalCores, whole } from "../../cli/arguments.ts";
import { reportFailure } from "../../cli/failure.ts";
import { HcinferError } from "../../compiler/errors.ts";
import { requireDevice } from "../../runtime/devices.ts";
import { corrections } from "./corrections.ts";
import { decode } from "./decode.ts";
import { device } from "./device.ts";
import { equality } from "./equality.ts";
import { handshake } from "./handshake.ts";
import { kernels } from "./kernels.ts";
import { matrixMatrix, matrixVector } from "./matvec.ts";
import { parity, sanitizer } from "./parity.ts";
import { peers } from "./peers.ts";
import { predictions } from "./predict.ts";
import { measuredTable, writeSection } from "./report.ts";
import { type Known, notMeasured, type Part, type Row, type Setting } from "./setting.ts";

const RESULTS = fileURLToPath(new URL("./RESULTS.md", import.meta.url));

/** In their order: peers before what is compared with them. */
const PARTS: Readonly<Record<string, Part>> = {
  device,
  parity,
  equality,
  sanitizer,
  peers,
  matvec: matrixVector,
  matmul: matrixMatrix,
  decode,
  corrections,
  handshake,
};

async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(2).filter((argument) => argument !== "--"),
    options: {
      smoke: { type: "boolean", default: false },
      predict: { type: "boolean", default: false },
      kernels: { type: "boolean", default: false },
      "no-write": { type: "boolean", default: false },
      only: { type: "string" },
      threads: { type: "string" },
      "llama-bench": { type: "string" },
      gguf: { type: "string" },
    },
  });
  const worked = {
    predicted: values.predict ? predictions : undefined,
    kernels: values.kernels ? kernels : undefined,
  };
  for (const section of ["predicted", "kernels"] as const) {
    const text = await worked[section]?.();
    if (text === undefined) continue;
    process.stdout.write(`${text}\n`);
    if (!values["no-write"]) writeSection(RESULTS, section, text);
  }
  if (values.predict || values.kernels) return;
  const names = values.only?.split(",") ?? Object.keys(PARTS);
  const unknown = names.find((name) => PARTS[name] === undefined);
  if (unknown !== undefined) {
    throw new HcinferError("usage", `${unknown} is no part; the parts are ${Object.keys(PARTS).join(", ")}`);
  }
  requireDevice("cuda");
  let setting: Setting = {
    isSmoke: values.smoke,
    threads: values.threads === undefined ? physicalCores() : whole()(values.threads),
    llamaBench: values["llama-bench"],
    gguf: values.gguf,
    known: {},
  };
  const found: { title: string; rows: readonly Row[] }[] = [];
  for (const name of names) {
    const { rows, known } = await measureApart(name, setting);
    setting = { ...setting, known };
    found.push({ title: PARTS[name]!.title, rows });
    for (const { what, found } of rows) process.stderr.write(`${name}: ${what}: ${found}\n`);
  }
  const text = measuredTable(found);
  process.stdout.write(`${text}\n`);
  // A part of the table, or the simulator's, is no result.
  const isWhole = values.only === undefined && !values.smoke && process.env["HCINFER_CUDA"] !== "sim";
  if (isWhole && !values["no-write"]) writeSection(RESULTS, "measured", text);
}

/** What a part's process answers. */
interface Answer {
  readonly rows: readonly Row[];
  readonly known: Known;
}

/** A part in a process of its own: a fault of the device, which ends its context, ends that part alone. */
async function measureApart(name: string, setting: Setting): Promise<Answer> {
  const args = [
    "run",
    "-A",
    "--no-check",
    fileURLToPath(import.meta.url),
    CHILD,
    name,
    JSON.stringify(setting),
  ];
  const env = { ...process.env, HCINFER_CUDA: process.env["HCINFER_CUDA"] ?? "device" };
  const limits = { timeout: PART_MS, killSignal: "SIGKILL", maxBuffer: 2 ** 26, env } as const;
  return await new Promise((resolve) => {
    execFile(Deno.execPath(), args, limits, (error, out, err) => {
      const last = out.trim().split("\n").at(-1) ?? "";
      if (error === null && last.startsWith("{")) return resolve(JSON.parse(last) as Answer);
      const why = error?.killed
        ? `it took longer than ${PART_MS / 60_000} minutes`
        : err.trim() || `${error}`;
      resolve({ rows: [{ what: PARTS[name]!.title, found: notMeasured(why) }], known: setting.known });
    });
  });
}

/** In that process: the last line of standard output is the answer. */
async function answer([name = "", text = ""]: readonly string[]): Promise<void> {
  const setting = JSON.parse(text) as Setting, part = PARTS[name]!;
  let rows: readonly Row[];
  try {
    rows = await part.measure(setting);
  } catch (error) {
    rows = [{ what: part.title, found: notMeasured(error) }];
  }
  const found: Answer = { rows, known: setting.known };
  process.stdout.write(`\n${JSON.stringify(found)}\n`);
}

const CHILD = "part";
const PART_MS = 10 * 60_000;

try {
  const [first, ...rest] = process.argv.slice(2);
  await (first === CHILD ? answer(rest) : run());
} catch (error) {
  process.exitCode = reportFailure(error, process.argv.includes("--debug"));
}
