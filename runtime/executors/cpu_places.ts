/**
 * Where a lowering's values lie: in buffers of the arena that are named here and placed by cpu_memory.ts, in the
 * bundle's weights, or as columns of another value.
 */
import type { Op } from "../../compiler/ir/ops.ts";
import {
  consumers,
  type Node,
  type NodeOf,
  producers,
  type RopeTable,
  ropeTable,
  values,
} from "../../compiler/ir/graph.ts";
import { packedName } from "../../compiler/ir/naming.ts";
import { elementsPerToken } from "../../compiler/ir/types.ts";
import type { Plan } from "../../compiler/plan.ts";
import { FORMAT_KINDS, packedShape, parseFormat, type WeightFormat } from "../../compiler/weights/format.ts";
import { HcinferError } from "../../compiler/errors.ts";
import type { Operand } from "../../ffi/instructions.ts";
import type { Buffer, Place } from "./cpu_memory.ts";

/** Where a tensor of weights.safetensors lies. */
export type WeightPlaces = (tensor: string) => Operand;

/** A delta that is added where a value is read. Sparse rows exist only for tokens run as decode. */
export interface Delta {
  readonly place: Place;
  readonly decodeOnly: boolean;
}

/** A value that may not lie in memory as such: columns of a wider matrix, with what its consumer still has to do. */
export interface Address {
  readonly place: Place;
  /** f32 between tokens. */
  readonly stride: number;
  readonly deltas: readonly Delta[];
  readonly norm?: { readonly weight: Operand; readonly epsilon: number };
  /** Of the graph's rotation tables. */
  readonly table?: string;
}

/** int8 activations of a value, for one group size, under the names the instruction table gives them. */
export interface Quantized {
  readonly operands: { readonly codes: Place; readonly scales: Place; readonly sums: Place };
  readonly sizes: { readonly group: number; readonly groups: number; readonly codeStride: number };
}

export const NOT_QUANTIZED = { group: 0, groups: 0, codeStride: 0 } as const;

/** Rotation tables of one kind, f32 [context, headDim / 2] each: cosines at `offset`, sines after them. */
export interface RopePlace extends RopeTable {
  readonly offset: number;
}

export interface PackedPlace {
  readonly place: Operand;
  readonly format: WeightFormat;
  /** As the instruction table has them. */
  readonly codes: { readonly format: number; readonly group: number };
}

export class Places {
  readonly #addresses = new Map<string, Address>();
  readonly #quantized = new Map<string, Quantized>();
  readonly #consumers: ReadonlyMap<string, readonly Node[]>;
  readonly #producers: ReadonlyMap<string, Node>;
  readonly #types: ReturnType<typeof values>;
  readonly #ropes: RopePlace[] = [];
  #buffers = 0;
  #cacheBytes = 0;
  #tableBytes = 0;

  constructor(readonly plan: Plan, readonly weight: WeightPlaces, readonly contextLength: number) {
    this.#consumers = consumers(plan.graph);
    this.#producers = producers(plan.graph);
    this.#types = values(plan.graph);
  }

  get ropes(): readonly RopePlace[] {
    return this.#ropes;
  }
  get tableBytes(): number {
    return this.#tableBytes;
  }
  get cacheBytes(): number {
    return this.#cacheBytes;
  }

  // ---- the graph

  shape(name: string): readonly (number | string)[] {
    return this.#type(name).shape;
  }

  /** Elements of a token. */
  width(name: string): number {
    return elementsPerToken(this.#type(name));
  }

  #type(name: string) {
    const value = this.#types.get(name);
    if (!value) throw new Error(`${name} has no type`);
    return value.type;
  }

  producer(name: string): Op | undefined {
    return this.#producers.get(name)?.op;
  }

  consumers(name: string): readonly Node[] {
    return this.#consumers.get(name) ?? [];
  }

  // ---- memory

