/**
 * Random graphs through the compiler's passes and both executors: see checks.ts for what must hold.
 *
 * HCINFER_FUZZ_SECONDS says how long, HCINFER_FUZZ_SEED which graphs: the name of a failed test has its seed.
 */
import process from "node:process";
import fc from "fast-check";
import { bundleOf, type Packing, packingOf } from "./bundle.ts";
import { checkBits, checkCpu, checkLowering, checkPlan, referenceOf } from "./checks.ts";
import { arbitraryScript, graphOf, type RandomGraph } from "./graphs.ts";

const SECONDS = Number(process.env["HCINFER_FUZZ_SECONDS"] ?? 20);
const SEED = Number(process.env["HCINFER_FUZZ_SEED"] ?? Date.now() % 2 ** 31);

async function check(model: RandomGraph, packing: Packing): Promise<void> {
  using bundle = bundleOf(model, packing);
  await checkPlan(bundle);
  const reference = referenceOf(bundle);
  checkLowering(bundle, reference);
  checkCpu(bundle, reference);
  checkBits(bundle);
}

const packings = fc.array(fc.nat(999), { minLength: 8, maxLength: 8 });

Deno.test(`random graphs compute what they say (seed ${SEED}, ${SECONDS} s)`, async () => {
  await fc.assert(
    fc.asyncProperty(
      arbitraryScript,
      packings,
      (script, numbers) => check(graphOf(script), packingOf(numbers)),
    ),
    { seed: SEED, numRuns: 100_000, interruptAfterTimeLimit: 1000 * SECONDS, endOnFailure: false },
  );
});
