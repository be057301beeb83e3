/** Whether a checkpoint holds the model that a graph describes: tensor by tensor, before any is read. */
import { HcinferError } from "../errors.ts";
import type { Graph } from "../ir/graph.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { Config } from "./config.ts";
import { expectedTensors } from "./inventory.ts";
import { isWeightTensor, WEIGHT_DTYPES } from "./source.ts";

/**
 * Compares the tensors with what the graph reads. Throws HcinferError("checkpoint") with one list: what is missing,
 * what is unexpected, what has another shape or data type.
 */
export function checkModel(graph: Graph, checkpoint: Checkpoint): void {
  const expected = expectedTensors(graph);
  const missing: string[] = [];
  const wrong: string[] = [];
  for (const [name, shape] of expected) {
    const tensor = checkpoint.tensor(name);
    if (tensor === undefined) missing.push(`${name} [${shape}]`);
    else if (!isWeightTensor(tensor)) {
      wrong.push(`${name}: found ${tensor.dtype}, expected ${WEIGHT_DTYPES.join(", ")}`);
    } else if (tensor.shape.join() !== shape.join()) {
      wrong.push(`${name}: found [${tensor.shape}], expected [${shape}]`);
    }
  }
  const unexpected = checkpoint.tensorNames.filter((name) =>
    !expected.has(name) && !isHarmless(name, checkpoint.config)
  );
  const parts = [list("missing", missing), list("wrong shape", wrong), list("unexpected", unexpected)];
  if (parts.every((p) => p === "")) return;
  const hint = missing.length === 1 && missing[0]?.startsWith("lm_head.weight")
    ? '\nIf the head shares the embedding, config.json needs "tie_word_embeddings": true.'
    : "";
  throw new HcinferError(
    "checkpoint",
    `the tensors of ${checkpoint.path} are not those of graphs/${graph.architecture}.py:${
      parts.join("")
    }${hint}`,
  );
}

/** Copies of a tied head and tables that are computed anyway: nothing is lost without them. */
function isHarmless(name: string, config: Config): boolean {
  return (config.tie_word_embeddings === true && name === "lm_head.weight") ||
    /\.(rotary_emb\.inv_freq|attn\.masked_bias)$/.test(name);
}

const MOST_LISTED = 12;

function list(title: string, items: readonly string[]): string {
  if (items.length === 0) return "";
  const more = items.length > MOST_LISTED ? [`and ${items.length - MOST_LISTED} more`] : [];
  const lines = [...items.slice(0, MOST_LISTED), ...more].map((item) => `    ${item}`);
  return `\n  ${title} (${items.length}):\n${lines.join("\n")}`;
}
