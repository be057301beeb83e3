/** The bundled model with formats that follow measured errors, beside one format for all weights. */
import assert from "node:assert/strict";
import type { Bundle } from "../../compiler/bundle.ts";
import type { CompileOptions } from "../../compiler/compile.ts";
import { packedName } from "../../compiler/ir/naming.ts";
import { logitsOf } from "../fixtures/steps.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { relativeError, TINY_DENSE, UNCOMPRESSED, withBundle } from "../parity/reference_bundle.ts";

/** Bytes, weights and loss (relative error, by elements) of all windows, and the formats in them. */
function windowsOf({ plan }: Bundle) {
  const windows = new Set(
    plan.graph.nodes.flatMap((n) =>
      n.op === "linear" && n.params.window ? [packedName(n.params.weights)] : []
    ),
  );
  let [bytes, elements, loss] = [0, 0, 0];
  const formats = new Set<string>();
  for (const weight of plan.weights) {
    if (!windows.has(packedName(weight.sections))) continue;
    bytes += weight.bytes;
    formats.add(weight.format);
    for (const { rows, relativeError } of weight.sections) {
      elements += rows * weight.inputs;
      loss += rows * weight.inputs * relativeError;
    }
  }
  return { bytes, elements, loss, formats };
}

async function compiled<T>(options: Partial<CompileOptions>, of: (bundle: Bundle) => T): Promise<T> {
  let found: T | undefined;
  await withBundle(TINY_DENSE, { correct: "none", ...options }, (bundle) => {
    found = of(bundle);
  });
  assert.ok(found !== undefined);
  return found;
}

const bitsPerWeight = (bits: number) => ({ formats: { kind: "bitsPerWeight", bits } } as const);

Deno.test("tiny-dense: formats that follow errors keep to their bits and lose less than any uniform ones", async () => {
  const [q3, q4, same, mixed] = [
    await compiled({ weights: "q3" }, windowsOf),
    await compiled({ weights: "q4" }, windowsOf),
    await compiled(bitsPerWeight(3.5), windowsOf),
    await compiled(bitsPerWeight(4), windowsOf),
  ];
  assert.equal(8 * q3.bytes / q3.elements, 3.5); // a scale and a zero point of 16 bits each for 64 weights
  assert.ok(same.bytes <= q3.bytes && same.loss <= q3.loss);
  assert.ok(8 * mixed.bytes <= 4 * mixed.elements);
  assert.ok(mixed.loss < q3.loss);
  // Half of the way from q3 to q4 in bytes, more than half in error: the half of the weights was chosen well.
  assert.ok(mixed.loss < (q3.loss + q4.loss) / 2);
});

Deno.test("tiny-dense: a bundle of mixed formats runs", async () => {
  const logits = (bundle: Bundle) => {
    const tokens = Int32Array.of(46, 812, 99, 3071, 7, 410, 1544);
    using executor = createCpuExecutor(bundle, { threads: 2, corrections: "off", contextLength: 64 });
    return logitsOf(executor, tokens);
  };
  const exact = await compiled(UNCOMPRESSED, logits);
  const lost = async (options: Partial<CompileOptions>) =>
    relativeError(await compiled(options, logits), exact);
  const [q3, mixed] = [await lost({ weights: "q3" }), await lost(bitsPerWeight(4))];
  assert.ok(mixed < q3);
});
