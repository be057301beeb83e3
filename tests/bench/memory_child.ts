/** In a process of its own, so that its memory and its start can be told: opens a bundle and answers a short prompt. */
import process from "node:process";
import { measureSpeed } from "../../cli/bench.ts";
import { OpenModel } from "../../cli/opening.ts";

const PROMPT = 16;
const [path = "", threads = "1"] = process.argv.slice(2);
const before = process.memoryUsage().rss;
const started = performance.now();
using model = OpenModel.open(path, {
  device: "cpu",
  threads: Number(threads),
  corrections: "auto",
  contextLength: 1024,
});
measureSpeed(model, PROMPT, 0);
const firstToken = (performance.now() - started) / 1000;
const resident = process.memoryUsage().rss;
const { plan } = model.bundle;
const weights = plan.weights.reduce((sum, weight) => sum + weight.bytes, 0);
// Keys and values in f16, of the positions that were filled.
const cache = 2 * 2 * plan.model.layers * plan.model.kvHeads * plan.model.headDim * PROMPT;
process.stdout.write(JSON.stringify({ firstToken, resident, before, expected: weights + cache }));
