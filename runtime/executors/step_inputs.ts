/** What a step reads (segment `step`), written into the memory that executors read it from. */
import { logitRows, type Run } from "../executor.ts";
import type { Memory } from "../../compiler/memory.ts";
import type { StepCounts } from "../../ffi/engine.ts";
import { ATTENTION_TILE } from "../../ffi/instructions.ts";
import type { NativeMemory } from "../../ffi/mapping.ts";
import type { PagedSequence } from "./pages.ts";

/** A run of a sequence of this executor. */
export type PagedRun = Run & {
  readonly sequence: PagedSequence;
  /** Position after its last token. */
  readonly end: number;
};

export class StepInputs {
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #sequences: Int32Array;
  readonly #rows: Int32Array;
  readonly #tiles: Int32Array;
  readonly #pages: Int32Array;
  readonly #mostPages: number;

  constructor(memory: NativeMemory, { inputs, limits, mostPages, mostRuns }: Memory) {
    const array = (offset: number, length: number) => {
      const { buffer, byteOffset } = memory.view(offset, 4 * length);
      return new Int32Array(buffer, byteOffset, length);
    };
    this.#tokens = array(inputs.tokens, limits.capacity);
    this.#positions = array(inputs.positions, limits.capacity);
    this.#sequences = array(inputs.sequences, limits.capacity);
    this.#rows = array(inputs.rows, limits.capacity);
    this.#tiles = array(inputs.tiles, 2 * limits.capacity);
    this.#pages = array(inputs.pages, mostRuns * mostPages);
    this.#mostPages = mostPages;
  }

  /** Writes runs of one kind. */
  write(runs: readonly PagedRun[]): StepCounts {
    let token = 0, row = 0, tile = 0;
    runs.forEach((run, n) => {
      const { sequence, position, tokens } = run;
      this.#tokens.set(tokens, token);
      this.#pages.set(sequence.pages, n * this.#mostPages);
      for (let t = 0; t < tokens.length; t += ATTENTION_TILE) {
        this.#tiles[2 * tile] = token + t;
        this.#tiles[2 * tile++ + 1] = Math.min(ATTENTION_TILE, tokens.length - t);
      }
      for (let t = 0; t < tokens.length; t++, token++) {
        this.#positions[token] = position + t;
        this.#sequences[token] = n;
        if (t >= tokens.length - logitRows(run)) this.#rows[row++] = token;
      }
    });
    return { tokens: token, rows: row, tiles: tile, mode: runs[0]!.as };
  }
}
