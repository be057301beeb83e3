/** hcinfer profile: what the cost model should know of this machine, measured. */
import { Command, Option } from "commander";
import process from "node:process";
import { PROFILES } from "../compiler/profile.ts";
import { measureMachine } from "../runtime/machine.ts";
import { threadsOption } from "./arguments.ts";
import { Progress } from "./terminal.ts";

export function profileCommand(): Command {
  return new Command("profile")
    .description("Measure this machine for the cost model; prints a profile as JSON (a few seconds).")
    .addOption(new Option("--list", "print the profiles that come with hcinfer instead"))
    .addOption(threadsOption())
    .addHelpText(
      "after",
      `
Example:
  hcinfer profile > here.json
  hcinfer compile my-model -o bundles/my-model --profile here.json`,
    )
    .action(profile);
}

function profile(options: { readonly list?: true; readonly threads: number }): void {
  if (options.list) {
    for (const { name, cpu, ...rest } of Object.values(PROFILES)) {
      const gpu = "gpu" in rest ? `, ${rest.gpu.name}` : "";
      process.stdout.write(`${name.padEnd(18)}${cpu.name}${gpu}\n`);
    }
    return;
  }
  const progress = new Progress("profile");
  const measured = measureMachine(options.threads, progress.show);
  progress.finish();
  process.stdout.write(`${JSON.stringify(measured, null, 2)}\n`);
}
