import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openBundle } from "./bundle.ts";
import { COMPILE_DEFAULTS, compileModel, type CompileOptions } from "./compile.ts";
import { HcinferError } from "./errors.ts";
import { STAGES } from "./ir/graph.ts";
import { genericProfile } from "./profile.ts";
import { openCheckpoint } from "./weights/checkpoint.ts";
import { RESIDUAL_WIDTHS } from "./weights/correction.ts";
import { decodeFactors, decodeResidual } from "./weights/correction_reference.ts";
import { FORMAT_KINDS, parseFormat } from "./weights/format.ts";
import { widen } from "./weights/half.ts";
import { dequantize } from "./weights/reference.ts";
import { type TinyModel, writeTinyModel } from "./weights/tiny_model.ts";

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
      const source = checkpoint.tensor(`${path}.weight`);
      let [lost, energy] = [0, 0];
      widen(source.bytes, source.dtype).forEach((w, i) => {
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
      const bound = { bf16: 1e-5, q8: 1e-4, q4: 0.01, q3: 0.04, q2: 0.2 }[weights];
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

Deno.test("stored corrections are of the error that the packed bytes leave", async () => {
  await inFolder(async (folder) => {
    for (const residualWidth of RESIDUAL_WIDTHS) {
      const maxRank = 200; // more than any window has: all components are stored
      await compile(folder, {
        weights: "q2",
        group: 32,
        correct: "both",
        residualWidth,
        maxRank,
        factorDType: "bf16",
      });
      const found = errors(folder);
      using bundle = openBundle(join(folder, "bundle"));
      const f32 = (name: string) => widen(bundle.tensor(name).bytes, "F32");
      for (const { window, inputs, outputs, errorEnergy } of bundle.plan.windows) {
        const name =
          { qkv: "self_attn.q_proj+k_proj+v_proj", gate_up: "mlp.gate_proj+up_proj" }[window.slice(2)];
        if (name === undefined) continue;
        const error = found.get(`model.layers.${window[0]}.${name}`);
        assert.ok(error !== undefined && error.length === inputs * outputs);
        const energy = energyOf(error);
        assert.ok(Math.abs(errorEnergy / energy - 1) < 1e-4);
        const left = (decoded: Float64Array) => energyOf(error.map((e, i) => e - (decoded[i] ?? 0))) / energy;
        const residual = {
          codes: bundle.tensor(`${window}.residual.codes`).bytes,
          outputScale: f32(`${window}.residual.output_scale`),
          channelScale: f32(`${window}.residual.channel_scale`),
          norm: f32(`${window}.residual.norm`),
        };
        const bound = { 2: 0.4, 3: 0.1, 4: 0.03, 5: 0.01, 8: 2e-4 }[residualWidth];
        const lost = left(decodeResidual(residual, residualWidth, outputs, inputs));
        assert.ok(lost < bound, `${window}, ${residualWidth} bits: ${lost}`);
        residual.norm.forEach((norm, j) => {
          let square = 0;
          for (let o = 0; o < outputs; o++) square += (error[o * inputs + j] ?? 0) ** 2;
          assert.ok(Math.abs(norm - Math.sqrt(square)) < 1e-3 * norm + 1e-9);
        });
        const factors = {
          a: bundle.tensor(`${window}.factors.a`).bytes,
          b: bundle.tensor(`${window}.factors.b`).bytes,
          aScale: f32(`${window}.factors.a_scale`),
          bScale: f32(`${window}.factors.b_scale`),
        };
        const rank = factors.aScale.length;
        assert.equal(rank, Math.min(inputs, outputs));
        const all = left(decodeFactors(factors, "bf16", outputs, inputs, rank));
        assert.ok(all < 1e-3, `${window}: ${all}`);
        const spectrum = f32(`${window}.factors.spectrum`);
        assert.ok(Math.abs(spectrum.reduce((s, v) => s + v * v, 0) / energy - 1) < 1e-3);
        assert.ok(spectrum.every((v, i) => i === 0 || v <= (spectrum[i - 1] ?? 0)));
      }
    }
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
    const { stdout, success } = await new Deno.Command(Deno.execPath(), { args, cwd: folder }).output();
    const main = fileURLToPath(new URL("../main.ts", import.meta.url));
    assert.ok(readFileSync(join(folder, "bundle", "run.ts"), "utf8").includes(main));
    assert.ok(success);
    assert.match(new TextDecoder().decode(stdout), /--max-tokens/);
  });
});
