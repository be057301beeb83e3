/**
 * The null executor: computes nothing. It walks the plan with a clock from a machine profile, so that a model can be
 * planned for a machine that is not there; `trace` is the predicted timeline of one decoded token. Logits are zeros.
 */
import type { Plan } from "../../compiler/plan.ts";
import { genericProfile, type MachineProfile } from "../../compiler/profile.ts";
import { asyncTimeline, peakMemory, serialTimeline, type Timeline } from "../../compiler/timeline.ts";
import { checkStep, type Executor, type ExecutorOptions, logitRows, type StepRequest } from "../executor.ts";

export interface NullExecutor extends Executor {
  /** What one token is predicted to take: steps, stalls and totals of every lane. */
  readonly trace: Timeline;
  /** Predicted bytes of weights, corrections, key-value cache and arena at the executor's capacity. */
  readonly peakBytes: number;
  /** Predicted microseconds of everything stepped so far, a prompt's tokens counted one by one. */
  readonly clock: number;
}

/**
 * @param plan of a bundle
 * @param options threads and corrections as for any executor; `profile` is the machine to pretend
 */
export function createNullExecutor(
  plan: Plan,
  options: ExecutorOptions & { readonly profile?: MachineProfile },
): NullExecutor {
  const { threads, capacity = 512, profile = genericProfile(threads) } = options;
  const contextLength = options.contextLength ?? plan.model.contextLength;
  const trace = timelineOf(plan, options.corrections, { profile, threads });
  const { model } = plan;
  let cached = 0;
  let clock = 0;
  return {
    name: "null",
    model,
    capacity,
    contextLength,
    trace,
    peakBytes: peakMemory(plan, { capacity, contextLength }).total,
    get clock() {
      return clock;
    },
    step(request: StepRequest): Float32Array {
      checkStep(this, request, cached);
      cached = request.position + request.tokens.length;
      clock += trace.microseconds * request.tokens.length;
      return new Float32Array(logitRows(request) * model.vocabularySize);
    },
    [Symbol.dispose]() {},
  };
}

/** The timeline of a plan in the mode asked for; "auto" is the plan's own. */
export function timelineOf(
  plan: Plan,
  corrections: ExecutorOptions["corrections"],
  options: { readonly profile: MachineProfile; readonly threads: number },
): Timeline {
  const mode = corrections === "auto" ? plan.corrections.mode : corrections;
  return mode === "async"
    ? asyncTimeline(plan.graph, plan.lanes, options)
    : serialTimeline(plan.graph, mode, options);
}
