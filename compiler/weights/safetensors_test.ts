import assert from "node:assert/strict";
import fc from "fast-check";
import { HcinferError } from "../errors.ts";
import {
  DTYPE_BYTES,
  layoutSafetensors,
  readSafetensors,
  type TensorDType,
  type TensorSpec,
} from "./safetensors.ts";

/** A file with this header (an object or raw text) and `dataBytes` bytes of data. */
function file(header: unknown, dataBytes = 0, length?: bigint): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

function refused(bytes: Uint8Array, pattern: RegExp): void {
  assert.throws(() => readSafetensors(bytes, "x.safetensors"), (error) => {
    assert.ok(error instanceof HcinferError && error.kind === "checkpoint", String(error));
    assert.match(error.message, /x\.safetensors/);
    assert.match(error.message, pattern);
    return true;
  });
}

Deno.test("reads tensors as views, and metadata", () => {
  const header = {
    __metadata__: { format: "pt" },
    b: { dtype: "F32", shape: [2, 1], data_offsets: [4, 12] },
    a: { dtype: "BF16", shape: [2], data_offsets: [0, 4] },
    empty: { dtype: "U8", shape: [0, 7], data_offsets: [4, 4] },
  };
  const bytes = file(header, 12);
  const { tensors, metadata } = readSafetensors(bytes, "x");
  assert.deepEqual([...tensors.keys()].sort(), ["a", "b", "empty"]);
  assert.equal(metadata.get("format"), "pt");
  const b = tensors.get("b");
  assert.equal(b?.bytes.buffer, bytes.buffer);
  assert.equal(b?.bytes.byteOffset, bytes.length - 8);
  assert.deepEqual(b?.shape, [2, 1]);
});

Deno.test("lying headers are refused with the reason", () => {
  const tensor = (begin: number, end: number, shape = [end - begin], dtype = "U8") => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  refused(new Uint8Array(3), /3 bytes/);
  refused(file("{}", 0, 1n << 62n), /header of 4611686018427387904 bytes/);
  refused(file("{}", 0, 3n), /cut off/);
  refused(file("{"), /cannot be read as JSON/);
  refused(file("[]"), /not a JSON object/);
  refused(file("[".repeat(100_000)), /nested more than 64 deep/);
  refused(file(`{"a":${"[".repeat(50_000)}${"]".repeat(50_000)}}`), /nested more than 64 deep/);
  refused(file({ a: tensor(0, 8) }, 4), /ends at byte 8 of 4/);
  refused(file({ a: tensor(0, 4), b: tensor(2, 6) }, 6), /overlaps/);
  refused(file({ a: tensor(0, 4), b: tensor(8, 12) }, 12), /belong to no tensor/);
  refused(file({ a: tensor(0, 4) }, 5), /1 bytes after the last tensor/);
  refused(file({ a: tensor(0, 4, [2]) }, 4), /needs 2 bytes/);
  refused(file({ a: tensor(4, 0, [-4]) }, 4), /tensor "a"/);
  refused(file({ a: tensor(0, 4, [2 ** 40, 2 ** 40], "F32") }, 4), /needs/);
  refused(file({ a: tensor(0, 4, [1e300]) }, 4), /tensor "a"/);
  refused(file({ a: tensor(0, 4, [4], "Q4_0") }, 4), /unknown dtype "Q4_0"/);
  refused(file({ a: { dtype: "U8", shape: [4], data_offsets: [0, 4], more: 1 } }, 4), /tensor "a"/);
  refused(file({ a: tensor(0, 4), __metadata__: { n: 1 } }, 4), /__metadata__/);
  refused(file('{"__proto__": 3}'), /tensor "__proto__"/);
});

Deno.test("whatever the bytes, the reader gives tensors inside the file or a typed error", () => {
  const anything = fc.uint8Array({ maxLength: 300 });
  fc.assert(fc.property(anything, soundOrRefused), { numRuns: 500 });
  const size = fc.oneof(fc.nat(64), fc.maxSafeInteger(), fc.double(), fc.constant(null));
  const entry = fc.record({
    dtype: fc.oneof(fc.constantFrom(...Object.keys(DTYPE_BYTES)), fc.string()),
    shape: fc.oneof(fc.array(size, { maxLength: 4 }), fc.anything()),
    data_offsets: fc.oneof(fc.tuple(size, size), fc.anything()),
  }, { requiredKeys: [] });
  const header = fc.oneof(fc.dictionary(fc.string(), entry, { maxKeys: 4 }), fc.json(), fc.string());
  const length = fc.oneof(fc.constant(undefined), fc.bigInt(0n, 2n ** 64n - 1n));
  fc.assert(
    fc.property(header, fc.nat(64), length, (h, data, n) => soundOrRefused(file(h, data, n))),
    { numRuns: 1000 },
  );
});

Deno.test("sound files with a flipped byte in the header never read outside", () => {
  const { header, fileBytes } = layoutSafetensors([
    { name: "w", dtype: "F32", shape: [4, 4] },
    { name: "v", dtype: "U8", shape: [5] },
  ]);
  fc.assert(
    fc.property(fc.nat(header.length - 1), fc.nat(255), (at, value) => {
      const bytes = new Uint8Array(fileBytes);
      bytes.set(header);
      bytes[at] = value;
      soundOrRefused(bytes);
    }),
    { numRuns: 1000 },
  );
});

function soundOrRefused(bytes: Uint8Array): void {
  try {
    for (const { bytes: view, shape, dtype } of readSafetensors(bytes, "x").tensors.values()) {
      assert.equal(view.buffer, bytes.buffer);
      assert.ok(view.byteOffset + view.length <= bytes.byteOffset + bytes.length);
      assert.equal(shape.reduce((a, b) => a * b, DTYPE_BYTES[dtype]), view.length);
    }
  } catch (error) {
    assert.ok(error instanceof HcinferError, String(error));
  }
}

Deno.test("what is laid out is read back, every tensor at a multiple of 64 bytes", () => {
  const dtype = fc.constantFrom<TensorDType>("U8", "I8", "BF16", "F32");
  const spec = fc.record({
    name: fc.string({ minLength: 1 }),
    dtype,
    shape: fc.array(fc.nat(9), { maxLength: 3 }),
  });
  const specs = fc.uniqueArray(spec, { selector: (s) => s.name, maxLength: 6 });
  fc.assert(fc.property(specs, (list: TensorSpec[]) => {
    const { header, ranges, fileBytes } = layoutSafetensors(list, { format: "test" });
    const bytes = new Uint8Array(fileBytes);
    bytes.set(header);
    const { tensors, metadata } = readSafetensors(bytes, "x");
    assert.equal(metadata.get("format"), "test");
    if (list.length === 1) assert.equal(tensors.size, 1);
    for (const { name, dtype, shape } of list) {
      const found = tensors.get(name);
      assert.deepEqual([found?.dtype, found?.shape], [dtype, shape]);
      assert.equal(found?.bytes.byteOffset, ranges.get(name)?.offset);
      assert.equal((found?.bytes.byteOffset ?? 1) % 64, 0);
    }
  }));
});
