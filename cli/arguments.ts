/**
 * Readers of command-line values, for commander's `argParser`: each turns text into a value or throws
 * InvalidArgumentError, which commander prints beside the option's name.
 */
import { type Command, InvalidArgumentError, Option } from "commander";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import type { Budget } from "../compiler/compile.ts";
import { HcinferError } from "../compiler/errors.ts";
import { DEVICE_CHOICES, type DeviceChoice } from "../runtime/devices.ts";
import type { CorrectionMode } from "../runtime/executor.ts";

/** A whole number of at least `least` (default 1). */
export function whole(least = 1): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`Expected a whole number of at least ${least}.`);
    }
    return value;
  };
}

/** A finite number in [least, most]. */
export function between(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= least && value <= most)) {
      throw new InvalidArgumentError(
        most === Infinity
          ? `Expected a number of at least ${least}.`
          : `Expected a number from ${least} to ${most}.`,
      );
    }
    return value;
  };
}

const DEFAULT_SHARE = 0.1;

/** `bytes:10%`, `auto`, `auto:5%`, `rank:8`, `channels:64` or `rank:8,channels:64`. */
export function budget(text: string): Budget {
  const both = text.split(",");
  if (both.length === 2) {
    const [rank, channels] = [budget(both[0] ?? ""), budget(both[1] ?? "")];
    if (rank.kind === "rank" && channels.kind === "channels") {
      return { ...rank, ...channels, kind: "rank+channels" };
    }
  }
  if (text === "auto" || text === "paper") return { kind: text, share: DEFAULT_SHARE };
  const [, kind, number = "", percent] = /^(bytes|auto|paper|rank|channels):([0-9.]+)(%?)$/.exec(text) ?? [];
  const value = Number(number);
  if (
    (kind === "bytes" || kind === "auto" || kind === "paper") && percent === "%" && value > 0 && value <= 100
  ) {
    return { kind, share: value / 100 };
  }
  const isCount = percent === "" && Number.isSafeInteger(value) && value > 0;
  if (kind === "rank" && isCount) return { kind: "rank", rank: value };
  if (kind === "channels" && isCount) return { kind: "channels", channels: value };
  throw new InvalidArgumentError(
    "Expected bytes:N% (of the backbone's bytes read per token, above 0 to 100), auto, auto:N%, paper, paper:N%, rank:N, channels:N " +
      "or, for both, rank:N,channels:N.",
  );
}

/** `1,2,3`: token ids. */
export function tokenIds(text: string): Int32Array {
  const ids = text.split(",").map((id) => id.trim());
  if (!ids.every((id) => /^\d{1,9}$/.test(id))) {
    throw new InvalidArgumentError("Expected token ids separated by commas, like 1,2,3.");
  }
  return Int32Array.from(ids, Number);
}

const BYTE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
};

/** `8GiB`, `7.5GB`, `512MiB` or plain bytes; a fraction of a byte is dropped. */
export function bytes(text: string): number {
  const [, number = "", unit = ""] = /^(\d+(?:\.\d+)?) ?([a-z]*)$/i.exec(text.trim()) ?? [];
  const value = Math.floor(Number(number) * (BYTE_UNITS[unit.toLowerCase()] ?? NaN));
  if (number === "" || !Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError("Expected bytes with a unit, like 8GiB, 7.5GB or 512MiB, or plain bytes.");
  }
  return value;
}

/** The options that say where a model runs. */
export interface PlaceOptions {
  readonly device: DeviceChoice;
  /** Most bytes to take of the GPU's memory. */
  readonly gpuMemory?: number;
}

/** The options every command that runs a model shares. */
export interface RunOptions extends PlaceOptions {
  readonly threads: number;
  readonly corrections: CorrectionMode;
  /** Most tokens of a sequence. Default: what the model was made for. */
  readonly context?: number;
}

export function deviceOption(): Option {
  return new Option("--device <device>", "where the backbone runs; auto: a GPU where there is one")
    .choices(DEVICE_CHOICES).default("auto");
}

export function gpuMemoryOption(): Option {
  return new Option(
    "--gpu-memory <bytes>",
    "most of the GPU's memory to take, like 8GiB; the rest is the CPU's",
  )
    .argParser(bytes);
}

/** A `preAction` hook of commands that have both options: `withRunOptions` adds it. */
export function checkDevice(command: Command): void {
  if (command.getOptionValue("device") === "cpu") refuse(command, "--device cpu uses no GPU", "gpuMemory");
}

/** More threads than processors wait for each other: every step would take many times as long. */
function threads(text: string): number {
  const [count, most] = [whole()(text), availableParallelism()];
  if (count <= most) return count;
  const [processors, cores] = [plural(most, "processor"), plural(physicalCores(), "core")];
  throw new InvalidArgumentError(
    `This process may use ${processors} (${cores}): expected at most ${most}.`,
  );
}

function plural(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

export function threadsOption(): Option {
  return new Option("--threads <n>", "threads of the CPU to compute with").argParser(threads)
    .default(physicalCores(), "physical cores");
}

function correctionsOption(): Option {
  return new Option("--corrections <mode>", "beside the backbone, in line with it, or not at all")
    .choices(["async", "inline", "off"]).default("auto", "what the bundle says");
}

export function contextOption(): Option {
  return new Option("--context <n>", "most tokens of a sequence; at most, and by default, the model's")
    .argParser(whole());
}

export function asOption(): Option {
  return new Option(
    "--as <kind>",
    "decode: every token chooses its own rows; prefill: all rows are added",
  )
    .choices(["decode", "prefill"]).default("decode");
}

/** Whether the user gave an option, rather than its default. */
export function given(command: Command, option: string): boolean {
  return command.getOptionValueSource(option) === "cli";
}

/** Refuses options that contradict what `because` says. */
export function refuse(command: Command, because: string, ...options: string[]): void {
  const found = options.filter((option) => given(command, option));
  if (found.length === 0) return;
  const names = found.map((name) => `--${name.replaceAll(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`);
  throw new HcinferError("usage", `${because}, so ${names.join(" and ")} would have no effect: leave it out`);
}

/**
 * Physical cores this process may use: hyperthreads share the units that matrix products keep busy. Linux tells them in
 * /proc/cpuinfo; elsewhere every logical processor counts.
 */
export function physicalCores(): number {
  const usable = availableParallelism();
  try {
    const cores = new Set<string>();
    for (const processor of readFileSync("/proc/cpuinfo", "utf8").split("\n\n")) {
      const field = (name: string) => new RegExp(`^${name}\\s*: (\\d+)$`, "m").exec(processor)?.[1];
      if (field("core id") !== undefined) cores.add(`${field("physical id")}.${field("core id")}`);
    }
    return cores.size > 0 ? Math.min(cores.size, usable) : usable;
  } catch {
    return usable;
  }
}

/** The command with the options of all that run a model (`RunOptions`), behind its own. */
export function withRunOptions(command: Command): Command {
  return command
    .addOption(deviceOption())
    .addOption(gpuMemoryOption())
    .addOption(threadsOption())
    .addOption(correctionsOption())
    .addOption(contextOption())
    .hook("preAction", checkDevice);
}