  /** f32 memory of `width` elements a token. */
  allocate(width: number): { readonly buffer: Buffer; readonly offset: number } {
    return { buffer: { id: this.#buffers++, bytesPerToken: 4 * Math.ceil(width) }, offset: 0 };
  }

  /** Memory of the key-value cache. */
  cache(bytes: number): Operand {
    const offset = this.#cacheBytes;
    this.#cacheBytes += Math.ceil(bytes / 64) * 64;
    return { segment: "cache", offset };
  }

  rope(name: string): { cosines: Operand; sines: Operand } {
    const table = ropeTable(this.plan.graph, name);
    const bytes = 4 * this.contextLength * table.frequencies.length;
    let place = this.#ropes.find((r) => r.name === name);
    if (!place) {
      place = { ...table, offset: this.#tableBytes };
      this.#ropes.push(place);
      this.#tableBytes += 2 * bytes;
    }
    return {
      cosines: { segment: "tables", offset: place.offset },
      sines: { segment: "tables", offset: place.offset + bytes },
    };
  }

  // ---- weights

  packed(name: string): PackedPlace {
    const weight = this.plan.weights.find((w) => w.tensor === `${name}.packed`);
    const format = weight && parseFormat(weight.format);
    if (!weight || !format || packedShape(format, weight.rows, weight.inputs).bytes !== weight.bytes) {
      throw new HcinferError(
        "bundle",
        `the plan has no packed weight ${name} of a size that fits its format`,
      );
    }
    const codes = {
      format: FORMAT_KINDS.indexOf(format.kind),
      group: format.kind === "bf16" ? 0 : format.group,
    };
    return { place: this.weight(weight.tensor), format, codes };
  }

  vector(path: string): Operand {
    return this.weight(`${path}.weight`);
  }

  // ---- values

  /** Memory for the value `name`: the place already promised to a reader in the other lane, or a new one. */
  make(name: string, width: number): Place {
    const known = this.#addresses.get(name);
    if (known) return known.place;
    const place = this.allocate(width);
    this.#addresses.set(name, { place, stride: width, deltas: [] });
    return place;
  }

  set(name: string, address: Address): void {
    this.#addresses.set(name, address);
  }

  alias(node: NodeOf<"split_heads"> | NodeOf<"merge_heads">): void {
    this.set(node.outputs[0]!.name, this.address(node.inputs[0]!));
  }

  /** Where `name` is. A delta that the compensation lane has yet to make gets its place now. */
  address(name: string): Address {
    const known = this.#addresses.get(name);
    if (known) return known;
    const op = this.producer(name);
    if (op !== "low_rank" && op !== "sparse_residual") throw new Error(`${name} is read before it is made`);
    this.make(name, this.width(name));
    return this.#addresses.get(name)!;
  }

  // ---- int8 activations

  /** int8 memory of `name` in groups of `group`, and whether it is new. */
  quantized(name: string, group: number): { readonly quantized: Quantized; readonly isNew: boolean } {
    const key = `${name} ${group}`;
    const made = this.#quantized.get(key);
    if (made) return { quantized: made, isNew: false };
    const width = this.width(name);
    const groups = Math.ceil(width / group), codeStride = Math.ceil(width / 128) * 128;
    const quantized = {
      operands: {
        codes: this.allocate(codeStride / 4),
        scales: this.allocate(groups),
        sums: this.allocate(groups),
      },
      sizes: { group, groups, codeStride },
    };
    this.#quantized.set(key, quantized);
    return { quantized, isNew: true };
  }

  /** int8 memory for whoever makes `name` to fill, where its quantised readers agree on a group size. */
  quantizedByProducer(name: string): Quantized | undefined {
    const groups = new Set<number>();
    for (const node of this.consumers(name)) {
      if (node.op !== "linear") continue;
      const { format } = this.packed(packedName(node.params.weights));
      if (format.kind !== "bf16") groups.add(format.group);
    }
    const [group] = groups;
    return group === undefined || groups.size > 1 ? undefined : this.quantized(name, group).quantized;
  }
}

export function shifted(place: Place, bytes: number): Place {
  return { ...place, offset: place.offset + bytes };
}
