import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openBundle } from "./bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "./compile.ts";
import { HcinferError } from "./errors.ts";
import { type Node, STAGES, windowOf } from "./ir/graph.ts";
import { moduleTensor } from "./ir/naming.ts";
import { limitsOf, memoryOf } from "./memory.ts";
import { genericProfile, PROFILES } from "./profile.ts";
import { openCheckpoint } from "./weights/checkpoint.ts";
import { RESIDUAL_WIDTHS } from "./weights/correction.ts";
import { decodeFactors, decodeResidual } from "./weights/correction_reference.ts";
import { FORMAT_KINDS, parseFormat } from "./weights/format.ts";
import { widen } from "./weights/half.ts";
import { dequantize } from "./weights/reference.ts";
import { checkpointSource, valuesOf } from "./weights/source.ts";
import { refusal } from "../tests/fixtures/errors.ts";
import { type TinyModel, writeTinyModel } from "../tests/fixtures/tiny_model.ts";

async function inFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-compile-"));
  try {
    await work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function compile(folder: string, changes: Partial<CompileOptions>, model?: TinyModel) {
  writeTinyModel(join(folder, "model"), model);
  return compileModel({
    ...COMPILE_DEFAULTS,
    model: join(folder, "model"),
    output: join(folder, "bundle"),
    threads: 2,
    profile: genericProfile(2),
    ...changes,
  });
}

/** The error of every window from the checkpoint and the packed bytes, in double precision. */
function errors(folder: string): Map<string, Float64Array> {
  using checkpoint = openCheckpoint(join(folder, "model"));
  using bundle = openBundle(join(folder, "bundle"));
  const found = new Map<string, Float64Array>();
  for (const { tensor, format, rows, inputs, sections } of bundle.plan.weights) {
    const parsed = parseFormat(format);
    assert.ok(parsed);
    const weights = dequantize(bundle.tensor(tensor).bytes, parsed, rows, inputs);
    const error = new Float64Array(rows * inputs);
    let padding = rows * inputs;
    for (const { path, firstRow, rows, relativeError } of sections) {
      const source = checkpointSource(checkpoint);
      let [lost, energy] = [0, 0];
      valuesOf(source.matrix({ ...moduleTensor(path), outputs: rows })).forEach((w, i) => {
        const e = w - (weights[firstRow * inputs + i] ?? 0);
        error[firstRow * inputs + i] = e;
        lost += e * e;
        energy += w * w;
      });
      assert.ok(
        Math.abs(lost / energy - relativeError) <= 1e-4 * relativeError + 1e-12,
        `${path}: ${relativeError}`,
      );
      padding -= rows * inputs;
    }
    // What is in no section is padding, and decodes to zero.
    assert.ok(weights.filter((w) => w === 0).length >= padding);
    found.set(tensor.replace(/\.packed$/, ""), error);
  }
  return found;
}

function energyOf(values: Float64Array): number {
  return values.reduce((sum, v) => sum + v * v, 0);
}

for (const weights of FORMAT_KINDS) {
  Deno.test(`packed ${weights} weights have the error the plan says`, async () => {
    await inFolder(async (folder) => {
      await compile(folder, { weights, group: 32, correct: "none", head: "q4" }, { dtype: "F32" });
      const bound =
        { bf16: 1e-5, q8: 1e-4, q4: 0.01, q3: 0.04, q2: 0.2, q4s: 0.01, q3s: 0.04, q2s: 0.15 }[weights];
      using bundle = openBundle(join(folder, "bundle"));
      for (const { sections } of bundle.plan.weights.filter((w) => w.tensor.includes(".layers."))) {
        for (const { relativeError } of sections) assert.ok(relativeError < bound, `${relativeError}`);
      }
      assert.equal(bundle.plan.windows.length, 8);
      assert.ok(bundle.plan.windows.every((w) => w.residual === null && w.factors === null));
      assert.equal(bundle.has("0.qkv.residual.codes"), false);
      errors(folder);
    });
  });
}

/** Windows of several matrices, the only ones with padding between: their error, and what the bundle stores of it. */
function* storedWindows(folder: string) {
  const found = errors(folder);
  using bundle = openBundle(join(folder, "bundle"));
  const f32 = (name: string) => widen(bundle.tensor(name).bytes, "F32");
  for (const store of bundle.plan.windows) {
    const { window, inputs, outputs } = store;
    const name = { qkv: "self_attn.q_proj+k_proj+v_proj", gate_up: "mlp.gate_proj+up_proj" }[window.slice(2)];
    if (name === undefined) continue;
    const error = found.get(`model.layers.${window[0]}.${name}`);
    assert.ok(error !== undefined && error.length === inputs * outputs);
    const residual = store.residual && {
      codes: bundle.tensor(`${window}.residual.codes`).bytes,
      outputScale: f32(`${window}.residual.output_scale`),
      channelScale: f32(`${window}.residual.channel_scale`),
      norm: f32(`${window}.residual.norm`),
    };
    const factors = store.factors && {
      a: bundle.tensor(`${window}.factors.a`).bytes,
      b: bundle.tensor(`${window}.factors.b`).bytes,
      aScale: f32(`${window}.factors.a_scale`),
      bScale: f32(`${window}.factors.b_scale`),
      spectrum: f32(`${window}.factors.spectrum`),
    };
    yield { store, error, residual, factors };
  }
}

function less(error: Float64Array, decoded: Float64Array): Float64Array {
  return error.map((e, i) => e - (decoded[i] ?? 0));
}

function checkNorms(norm: Float32Array, error: Float64Array): void {
  norm.forEach((n, j) => {
    let square = 0;
    for (let at = j; at < error.length; at += norm.length) square += (error[at] ?? 0) ** 2;
    assert.ok(Math.abs(n - Math.sqrt(square)) < 1e-3 * n + 1e-9);
  });
}

/** What rows of a width may leave of the energy they store. */
const MOST_LOST = { 2: 0.4, 3: 0.1, 4: 0.03, 5: 0.01, 8: 2e-4 };

for (const residualWidth of RESIDUAL_WIDTHS) {
  Deno.test(`stored rows of ${residualWidth} bits are the error that the packed bytes leave`, async () => {
    await inFolder(async (folder) => {
      await compile(folder, { weights: "q2", group: 32, correct: "sparse", residualWidth });
      for (const { store: { inputs, outputs, errorEnergy }, error, residual } of storedWindows(folder)) {
        assert.ok(residual);
        const energy = energyOf(error);
        assert.ok(Math.abs(errorEnergy / energy - 1) < 1e-4);
        const lost = energyOf(less(error, decodeResidual(residual, residualWidth, outputs, inputs)));
        assert.ok(lost < MOST_LOST[residualWidth] * energy, `${lost} of ${energy}`);
        checkNorms(residual.norm, error);
      }
    });
  });
}

Deno.test("stored factors are the singular value decomposition of the error", async () => {
  await inFolder(async (folder) => {
    const maxRank = 200; // more than any window has: all components are stored
    const options = { correct: "low_rank", factorDType: "bf16", maxRank } as const;
    await compile(folder, { weights: "q2", group: 32, ...options });
    for (const { store: { inputs, outputs }, error, factors } of storedWindows(folder)) {
      assert.ok(factors);
      const rank = factors.aScale.length;
      assert.equal(rank, Math.min(inputs, outputs));
      const energy = energyOf(error);
      const lost = energyOf(less(error, decodeFactors(factors, "bf16", outputs, inputs, rank)));
      assert.ok(lost < 1e-3 * energy, `${lost} of ${energy}`);
      const { spectrum } = factors;
      assert.ok(Math.abs(spectrum.reduce((s, v) => s + v * v, 0) / energy - 1) < 1e-3);
      assert.ok(spectrum.every((v, i) => i === 0 || v <= (spectrum[i - 1] ?? 0)));
    }
  });
});

for (const factorDType of ["i8", "bf16"] as const) {
  Deno.test(`rows beside ${factorDType} factors are what the factors leave`, async () => {
    await inFolder(async (folder) => {
      for (const rank of [0, 1, 7]) {
        const budget = { kind: "rank+channels", rank, channels: 4 } as const;
        const { bytes } = await compile(folder, {
          weights: "q2",
          group: 32,
          correct: "both",
          factorDType,
          budget,
        });
        assert.equal(readFileSync(join(folder, "bundle", "weights.safetensors")).length, bytes);
        for (const { store: { inputs, outputs }, error, residual, factors } of storedWindows(folder)) {
          assert.ok(residual);
          assert.equal(factors?.aScale.length ?? 0, rank);
          const left = factors
            ? less(error, decodeFactors(factors, factorDType, outputs, inputs, rank))
            : error;
          const [before, after] = [energyOf(error), energyOf(left)];
          assert.ok(rank === 0 || after < 0.97 * before, `rank ${rank} leaves ${after} of ${before}`);
          const lost = energyOf(less(left, decodeResidual(residual, 4, outputs, inputs)));
          assert.ok(lost < MOST_LOST[4] * after, `${lost} of ${after}`);
          checkNorms(residual.norm, left);
        }
      }
    });
  });
}

Deno.test("what corrections cannot follow is refused before anything is written", async () => {
  await inFolder(async (folder) => {
    const refused = async (changes: Partial<CompileOptions>, pattern: RegExp) => {
      await assert.rejects(compile(folder, changes), (error) => {
        assert.ok(error instanceof HcinferError && error.kind === "usage", String(error));
        return pattern.test(error.message) && !existsSync(join(folder, "bundle"));
      });
    };
    await refused({ correct: "both", budget: { kind: "rank", rank: 8 } }, /needs the correction "low_rank"/);
    await refused({ budget: { kind: "rank+channels", rank: 8, channels: 8 } }, /needs the correction "both"/);
    await refused({ correct: "low_rank", budget: { kind: "rank", rank: 65 } }, /more than the 64 components/);
  });
});

Deno.test("the default format of the head keeps an uncompressed model exact", async () => {
  await inFolder(async (folder) => {
    const formats = async (changes: Partial<CompileOptions>) => {
      const { plan } = await compile(folder, changes);
      return [...new Set(plan.weights.map((w) => w.format))];
    };
    assert.deepEqual(await formats({ weights: "bf16", correct: "none" }), ["bf16"]);
    assert.deepEqual(await formats({ weights: "q3" }), ["q8g64", "q3g64"]);
    assert.deepEqual(await formats({ weights: "bf16", correct: "none", head: "q4" }), ["q4g64", "bf16"]);
  });
});

Deno.test("a tied head is the embedding's packed weight", async () => {
  await inFolder(async (folder) => {
    const { plan } = await compile(folder, {}, { tied: true });
    const outside = plan.weights.filter((w) => !w.tensor.includes(".layers."));
    assert.deepEqual(outside.map((w) => w.tensor), ["model.embed_tokens.packed"]);
    const untied = await compile(folder, {}, { tied: false });
    assert.equal(untied.plan.model.parameters - plan.model.parameters, 41 * 50);
  });
});

Deno.test("progress only grows and ends at all, graphs are printed after the stages asked for", async () => {
  await inFolder(async (folder) => {
    const seen: number[] = [];
    const printed: string[] = [];
    let all = 0;
    await compile(folder, {
      onProgress: (done, total) => {
        seen.push(done);
        all = total;
      },
      printAfter: { stages: STAGES, sink: (text) => printed.push(text) },
    });
    assert.deepEqual(seen, seen.toSorted((a, b) => a - b));
    assert.equal(seen.at(-1), all);
    assert.equal(printed.length, STAGES.length);
  });
});

Deno.test("weights that are not numbers are refused by name, whatever the tensor and format", async () => {
  for (
    const [tensor, value] of [["model.norm.weight", NaN], [
      "model.layers.0.mlp.down_proj.weight",
      -Infinity,
    ]] as const
  ) {
    for (const weights of FORMAT_KINDS) {
      await inFolder(async (folder) => {
        const edit = (name: string, values: Float32Array) => {
          if (name === tensor) values[7] = value;
        };
        await assert.rejects(compile(folder, { weights }, { edit }), (error) => {
          assert.ok(error instanceof HcinferError && error.kind === "checkpoint", String(error));
          return error.message.includes(tensor);
        });
        assert.ok(!existsSync(join(folder, "bundle")));
      });
    }
  }
});

Deno.test("an unknown architecture and a description that does not fit are typed errors", async () => {
  await inFolder(async (folder) => {
    await compile(folder, {});
    const file = join(folder, "model", "config.json");
    const config = JSON.parse(readFileSync(file, "utf8"));
    const attempt = (changes: object) => {
      writeFileSync(file, JSON.stringify({ ...config, ...changes }));
      const paths = { model: join(folder, "model"), output: join(folder, "other") };
      return compileModel({ ...COMPILE_DEFAULTS, ...paths, threads: 1, profile: genericProfile(2) });
    };
    await assert.rejects(attempt({ model_type: "mamba" }), /"mamba".*llama/);
    await assert.rejects(attempt({ model_type: "../../etc/passwd" }), HcinferError);
    await assert.rejects(attempt({ num_hidden_layers: 3 }), /missing[^]*model\.layers\.2\./);
    await assert.rejects(attempt({ num_hidden_layers: 1 }), /unexpected[^]*model\.layers\.1\./);
    await assert.rejects(
      attempt({ vocab_size: 1 << 24 }),
      /wrong shape[^]*found \[41,50\], expected \[16777216,50\]/,
    );
  });
});

Deno.test("a bundle's run.ts hands its arguments to hcinfer run", async () => {
  await inFolder(async (folder) => {
    await compile(folder, {});
    const args = ["run", "-A", join(folder, "bundle", "run.ts"), "--help"];
    const env = { HCINFER_HOME: fileURLToPath(new URL("../", import.meta.url)) };
    const { stdout, success } = await new Deno.Command(Deno.execPath(), { args, cwd: folder, env }).output();
    assert.ok(success);
    assert.match(new TextDecoder().decode(stdout), /--max-tokens/);
  });
});

Deno.test("compiled for a GPU: what fits is there, within the limit, and the bundle opens", () =>
  inFolder(async (folder) => {
    const profile = PROFILES["rtx-4060-laptop"];
    const devices = (nodes: readonly Node[]) =>
      new Set(nodes.filter((n) => windowOf(n) === undefined).map((n) => n.placement.device));
    const budget = { kind: "channels", channels: 4 } as const;
    const { plan, graphText } = await compile(folder, { profile, budget });
    assert.deepEqual([...devices(plan.graph.nodes)], ["gpu"]);
    assert.match(graphText, /because gpu: it fits/);
    using bundle = openBundle(join(folder, "bundle"));
    assert.deepEqual(bundle.plan, plan);
    assert.equal(bundle.plan.corrections.mode, "async");

    const onCpu = await compile(folder, { profile, budget, device: "cpu" });
    assert.deepEqual([...devices(onCpu.plan.graph.nodes)], ["cpu"]);
    const limits = limitsOf(plan.model, { contextLength: 20 }, true);
    const { total } = memoryOf(plan, limits).device!;
    const part = await compile(folder, { profile, budget, gpuMemory: total - 1, contextLength: 20 });
    assert.deepEqual([...devices(part.plan.graph.nodes)].sort(), ["cpu", "gpu"]);
    assert.ok(memoryOf(part.plan, limits).device!.total < total);
    const refused = compile(folder, { profile, gpuMemory: 1e5 });
    await assert.rejects(
      refused,
      refusal("usage", /the smallest plan on the GPU, its head and one layer, takes/),
    );
  }));
