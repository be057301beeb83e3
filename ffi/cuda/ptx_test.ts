import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { kernelNames } from "./build.ts";
import { ARCHITECTURES, normalise, outOfDate, ptxOf, sourceHash } from "./ptx.ts";
import { launchedBlocks, parseNeeds } from "./ptx_report.ts";
import { HcinferError } from "../../compiler/errors.ts";

Deno.test("the PTX that is checked in is of the kernels' sources", () => {
  assert.deepEqual(outOfDate(), [], "run: deno task ptx");
});

Deno.test("every kernel that is launched has an entry in its module's PTX", () => {
  const texts = new Map<string, string>();
  for (const capability of ARCHITECTURES) {
    for (const [kernel, { module }] of launchedBlocks({ capability, multiprocessors: 80 })) {
      const path = ptxOf(capability, module);
      if (!texts.has(path)) texts.set(path, readFileSync(path, "utf8"));
      assert.ok(texts.get(path)!.includes(`.visible .entry ${kernel}(`), `${kernel} is not in ${path}`);
    }
  }
});

Deno.test("a source's hash is of all that it includes", () => {
  const files: Record<string, string> = {
    "a.cu": '#include "a.h"\n#include <cuda_fp16.h>\n',
    "a.h": '#pragma once\n#include "b.h"\n',
    "b.h": '#include "a.h"\n#include "../sim/cuda_sim.h"\n',
  };
  const hash = (changed: Record<string, string> = {}) =>
    sourceHash("a.cu", (name) => ({ ...files, ...changed })[name]!);
  assert.equal(hash(), hash({ "other.h": "" }));
  for (const name of Object.keys(files)) assert.notEqual(hash(), hash({ [name]: `${files[name]}int x;\n` }));
});

Deno.test("PTX without what depends on the machine", () => {
  const path = "_ZN43_INTERNAL_30e834a2_12_attention_cu_6e4166572hc4walkE";
  const text =
    `//\n// Compiler Build ID: CL-1\n.version 9.0\n.target sm_80\n\n\tadd.f32 \t%f1; // sum\n.shared ${path};\n` +
    '\t.pragma "used_bytes_mask 0xff00";\n';
  assert.equal(
    normalise(text),
    ".version 8.0\n.target sm_80\nadd.f32 \t%f1;\n" +
      ".shared _ZN43_INTERNAL_00000000_12_attention_cu_000000002hc4walkE;\n",
  );
});

Deno.test("PTX does not depend on where its source lies", () => {
  const of = (hash: string) =>
    `.shared _ZZN37_INTERNAL_${hash}_7_norm_cu_rms_norm39_GLOBAL__N__${hash}_7_norm_cu_rms_norm9block_sumEfE8of_warps;\n`;
  assert.equal(normalise(of("dfc84ab4")), normalise(of("8c6ff987")));
});

Deno.test("what ptxas says of kernels", () => {
  const text = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4 bytes smem, 568 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 568 bytes cmem[0]
`;
  assert.deepEqual(parseNeeds(text), [
    { kernel: "first", registers: 40, spills: 16, shared: 4 },
    { kernel: "second", registers: 255, spills: 0, shared: 0 },
  ]);
});

Deno.test("kernels are found by their plain form, and no other form is taken", () => {
  const text = `
    // extern "C" __global__ void commented(int);
    extern "C" __global__ void plain(int);
    extern "C" __global__ void __launch_bounds__(256, 2)
        bounded(int);
    extern "C" __global__ __launch_bounds__(64) void other_order(int);`;
  assert.deepEqual(kernelNames("x.cu", text), ["plain", "bounded", "other_order"]);
  assert.throws(
    () => kernelNames("x.cu", `${text}\ntemplate <int N> __global__ void hidden(int);`),
    (error) => error instanceof HcinferError && error.message.startsWith("x.cu has 4 kernels, 3 of the form"),
  );
});
