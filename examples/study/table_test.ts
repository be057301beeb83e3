import assert from "node:assert/strict";
import type { Row } from "./rows.ts";
import { measuredRow, studyOf } from "../../tests/fixtures/study.ts";
import { markdownPage, markdownTable } from "./table.ts";

const failed: Row = {
  name: "awq q3",
  series: "backbone alone",
  commands: ["hcinfer compile awq"],
  error: "a | b",
};
const STUDY = studyOf([
  measuredRow("bf16", 12, null),
  measuredRow("rows", 3, 0.0123),
  measuredRow("more", 4, 0.05),
  failed,
]);

Deno.test("the table has a row for everything that was measured, with standard errors", () => {
  const [head, rule, ...rows] = markdownTable(STUDY).split("\n");
  assert.equal(
    head,
    "|  | MB a token | bits a weight | KL, near | perplexity | top-1, % | KL, far | perplexity | top-1, % |",
  );
  assert.equal(rule?.split("|").length, head.split("|").length);
  assert.equal(rows[0], "| bf16 | 12.00 | 3.50 | - | 30.00 ± 1.50 | - | - | 60.00 | - |");
  assert.equal(
    rows[1],
    "| **rows** | 3.00 | 3.50 | 0.0123 ± 0.0002 | 30.00 ± 1.50 | 90.0 ± 1.0 | 0.0123 ± 0.0002 | 60.00 | 90.0 ± 1.0 |",
  );
  assert.match(rows[2]!, /^\| more \|.* 0\.0500 ± 0\.0010 \|/);
});

Deno.test("what failed stands beneath the table with its error", () => {
  assert.match(markdownTable(STUDY), /Not measured:\n\n- awq q3: a \\\| b$/);
});

Deno.test("formats of llama.cpp's rows stand beneath the table", () => {
  assert.doesNotMatch(markdownTable(STUDY), /llama\.cpp/);
  const row = measuredRow("llama.cpp Q3_K_M", 3, 0.02);
  const mixed = { ...row, result: { ...row.result, llamaFormats: "Q3_K (32), Q4_K (22)" } };
  assert.match(
    markdownTable(studyOf([mixed])),
    /matrices:\n\n- llama\.cpp Q3_K_M: Q3_K \(32\), Q4_K \(22\)$/,
  );
});

Deno.test("the caption says how much text was evaluated", () => {
  assert.match(markdownTable(STUDY), /of 4 windows of near\.txt, 4 windows of far\.txt, 256 tokens each/);
});

Deno.test("the page has all command lines in order, and a figure where there is one", () => {
  const page = markdownPage(STUDY);
  const commands = /```sh\n([^`]*)\n```/.exec(page)?.[1]?.split("\n");
  assert.deepEqual(commands, [
    "hcinfer compile bf16",
    ...["bf16", "rows", "more"].flatMap((name) => [`# ${name}`, `hcinfer eval ${name}`]),
    "# awq q3",
    "hcinfer compile awq",
  ]);
  assert.match(page, /kl\.svg/);
});
