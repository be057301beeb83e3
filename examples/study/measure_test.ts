import assert from "node:assert/strict";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { temporary } from "../../tests/command_line.ts";
import { configurationsOf } from "./configurations.ts";
import { Measurements } from "./measure.ts";
import { bytesRead, isMeasured } from "./rows.ts";

const PLAIN = configurationsOf("full", /^rtn q3( \+ rows 10 %, 4 bits)?$/);

Deno.test("a study of two configurations on the bundled model, which goes on where it was", async () => {
  using folder = temporary();
  const options = {
    model: "examples/models/tiny-dense",
    texts: ["examples/models/heldout.txt"],
    windows: 4,
    threads: 2,
    work: folder.path,
    signal: new AbortController().signal,
  };
  const study = new Measurements(options);
  await study.prepare(PLAIN);
  const reference = await study.reference();
  assert.ok(isMeasured(reference));
  const rows = [];
  for (const configuration of PLAIN) rows.push(await study.measure(configuration));
  const [alone, corrected] = rows.filter(isMeasured);
  assert.ok(alone && corrected, JSON.stringify(rows));

  const kl = [alone, corrected].map(({ result }) => result.texts[0]?.kl);
  assert.ok(kl[0]!.mean > 0.02 && kl[1]!.mean < kl[0]!.mean / 2 && kl[0]!.error! > 0);
  assert.equal(alone.result.bytes.corrections, 0);
  const share = bytesRead(corrected.result) / bytesRead(alone.result);
  assert.ok(share > 1.09 && share <= 1.1001, `${share}`);
  assert.equal(reference.result.bitsPerWeight, 16);
  assert.match(alone.commands[0]!, /^hcinfer compile examples\/models\/tiny-dense -o \S+ --weights q3 /);
  assert.match(
    alone.commands[1]!,
    /^hcinfer eval \S+ --reference \S+ --text examples\/models\/heldout.txt --windows 4 /,
  );

  // What is kept needs no bundle: without the reference, nothing could be measured again.
  const [model] = readdirSync(folder.path);
  assert.deepEqual(readdirSync(join(folder.path, model!)).sort(), ["bf16", "results"]);
  rmSync(join(folder.path, model!, "bf16"), { recursive: true });
  const again = new Measurements(options);
  assert.deepEqual(await again.measure(PLAIN[0]!), alone);

  // Other texts are another study; what cannot be measured is a row with its error.
  const other = new Measurements({ ...options, windows: 3 });
  const failed = await other.measure(PLAIN[0]!);
  assert.ok(!isMeasured(failed) && /bf16/.test(failed.error), JSON.stringify(failed));
  assert.deepEqual(readdirSync(join(folder.path, model!)), ["results"]);
});
