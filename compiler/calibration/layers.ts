/** Second moments of all windows' inputs over a text, layer by layer: those of one layer are in memory at a time. */
import type { Inventory, Matrix } from "../weights/inventory.ts";
import type { WindowMoments } from "../weights/quantizer.ts";
import { Moments, type RowFilter } from "./moments.ts";
import { calibrationPass, type PassOptions } from "./pass.ts";

/** A window whose inputs were seen. */
export interface ObservedWindow {
  readonly name: string;
  readonly matrix: Matrix;
  /** What its moments were added up by. */
  readonly sums: Moments;
  readonly moments: WindowMoments;
}

/**
 * Runs the float model over the text of `options` and gives the windows of every layer, in the graph's order, to `onLayer`.
 * @param filters of rows, by window; a window without one has no rows
 */
export async function observeLayers(
  { matrices }: Inventory,
  filters: ReadonlyMap<string, RowFilter>,
  options: Omit<PassOptions, "observe" | "layerDone">,
  onLayer: (layer: readonly ObservedWindow[]) => void,
): Promise<void> {
  const windows = new Map(matrices.flatMap((m) => m.window === undefined ? [] : [[m.window, m] as const]));
  const moments = new Map<string, Moments>();
  await calibrationPass({
    ...options,
    observe: (window, x, tokens, inputs) => {
      const sums = moments.get(window) ?? new Moments(inputs, filters.get(window), options.threads);
      moments.set(window, sums);
      sums.add(x, tokens);
    },
    layerDone: (names) =>
      onLayer(names.map((name) => {
        const matrix = windows.get(name), sums = moments.get(name);
        if (!matrix || !sums) throw new Error(`window ${name} was not observed`);
        moments.delete(name);
        return { name, matrix, sums, moments: sums.means() };
      })),
  });
}
