/**
 * The kernel of the sparse corrections by itself: sums of rows chosen at random from a mapped file many times larger than any
 * cache, a tenth of a window's, others in every measurement. Beside what the memory gives when it is read in order.
 */
import { closeSync, existsSync, mkdirSync, openSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { median } from "../../cli/bench.ts";
import { Engine } from "../../ffi/engine.ts";
import type { Instruction, Operand } from "../../ffi/instructions.ts";
import { allocate, mapFile, type NativeBuffer } from "../../ffi/mapping.ts";
import { memoryBandwidth } from "../../ffi/measure.ts";
import { cacheFolder } from "./shape.ts";
import { spread } from "./spread.ts";

const BYTES = 2 ** 29;
const ROW_BYTES = [512, 1024, 2048, 4096] as const;
/** Rows of a window, and how many of them a token reads. */
const INPUTS = 2048, CHOSEN = 205;
const WIDTH = 4;

/** A row a size: bytes of a row, GB/s of codes, and their share of the machine's read bandwidth. */
export function gatherRows(threads: number, repeats: number): string[][] {
  using file = mapFile(randomFile());
  const found = ROW_BYTES.map((): number[] => []), streams: number[] = [];
  for (let repeat = 0; repeat <= repeats; repeat++) {
    const stream = memoryBandwidth("read", threads, 2);
    if (repeat > 0) streams.push(stream);
    ROW_BYTES.forEach((rowBytes, i) => {
      using windows = new Windows(rowBytes);
      const program = windows.program();
      using engine = new Engine({
        lanes: [{ program, threads }],
        memory: { weights: file, arena: windows.arena },
        capacity: 1,
      });
      for (let step = 0; step < 3; step++) {
        windows.choose();
        const began = performance.now();
        engine.step({ tokens: 1, rows: 1, tiles: 1, mode: "decode" });
        const seconds = (performance.now() - began) / 1000;
        if (repeat > 0 && step > 0) found[i]!.push(program.length * CHOSEN * rowBytes / seconds / 1e9);
      }
    });
  }
  const stream = median(streams) / 1e9;
  return ROW_BYTES.map((rowBytes, i) => [
    `${rowBytes}`,
    spread(found[i]!),
    `${(100 * median(found[i]!) / stream).toFixed(0)} % of ${stream.toFixed(1)}`,
  ]);
}

function randomFile(): string {
  const path = join(cacheFolder(), "gather");
  if (existsSync(path) && statSync(path).size === BYTES) return path;
  mkdirSync(cacheFolder(), { recursive: true });
  const file = openSync(path, "w");
  const part = new Uint8Array(2 ** 25);
  for (let at = 0; at < part.length; at += 2 ** 16) crypto.getRandomValues(part.subarray(at, at + 2 ** 16));
  for (let at = 0; at < BYTES; at += part.length) writeSync(file, part);
  closeSync(file);
  return path;
}

/** Bytes of a choice in the arena: indices, coefficients, and scale, sum and count. */
const CHOICE = { index: 0, coefficient: 4 * CHOSEN, scale: 6 * CHOSEN + 2, bytes: 6 * CHOSEN + 2 + 12 };

/** As many windows as the file holds, each with its choice of rows. */
class Windows implements Disposable {
  readonly arena: NativeBuffer;
  readonly #count: number;
  readonly #scales = 4 * Math.max(INPUTS, 2 * ROW_BYTES.at(-1)!);

  constructor(readonly rowBytes: number) {
    this.#count = BYTES / (INPUTS * rowBytes);
    this.arena = allocate(2 * this.#scales + this.#count * CHOICE.bytes);
  }

  /** Other rows for each window. */
  choose(): void {
    for (let window = 0; window < this.#count; window++) {
      const at = this.#choice(window);
      const order = Float64Array.from({ length: INPUTS }, () => Math.random());
      const rows = Int32Array.from({ length: INPUTS }, (_, row) => row).sort((a, b) => order[a]! - order[b]!);
      const view = (offset: number, length: number) => this.arena.view(at + offset, length);
      put(view(CHOICE.index, 4 * CHOSEN), rows.subarray(0, CHOSEN).sort());
      put(view(CHOICE.coefficient, 2 * CHOSEN), Int16Array.from({ length: CHOSEN }, (_, n) => 7 * n + 1));
      put(view(CHOICE.scale, 4), Float32Array.of(1));
      put(view(CHOICE.scale + 4, 8), Int32Array.of(0, CHOSEN));
    }
  }

  program(): Instruction[] {
    const arena = (offset: number): Operand => ({ segment: "arena", offset });
    return Array.from({ length: this.#count }, (_, window): Instruction => ({
      op: "sparseSum",
      operands: {
        residualCodes: { segment: "weights", offset: window * INPUTS * this.rowBytes },
        outputScale: arena(0),
        channelScale: arena(0),
        norm: arena(0),
        index: arena(this.#choice(window) + CHOICE.index),
        coefficient: arena(this.#choice(window) + CHOICE.coefficient),
        selectionScale: arena(this.#choice(window) + CHOICE.scale),
        selectionSum: arena(this.#choice(window) + CHOICE.scale + 4),
        selectionCount: arena(this.#choice(window) + CHOICE.scale + 8),
        delta: arena(this.#scales),
      },
      integers: {
        channels: CHOSEN,
        deltaStride: 8 * this.rowBytes / WIDTH,
        residualWidth: WIDTH,
        residualInputs: INPUTS,
        residualOutputs: 8 * this.rowBytes / WIDTH,
        rowBytes: this.rowBytes,
      },
      reals: {},
      over: "tokens",
      when: "always",
      barrier: false,
      awaits: 0,
    }));
  }

  #choice(window: number): number {
    return 2 * this.#scales + window * CHOICE.bytes;
  }

  [Symbol.dispose](): void {
    this.arena.close();
  }
}

function put(to: Uint8Array, values: Int32Array | Int16Array | Float32Array): void {
  to.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
}
