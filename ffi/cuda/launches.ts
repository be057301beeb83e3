/** How every instruction becomes launches of kernels: the rules that stand beside the kernels, in one table. */
import { existsSync } from "node:fs";
import type { LaunchRules } from "./launch.ts";

const rules: Partial<LaunchRules> = {};
for (
  const file of ["attention", "elementwise", "embedding", "heads", "linear", "low_rank", "mirror", "norm"]
) {
  const url = new URL(`./kernels/${file}.ts`, import.meta.url);
  if (!existsSync(url)) continue;
  const found: { readonly rules: Partial<LaunchRules> } = await import(url.href);
  Object.assign(rules, found.rules);
}
export const LAUNCHES = rules;
