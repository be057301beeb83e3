/**
 * A plan as two programs: kernels for the GPU's lane, instructions for the CPU's.
 *
 * Decode: corrections on the CPU. Prefill: as the plan says; what the GPU then corrects itself ("stream") it reads from the
 * segment `staging`, into which a window's residual or factors are copied before its first node. A value that the other
 * lane reads is copied to the same place of the other arena: by the kernel that makes it where that can (`MIRRORING`), else
 * by a `mirror` of its own, always one for values that come from the CPU. Deltas are read where the CPU wrote them.
 */
import { consumers, type Graph, type Node, producers, values } from "../../../compiler/ir/graph.ts";
import type { LanePlan, LaneStep, Plan } from "../../../compiler/plan.ts";
import { makeLanes, windowOf } from "../../../compiler/passes/schedule.ts";
import { stepGraph } from "../../../compiler/passes/steps.ts";
import { HANDSHAKE } from "../../../ffi/cuda/kernels/mirror.ts";
import { hasKernel, type KernelInstruction } from "../../../ffi/cuda/parameters.ts";
import type { Instruction, Operand, Segment } from "../../../ffi/instructions.ts";
import { Encoder } from "../encode.ts";
import type { StepKind } from "../../executor.ts";
import { meeting, type ProgramMode } from "../cpu/program.ts";

/** Ops whose kernels store f32 outputs for the other lane, too (`put` in ffi/cuda/kernels/call.h). */
const MIRRORING: ReadonlySet<Node["op"]> = new Set<Node["op"]>([
  "embedding",
  "rms_norm",
  "add_rms_norm",
  "silu_mul",
  "attend",
  "add",
  "mul",
  "silu",
  "copy",
]);

/** An instruction of the GPU's lane. */
export interface KernelStep {
  readonly instruction: KernelInstruction;
  readonly over: "tokens" | "rows";
  /** Its output also goes to the other arena. */
  readonly mirrors: boolean;
  /** Events: to wait for before it, to publish after it. */
  readonly wait: number | undefined;
  readonly signal: number | undefined;
  /** Window whose correction must be in `staging` when it runs. */
  readonly streams: string | undefined;
  /** The node it is of. */
  readonly node: Node;
}

export interface CudaProgram {
  readonly kernels: readonly KernelStep[];
  /** For the native engine; empty where the CPU has nothing to do. */
  readonly host: readonly Instruction[];
}

/** Where tensors lie in the GPU's memory. */
export interface DevicePlaces {
  readonly weight: (tensor: string) => Operand;
  readonly staged: (tensor: string, window: string) => Operand;
}
/** Where tensors lie in the bundle's file. */
export interface HostPlaces {
  readonly weight: (tensor: string) => Operand;
}

export interface ProgramOptions {
  readonly plan: Plan;
  readonly memory: ConstructorParameters<typeof Encoder>[0]["memory"];
  readonly as: StepKind;
  /** "inline": the GPU waits for a window's corrections as soon as they can be computed. */
  readonly mode: ProgramMode;
  readonly device: DevicePlaces;
  readonly host: HostPlaces;
}

export function programOf(options: ProgramOptions): CudaProgram {
  const { plan, memory, as, mode, device, host } = options;
  const form = mode === "off" ? "off" : as === "decode" ? "decode" : plan.corrections.prefill;
  const graph = stepGraph(plan.graph, form);
  const own: Plan = { ...plan, graph };
  const lanes = makeLanes(graph);
  const kernels = new Encoder({
    plan: own,
    memory,
    residuals: form === "stream",
    weight: device.weight,
    correction: device.staged,
    // Rows of spilled layers are chosen for decoded tokens alone; a prompt's linears have added all of them.
    delta: (maker) =>
      maker.op === "sparse_sum" && as === "prefill" ? undefined : onGpu(maker) ? "arena" : "twin",
  });
  const cpu = new Encoder({ plan: own, memory, residuals: mode !== "off", weight: host.weight });
  const backbone = lanes.find((lane) => lane.lane === "backbone") ?? { lane: "backbone", steps: [] };
  const rest = lanes.find((lane) => lane.lane === "compensation") ?? { lane: "compensation", steps: [] };
  return {
    kernels: new KernelLane(graph, kernels).steps(mode === "inline" ? eager(backbone, rest) : backbone),
    host: rest.steps.map((step) => "run" in step ? cpu.encode(graph.nodes[step.run]!) : meeting(step)),
  };
}

function onGpu(node: Node): boolean {
  return node.placement.device === "gpu";
}

