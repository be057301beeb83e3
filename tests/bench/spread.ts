import { median } from "../../cli/bench.ts";

/** Measurements as "median [least-most]". */
export function spread(numbers: readonly number[]): string {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  return `${median(numbers).toFixed(1)} [${least.toFixed(1)}-${most.toFixed(1)}]`;
}
