/** (b) The tests of the kernels and of the executor, on this device; and (d) compute-sanitizer over some of them. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { notMeasured, type Part, type Row } from "./setting.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const SUITES = [
  "ffi/cuda/kernels",
  ...["memory", "stream", "module"].map((name) => `ffi/cuda/${name}_test.ts`),
  "tests/parity/cuda_test.ts",
];
/** A small run with every kind of kernel in it. */
const SMALL_SUITE = "ffi/cuda/kernels/norm_test.ts";

export const parity: Part = {
  title: "Parity with the CPU and with double precision",
  async measure({ isSmoke }) {
    const suites = isSmoke ? [SMALL_SUITE] : SUITES;
    const rows: Row[] = [];
    for (const suite of suites.filter((path) => existsSync(join(ROOT, path)))) {
      rows.push({
        what: suite,
        found: await passed(Deno.execPath(), ["test", "-A", "--no-check", suite]),
        target: "all",
      });
    }
    return rows;
  },
};

export const sanitizer: Part = {
  title: "compute-sanitizer",
  async measure({ isSmoke }) {
    if (isSmoke || process.env["HCINFER_CUDA"] === "sim") throw new Error("it is of GPUs alone");
    const program = await found("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer");
    if (program === undefined) throw new Error("compute-sanitizer is not installed");
    const rows: Row[] = [];
    for (const tool of ["memcheck", "racecheck"]) {
      const options = ["--tool", tool, "--target-processes", "all", "--error-exitcode", "9"];
      const test = [Deno.execPath(), "test", "-A", "--no-check", SMALL_SUITE];
      const { code, out } = await run(program, [...options, ...test]);
      const summary = /ERROR SUMMARY: .*|RACECHECK SUMMARY: .*/.exec(out)?.[0];
      rows.push({ what: tool, found: summary ?? `exit code ${code}`, target: "0 errors" });
    }
    return rows;
  },
};

/** `12 passed, 0 failed`, and the names of those that failed. */
async function passed(program: string, args: readonly string[]): Promise<string> {
  try {
    const { out } = await run(program, args);
    const [, good, bad] = /(\d+) passed.*?(\d+) failed/.exec(out) ?? [];
    const failed = [...out.matchAll(/^(.*) \.\.\. FAILED/gm)].map(([, name]) => name);
    if (good === undefined) throw new Error(`the tests did not end: ${out.trim().split("\n").at(-1)}`);
    return `${good} passed, ${bad} failed${failed.length > 0 ? `: ${failed.join("; ")}` : ""}`;
  } catch (error) {
    return notMeasured(error);
  }
}

async function found(...candidates: string[]): Promise<string | undefined> {
  for (const candidate of candidates) {
    if ((await run(candidate, ["--version"])).code === 0) return candidate;
  }
  return undefined;
}

function run(program: string, args: readonly string[]): Promise<{ code: number; out: string }> {
  const env = { ...process.env, HCINFER_CUDA: process.env["HCINFER_CUDA"] ?? "device", NO_COLOR: "1" };
  return new Promise((resolve) => {
    execFile(program, args, { cwd: ROOT, env, maxBuffer: 2 ** 26 }, (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code ?? 1), out: out + err });
    });
  });
}
