import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import { Command, InvalidArgumentError } from "commander";
import { HcinferError } from "../compiler/errors.ts";
import {
  between,
  budget,
  bytes,
  given,
  physicalCores,
  refuse,
  tokenIds,
  whole,
  withRunOptions,
} from "./arguments.ts";

function refused(reader: (text: string) => unknown, message: RegExp, ...texts: string[]): void {
  for (const text of texts) {
    assert.throws(
      () => reader(text),
      (error) => error instanceof InvalidArgumentError && message.test(error.message),
      JSON.stringify(text),
    );
  }
}

Deno.test("whole numbers", () => {
  assert.equal(whole()("1"), 1);
  assert.equal(whole()("0012"), 12);
  assert.equal(whole(0)("0"), 0);
  assert.equal(whole()("9007199254740991"), Number.MAX_SAFE_INTEGER);
  refused(
    whole(),
    /at least 1/,
    "",
    "0",
    "-1",
    "+1",
    "1.5",
    "1e3",
    "0x10",
    " 1",
    "x",
    "NaN",
    "9007199254740993",
  );
  refused(whole(2), /at least 2/, "1");
});

Deno.test("numbers of a range", () => {
  assert.equal(between(0, 1)("0.25"), 0.25);
  assert.equal(between(0, 1)("0"), 0);
  assert.equal(between(0, 1)("1"), 1);
  refused(between(0, 1), /from 0 to 1/, "", " ", "-0.1", "1.1", "x", "NaN", "Infinity", "1,5");
  refused(between(2, Infinity), /of at least 2/, "1.9");
});

Deno.test("budgets", () => {
  assert.deepEqual(budget("bytes:10%"), { kind: "bytes", share: 0.1 });
  assert.deepEqual(budget("bytes:0.5%"), { kind: "bytes", share: 0.005 });
  assert.deepEqual(budget("rank:8"), { kind: "rank", rank: 8 });
  assert.deepEqual(budget("channels:64"), { kind: "channels", channels: 64 });
  assert.deepEqual(budget("paper"), { kind: "paper", share: 0.1 });
  assert.deepEqual(budget("paper:5%"), { kind: "paper", share: 0.05 });
  assert.deepEqual(budget("rank:8,channels:64"), { kind: "rank+channels", rank: 8, channels: 64 });
  refused(
    budget,
    /bytes:N%/,
    "",
    "10%",
    "bytes:10",
    "bytes:0%",
    "bytes:101%",
    "bytes:1.2.3%",
    "rank:0",
    "rank:1.5",
    "rank:-1",
    "rank:8%",
    "channels:",
    "channels:64,rank:8",
    "rank:8,rank:8",
    "rank:8,channels:64,rank:8",
  );
});

Deno.test("bytes", () => {
  assert.equal(bytes("8GiB"), 8 * 2 ** 30);
  assert.equal(bytes("7.5 GB"), 7.5e9);
  assert.equal(bytes("512mib"), 512 * 2 ** 20);
  assert.equal(bytes("3KiB"), 3072);
  assert.equal(bytes("0.3KB"), 300);
  assert.equal(bytes("1073741824"), 2 ** 30);
  assert.equal(bytes("1.0000001KiB"), 1024);
  refused(
    bytes,
    /like 8GiB, 7.5GB or 512MiB/,
    "",
    "GiB",
    "0",
    "0GiB",
    "0.1",
    "-1GiB",
    "8G",
    "8 GiB free",
    "8GiBs",
    "1e9",
    "0x10",
    "1,5GiB",
    ".5GiB",
    "NaN",
    "Infinity",
    "99999999GiB",
  );
});

Deno.test("token ids", () => {
  assert.deepEqual(tokenIds("0"), Int32Array.of(0));
  assert.deepEqual(tokenIds("1, 2 ,300000000"), Int32Array.of(1, 2, 300000000));
  refused(tokenIds, /like 1,2,3/, "", ",", "1,,2", "1,", "a", "-1", "1.5", "1 2", "1e3", "4294967296");
});

function parsed(...args: string[]): Command {
  return withRunOptions(new Command()).exitOverride().configureOutput({ writeErr: () => {} }).action(() => {})
    .option("--max-rank <n>")
    .parse(args, { from: "user" });
}

Deno.test("options that every command which runs a model shares", () => {
  assert.deepEqual(parsed().opts(), { threads: physicalCores(), corrections: "auto", device: "auto" });
  assert.ok(physicalCores() >= 1);
  const all = ["--threads", "1", "--corrections", "inline", "--context", "512"];
  assert.deepEqual(parsed(...all).opts(), {
    threads: 1,
    corrections: "inline",
    context: 512,
    device: "auto",
  });
  for (
    const [option, value] of [["--threads", "0"], ["--context", "0"], ["--context", "1k"], [
      "--corrections",
      "on",
    ]]
  ) {
    assert.throws(() => parsed(option!, value!), /commander|argument|Expected|choices|Allowed/);
  }
});

Deno.test("more threads than processors are refused with how many there are", () => {
  const most = availableParallelism();
  assert.equal(parsed("--threads", `${most}`).opts().threads, most);
  const refusal = new RegExp(
    `'--threads <n>' argument '9999' is invalid. This process may use ${most} processors? \\(`,
  );
  assert.throws(() => parsed("--threads", "9999"), refusal);
});

Deno.test("a limit of the GPU's memory needs a GPU", () => {
  const limit = ["--gpu-memory", "8GiB"];
  assert.equal(parsed(...limit).opts().gpuMemory, 2 ** 33);
  assert.deepEqual(parsed("--device", "cuda", ...limit).opts().device, "cuda");
  assert.throws(
    () => parsed("--device", "cpu", ...limit),
    (error) =>
      error instanceof HcinferError && error.kind === "usage" &&
      error.message === "--device cpu uses no GPU, so --gpu-memory would have no effect: leave it out",
  );
  assert.throws(() => parsed("--device", "gpu"), /Allowed choices are auto, cpu, cuda/);
});

Deno.test("only an option that was given can be refused", () => {
  const command = parsed("--max-rank", "8");
  assert.ok(given(command, "maxRank"));
  assert.ok(!given(command, "threads"));
  refuse(command, "because", "threads", "context");
  assert.throws(
    () => refuse(command, "there are no factors", "maxRank", "threads"),
    (error) =>
      error instanceof HcinferError && error.kind === "usage" &&
      error.message === "there are no factors, so --max-rank would have no effect: leave it out",
  );
});
