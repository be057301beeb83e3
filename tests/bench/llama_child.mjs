// llama.cpp in a process of its own, run by Node in the folder where node-llama-cpp is installed. Reads requests, one JSON
// object a line, and answers each with one. Speeds are llama.cpp's own (llama_perf_context), so that the wrapper's work
// per token does not count against it; the wall clock's stand beside them.
import { createInterface } from "node:readline";

// Only installed where this file runs: a name in a variable is not looked for by the type checker.
const peer = "node-llama-cpp";
const { getLlama, LlamaLogLevel } = await import(peer);

let log = "";
const llama = await getLlama({
  gpu: false,
  build: "never",
  progressLogs: false,
  logLevel: LlamaLogLevel.debug,
  logger: (_level, message) => log += `${message}\n`,
});

const models = new Map();
async function load(path) {
  if (!models.has(path)) models.set(path, await llama.loadModel({ modelPath: path, useMmap: true }));
  return models.get(path);
}

/** llama.cpp's own tokens per second: "prompt eval time = 1234.5 ms / 512 tokens", "eval time = 456.7 ms / 128 runs". */
async function ownSpeeds(context) {
  log = "";
  await context.printTimings();
  // The log arrives from another thread.
  for (let i = 0; i < 50 && !/total time/.test(log); i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const speed = (pattern) => {
    const [, ms, tokens] = pattern.exec(log) ?? [];
    return ms === undefined ? null : Number(tokens) / Number(ms) * 1000;
  };
  return {
    prefill: speed(/prompt eval time =\s*([0-9.]+) ms \/\s*(\d+) tokens/),
    decode: speed(/(?<!prompt )eval time =\s*([0-9.]+) ms \/\s*(\d+) runs/),
  };
}

/** Runs `prompt` tokens as one batch, then `tokens` one at a time. */
async function measure({ model: path, prompt, tokens, threads }) {
  const model = await load(path);
  const context = await model.createContext({
    contextSize: prompt + tokens + 16,
    batchSize: Math.max(prompt, 16),
    threads: { ideal: threads, min: threads },
    performanceTracking: true,
  });
  const sequence = context.getSequence();
  const ids = Array.from({ length: prompt }, (_, i) => (i * 97 + 5) % 20000);
  const stream = sequence.evaluate(ids, { temperature: 0, yieldEogTokens: true });
  const started = performance.now();
  await stream.next();
  const first = performance.now();
  for (let i = 0; i < tokens; i++) await stream.next();
  const ended = performance.now();
  const own = await ownSpeeds(context);
  const result = {
    threads: context.currentThreads,
    ...own,
    wallPrefill: prompt / (first - started) * 1000,
    wallDecode: tokens / (ended - first) * 1000,
    residentBytes: process.memoryUsage().rss,
  };
  await context.dispose();
  return result;
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    process.stdout.write(`${JSON.stringify(await measure(JSON.parse(line)))}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ error: String(error?.stack ?? error) })}\n`);
  }
}
process.exit(0);