/** Waits moved to where what they wait for can first be computed: nothing runs beside corrections. */
function eager(backbone: LanePlan, other: LanePlan): LanePlan {
  /** Events of the other lane by the event it waited for last. */
  const after = new Map<number | undefined, number[]>();
  let last: number | undefined;
  for (const step of other.steps) {
    if ("wait" in step) last = step.wait;
    if ("signal" in step) after.set(last, [...after.get(last) ?? [], step.signal]);
  }
  const waited = new Set(backbone.steps.flatMap((step) => "wait" in step ? [step.wait] : []));
  const waits = (event: number | undefined): LaneStep[] =>
    (after.get(event) ?? []).filter((own) => waited.has(own)).map((wait) => ({ wait }));
  return {
    ...backbone,
    steps: [
      ...waits(undefined),
      ...backbone.steps.flatMap((step): LaneStep[] =>
        "wait" in step ? [] : "signal" in step ? [step, ...waits(step.signal)] : [step]
      ),
    ],
  };
}

/** The GPU's lane, with the mirrors that it needs. */
class KernelLane {
  readonly #graph: Graph;
  readonly #encoder: Encoder;
  readonly #makers: ReadonlyMap<string, Node>;
  readonly #readers: ReadonlyMap<string, readonly Node[]>;
  readonly #types: ReturnType<typeof values>;
  /** Values of the CPU that are in the GPU's arena already. */
  readonly #imported = new Set<string>();

  constructor(graph: Graph, encoder: Encoder) {
    this.#graph = graph;
    this.#encoder = encoder;
    this.#makers = producers(graph);
    this.#readers = consumers(graph);
    this.#types = values(graph);
  }

  steps(lane: LanePlan): KernelStep[] {
    const steps: KernelStep[] = [];
    let wait: number | undefined;
    for (const step of lane.steps) {
      if ("wait" in step) {
        if (wait !== undefined) {
          steps.push({ ...this.#handshake(steps.at(-1)?.node), wait, signal: undefined });
        }
        wait = step.wait;
      } else if ("signal" in step) {
        const last = steps.pop();
        if (last === undefined || last.signal !== undefined) {
          throw new Error(`event ${step.signal} has no kernel`);
        }
        steps.push({ ...last, signal: step.signal });
      } else {
        const [first, ...others] = this.#of(this.#graph.nodes[step.run]!);
        steps.push({ ...first!, wait }, ...others);
        wait = undefined;
      }
    }
    return steps;
  }

  /** A node with what brings its inputs and takes its outputs away. */
  #of(node: Node): KernelStep[] {
    const imports = node.inputs.filter((name) => {
      const maker = this.#makers.get(name);
      return maker !== undefined && !onGpu(maker) && !this.#imported.has(name);
    });
    imports.forEach((name) => this.#imported.add(name));
    const exports = node.outputs.filter(({ name }) =>
      (this.#readers.get(name) ?? []).some((reader) => !onGpu(reader))
    );
    const instruction = this.#encoder.encode(node);
    if (!hasKernel(instruction)) throw new Error(`${node.op} has no kernel`);
    const mirrors = MIRRORING.has(node.op) && exports.some(({ type }) => type.dtype === "f32");
    const left = exports.filter(({ type }) => !(mirrors && type.dtype === "f32"));
    const own: KernelStep = {
      instruction,
      over: instruction.over,
      mirrors,
      wait: undefined,
      signal: undefined,
      streams: streamed(node, instruction),
      node,
    };
    return [
      ...this.#copies(node, imports, "twin", "arena"),
      own,
      ...this.#copies(node, left.map((value) => value.name), "arena", "twin"),
    ];
  }

  /** Copies of values' arrays between the arenas; of columns, whole rows, once. */
  #copies(node: Node, names: readonly string[], from: Segment, to: Segment): KernelStep[] {
    const copies = new Map<number, KernelStep>();
    for (const name of names) {
      for (const { offset, rowBytes } of this.#encoder.arrays(name)) {
        const operands = { from: { segment: from, offset }, to: { segment: to, offset } };
        const over = this.#types.get(name)!.type.shape[0] === "R" ? "rows" : "tokens";
        const instruction = { op: "mirror", operands, integers: { rowBytes }, reals: {} } as const;
        copies.set(offset, this.#step(node, instruction, over));
      }
    }
    return [...copies.values()];
  }

  /** A kernel that only waits or tells. */
  #handshake(node: Node = this.#graph.nodes[0]!): KernelStep {
    return this.#step(node, HANDSHAKE, "tokens");
  }

  #step(node: Node, instruction: KernelInstruction, over: KernelStep["over"]): KernelStep {
    return {
      instruction,
      over,
      mirrors: false,
      wait: undefined,
      signal: undefined,
      streams: undefined,
      node,
    };
  }
}

/** The window whose residual or factors an instruction reads from `staging`. */
function streamed(node: Node, { operands }: KernelInstruction): string | undefined {
  if (!Object.values(operands).some((operand) => operand?.segment === "staging")) return undefined;
  return node.op === "linear" ? node.params.window : windowOf(node);
}
