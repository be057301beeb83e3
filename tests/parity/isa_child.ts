/**
 * A process of bits_test.ts, started with HCINFER_ISA: prints the executor's name, then for each bundle and kind of step
 * a digest of the logits, alone on its line. Of an HcinferError it prints kind and message.
 *
 *   deno run -A isa_child.ts [bundle...]
 */
import { createHash } from "node:crypto";
import process from "node:process";
import { openBundle } from "../../compiler/bundle.ts";
import { HcinferError } from "../../compiler/errors.ts";
import { instructionSet } from "../../ffi/engine.ts";
import { stepOne } from "../fixtures/steps.ts";
import { createCpuExecutor } from "../../runtime/executors/cpu/executor.ts";
import { someTokens } from "./random_models.ts";

const THREADS = 1;

try {
  console.log(`cpu (${instructionSet()}, ${THREADS} threads)`);
  for (const path of process.argv.slice(2)) {
    using bundle = openBundle(path);
    for (const as of ["prefill", "decode"] as const) {
      const limits = { contextLength: 64, cachePositions: 128 };
      const options = { threads: THREADS, corrections: "inline", ...limits } as const;
      using cpu = createCpuExecutor(bundle, options);
      using sequence = cpu.sequence();
      const tokens = someTokens(29, cpu.model.vocabularySize);
      const digest = createHash("sha256");
      // Several tokens and one take different paths.
      for (const [start, end] of [[0, 27], [27, 28], [28, 29]]) {
        const step = tokens.subarray(start, end);
        const logits = stepOne(cpu, sequence, step, { as });
        digest.update(new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
      }
      // Two sequences in one step, which share their beginning.
      using fork = sequence.fork();
      const runs = [sequence, fork].map((sequence, i) => (
        { sequence, position: 29, tokens: tokens.subarray(i, i + 1), as, logits: "last" } as const
      ));
      for (const logits of cpu.step({ runs })) {
        digest.update(new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
      }
      console.log(`${bundle.plan.weights[1]?.format} ${as} ${digest.digest("hex")}`);
    }
  }
} catch (error) {
  if (!(error instanceof HcinferError)) throw error;
  console.log(`${error.kind}: ${error.message}`);
}
