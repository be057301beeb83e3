import assert from "node:assert/strict";
import { DriverError, driverKind } from "../driver.ts";
import { runInstruction } from "./fixture.ts";

const source = () => Int32Array.from({ length: 6 }, (_, i) => 100 + i);
const mirror = (from: Int32Array, to: Int32Array, n: number, rowBytes = 12) =>
  runInstruction("mirror", { operands: { from, to }, integers: { rowBytes }, step: { n } });

Deno.test("an instruction runs over n tokens, and operands are written back", () => {
  const to = new Int32Array(6).fill(-1);
  assert.deepEqual(mirror(source(), to, 1), {});
  assert.deepEqual([...to], [100, 101, 102, -1, -1, -1]);
  mirror(source(), to, 2);
  assert.deepEqual(to, source());
});

Deno.test("operands are bytes of their arrays alone", () => {
  const all = new Int32Array(10), to = all.subarray(2, 8);
  mirror(source(), to, 2);
  assert.deepEqual([...all], [0, 0, ...source(), 0, 0]);
});

const onSimulator = { ignore: driverKind("sim") !== "sim" };

Deno.test("what reaches outside an operand is a fault, and the next run is clean", onSimulator, () => {
  const fault = (error: unknown) => error instanceof DriverError && error.lost;
  // A guard page lies behind the last 16 bytes that the operand has a part of.
  assert.throws(() => mirror(source(), new Int32Array(4), 2), fault);
  assert.throws(() => mirror(new Int32Array(4), source(), 2), fault);
  const to = new Int32Array(6);
  mirror(source(), to, 2);
  assert.deepEqual(to, source());
});

Deno.test("an operand that the instruction does not have is refused", () => {
  assert.throws(
    () => runInstruction("mirror", { operands: { form: source() }, integers: { rowBytes: 4 } }),
    /mirror has no operand form/,
  );
});
