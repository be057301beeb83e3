/**
 * The null executor: computes nothing. It walks the plan with a clock from a machine profile, so that a model can be
 * planned for a machine that is not there; `trace` is the predicted timeline of one decoded token. Logits are zeros.
 */
import { HcinferError } from "../../compiler/errors.ts";
import { usesGpu } from "../../compiler/ir/graph.ts";
import { limitsOf, type Memory, memoryOf } from "../../compiler/memory.ts";
import { correctionMode, type ModelInfo, type Plan } from "../../compiler/plan.ts";
import { genericProfile, type MachineProfile, profileOf } from "../../compiler/profile.ts";
import { type Timeline, timelineOf } from "../../compiler/timeline.ts";
import {
  checkStep,
  type Executor,
  type ExecutorOptions,
  logitRows,
  type Sequence,
  type StepRequest,
} from "../executor.ts";

class NullSequence implements Sequence {
  /** @param owner the executor; undefined once this is closed */
  constructor(public owner: Executor | undefined, public length = 0) {}

  fork(): NullSequence {
    return new NullSequence(this.owner, this.length);
  }

  [Symbol.dispose](): void {
    this.owner = undefined;
    this.length = 0;
  }
}

export class NullExecutor implements Executor {
  readonly name = "null";
  readonly model: ModelInfo;
  readonly capacity: number;
  readonly contextLength: number;
  /** What one token is predicted to take: steps, stalls and totals of every lane. */
  readonly trace: Timeline;
  /** What the plan's memory is predicted to be. */
  readonly memory: Memory;
  #clock = 0;

  /**
   * @param options threads and corrections as for any executor; `profile` is the machine to pretend. Default: a generic CPU,
   *   or the machine of a plan that has nodes on a GPU
   */
  constructor(plan: Plan, options: ExecutorOptions & { readonly profile?: MachineProfile }) {
    const { threads } = options;
    const withGpu = usesGpu(plan.graph);
    const { profile = (withGpu ? profileOf(plan) : undefined) ?? genericProfile(threads) } = options;
    this.model = plan.model;
    this.trace = timelineOf(plan, correctionMode(plan, options.corrections, threads), { profile, threads });
    this.memory = memoryOf(plan, limitsOf(plan.model, options, withGpu));
    this.capacity = this.memory.limits.capacity;
    this.contextLength = this.memory.limits.contextLength;
  }

  /** Predicted microseconds of everything stepped so far, a prompt's tokens counted one by one. */
  get clock(): number {
    return this.#clock;
  }

  sequence(): Sequence {
    return new NullSequence(this);
  }

  step(request: StepRequest): readonly Float32Array[] {
    checkStep(this, request);
    return request.runs.map((run) => ({ ...run, sequence: this.#own(run.sequence) })).map((run) => {
      run.sequence.length = run.position + run.tokens.length;
      this.#clock += this.trace.microseconds * run.tokens.length;
      return new Float32Array(logitRows(run) * this.model.vocabularySize);
    });
  }

  #own(sequence: Sequence): NullSequence {
    if (sequence instanceof NullSequence && sequence.owner === this) return sequence;
    throw new HcinferError("input", "a run names a sequence that is closed or of another executor");
  }

  stepAsync(request: StepRequest, signal?: AbortSignal): Promise<readonly Float32Array[]> {
    return new Promise((resolve) => {
      signal?.throwIfAborted();
      resolve(this.step(request));
    });
  }

  [Symbol.dispose](): void {}
}

export function createNullExecutor(
  plan: Plan,
  options: ExecutorOptions & { readonly profile?: MachineProfile },
): NullExecutor {
  return new NullExecutor(plan, options);
}
