/** hcinfer profile: what the cost model should know of this machine, measured. */
import { Command, Option } from "commander";
import process from "node:process";
import { PROFILES } from "../compiler/profile.ts";
import { DEVICE_CHOICES, type DeviceChoice, requireDevice } from "../runtime/devices.ts";
import { measureFirstGpu } from "../runtime/gpu_machine.ts";
import { measureMachine } from "../runtime/machine.ts";
import { threadsOption } from "./arguments.ts";
import { Progress } from "./terminal.ts";

export function profileCommand(): Command {
  return new Command("profile")
    .description("Measure this machine for the cost model; prints a profile as JSON (a few seconds).")
    .addOption(new Option("--list", "print the profiles that come with hcinfer instead"))
    .addOption(
      new Option("--device <device>", "cpu: leave a GPU out; cuda: there must be one").choices(DEVICE_CHOICES)
        .default("auto"),
    )
    .addOption(threadsOption())
    .addHelpText(
      "after",
      `
Example:
  hcinfer profile > here.json
  hcinfer compile my-model -o bundles/my-model --machine here.json`,
    )
    .action(profile);
}

interface Options {
  readonly list?: true;
  readonly threads: number;
  readonly device: DeviceChoice;
}

function profile(options: Options): void {
  if (options.list) {
    for (const { name, cpu, ...rest } of Object.values(PROFILES)) {
      const gpu = "gpu" in rest ? `, ${rest.gpu.name}` : "";
      process.stdout.write(`${name.padEnd(18)}${cpu.name}${gpu}\n`);
    }
    return;
  }
  requireDevice(options.device);
  const progress = new Progress("profile");
  const { profile: machine, disagreements } = measureMachine(options.threads, progress.show);
  const gpu = options.device === "cpu" ? undefined : measureFirstGpu(progress.show);
  progress.finish();
  const measured = gpu === undefined ? machine : { ...machine, name: `${machine.name}, ${gpu.name}`, gpu };
  process.stdout.write(`${JSON.stringify(measured, null, 2)}\n`);
  for (const { what, least, most, unit } of disagreements) {
    process.stderr.write(`warning: ${what}: measurements from ${least} to ${most} ${unit} do not agree\n`);
  }
  if (disagreements.length > 0) {
    process.stderr.write("the profile has their medians; measure again when no other program runs\n");
  }
}
