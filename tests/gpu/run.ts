/**
 * Everything that needs a GPU, in one command: parity on the device, equality with the CPU executor, compute-sanitizer
 * where it is, and the benchmark. Writes the measured table of tests/gpu/RESULTS.md. What is missing is said there.
 *
 *   deno task gpu [--only part,...] [--threads N] [--llama-bench program --gguf model] [--no-write]
 *   deno task gpu --predict            the null executor's figures for machines that are not here, into RESULTS.md
 *   HCINFER_CUDA=sim deno task gpu --smoke    tests this script itself: tiny sizes, no file is written
 */
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
import { matrixMatrix, matrixVector } from "./matvec.ts";
import { parity, sanitizer } from "./parity.ts";
import { peers } from "./peers.ts";
import { predictions } from "./predict.ts";
import { measuredTable, writeSection } from "./report.ts";
import { notMeasured, type Part, type Row, type Setting } from "./setting.ts";

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
      "no-write": { type: "boolean", default: false },
      only: { type: "string" },
      threads: { type: "string" },
      "llama-bench": { type: "string" },
      gguf: { type: "string" },
    },
  });
  if (values.predict) {
    const text = await predictions();
    process.stdout.write(`${text}\n`);
    if (!values["no-write"]) writeSection(RESULTS, "predicted", text);
    return;
  }
  const names = values.only?.split(",") ?? Object.keys(PARTS);
  const unknown = names.find((name) => PARTS[name] === undefined);
  if (unknown !== undefined) {
    throw new HcinferError("usage", `${unknown} is no part; the parts are ${Object.keys(PARTS).join(", ")}`);
  }
  requireDevice("cuda");
  const setting: Setting = {
    isSmoke: values.smoke,
    threads: values.threads === undefined ? physicalCores() : whole()(values.threads),
    llamaBench: values["llama-bench"],
    gguf: values.gguf,
    known: {},
  };
  const found: { title: string; rows: readonly Row[] }[] = [];
  for (const name of names) {
    const { title, rows } = await measure(PARTS[name]!, setting);
    found.push({ title, rows });
    for (const { what, found } of rows) process.stderr.write(`${name}: ${what}: ${found}\n`);
  }
  const text = measuredTable(found);
  process.stdout.write(`${text}\n`);
  // A part of the table, or the simulator's, is no result.
  const isWhole = values.only === undefined && !values.smoke && process.env["HCINFER_CUDA"] !== "sim";
  if (isWhole && !values["no-write"]) writeSection(RESULTS, "measured", text);
}

async function measure({ title, measure }: Part, setting: Setting) {
  try {
    return { title, rows: await measure(setting) };
  } catch (error) {
    return { title, rows: [{ what: title, found: notMeasured(error) }] };
  }
}

try {
  await run();
} catch (error) {
  process.exitCode = reportFailure(error, process.argv.includes("--debug"));
}
