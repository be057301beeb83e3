/**
 * From a model description (graphs/*.py) and a config.json to a graph at stage "traced". The way there: parse
 * (python.ts), check and compile the whole file (files.ts, statements.ts, expressions.ts), then evaluate it symbolically:
 * static values are computed, tensors are symbols whose ops are appended to a graph. A description is never executed:
 * it can make a graph or diagnostics, nothing else, in bounded time (tracing.ts).
 *
 * An error is reported once and gives up its statement: what that assigns is `UNKNOWN`, and a statement that reads it is
 * given up in silence. So one run reports every independent error.
 */
import { readdirSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../errors.ts";
import { GraphBuilder } from "../ir/build.ts";
import type { Graph } from "../ir/graph.ts";
import { GraphError } from "../ir/infer.ts";
import { tensor } from "../ir/types.ts";
import { verify } from "../ir/verify.ts";
import { call, type CallSite, construct } from "./calls.ts";
import { Diagnostics, Source, type Span, TooManyDiagnostics } from "./diagnostics.ts";
import { Files } from "./files.ts";
import { LimitReached, Tracing } from "./tracing.ts";
import type { Unit } from "./unit.ts";
import { describe, is, newModule, type Value } from "./values.ts";

/** The fields of a config.json, by their names; what descriptions read as `config.hidden_size`. */
export interface Config {
  readonly [field: string]: unknown;
}

export interface TraceOptions {
  /** Text of the description. */
  readonly source: string;
  /** Its path, for messages and imports; its name without `.py` is the architecture. */
  readonly file: string;
  readonly config: Config;
}

/**
 * Traces a description: inputs `tokens` and `positions`, both i32 [T]; output logits f32 [T, vocabulary].
 *
 * @throws HcinferError "model-description" with every diagnostic: file, line, column, source line, caret, and what
 * would be accepted.
 */
export async function traceModel({ source, file, config }: TraceOptions): Promise<Graph> {
  const main = new Source(file, source.replace(/^\ufeff/, ""));
  const diagnostics = new Diagnostics(file, main.text);
  const builder = new GraphBuilder(basename(file).replace(/\.py$/, ""));
  const tracing = new Tracing(builder, diagnostics);
  try {
    const files = new Files(tracing);
    const unit = await files.compile(main);
    diagnostics.throwIfAny();
    for (const { constants, globals } of files.compiled) for (const run of constants) run(globals);
    const graph = trace(unit, tracing, config);
    diagnostics.throwIfAny();
    if (graph) return graph;
  } catch (error) {
    if (!(error instanceof LimitReached || error instanceof TooManyDiagnostics)) throw error;
  }
  diagnostics.throwIfAny();
  throw new HcinferError("model-description", `${file}: no graph was traced`);
}

function trace({ model, source }: Unit, tracing: Tracing, config: Config): Graph | undefined {
  const { builder, diagnostics } = tracing;
  const { span = { source, row: 0, column: 0, endRow: 0, endColumn: 1 } } = model ?? {};
  const method = model?.methods.get("forward");
  if (!model || !method) {
    const found = model ? `class ${model.name} has no forward` : "there is no class in this file";
    const accepted = "the last class is the model: __init__(self, config), forward(self, tokens, positions)";
    diagnostics.report(span, found, accepted);
    return undefined;
  }
  const site = (span: Span, ...values: Value[]): CallSite => ({
    positional: values.map((value) => ({ value, span })),
    keywords: new Map(),
    span,
  });
  const inputs = ["tokens", "positions"].map((name): Value => ({
    kind: "tensor",
    value: builder.input(name, tensor("i32", "T")),
  }));
  const root = newModule(model);
  tracing.root = root;
  construct(root, site(span, { kind: "record", path: "", fields: config }), tracing);
  const forward = method(root);
  const at = forward.span ?? span;
  const outcome = tracing.attempt(() => call(forward, site(at, ...inputs), at, tracing));
  if (!outcome) return undefined;
  const logits = outcome.value;
  const shape = is("tensor", logits) ? logits.value.type.shape : [];
  if (!is("tensor", logits) || shape.length !== 2 || logits.value.type.dtype !== "f32") {
    const found = describe(logits);
    diagnostics.report(at, `forward must return logits [T,vocabulary] f32, found ${found}`);
    return undefined;
  }
  const graph = builder.finish([logits.value], "traced");
  try {
    verify(graph);
  } catch (error) {
    if (!(error instanceof GraphError)) throw error;
    diagnostics.report(span, `this model makes no valid graph: ${error.message}`);
  }
  return graph;
}

const GRAPHS = new URL("../../graphs/", import.meta.url);

/**
 * Path of the description of `model_type`: `graphs/<model_type>.py`.
 *
 * @throws HcinferError "model-description" that lists the known architectures.
 */
export function architectureFile(modelType: string): string {
  const known = readdirSync(fileURLToPath(GRAPHS)).filter((f) => f.endsWith(".py")).map((f) => f.slice(0, -3))
    .sort();
  if (known.includes(modelType)) return fileURLToPath(new URL(`${modelType}.py`, GRAPHS));
  throw new HcinferError(
    "model-description",
    `no description of the architecture ${JSON.stringify(modelType)} (model_type in config.json). ` +
      `Known: ${
        known.join(", ")
      }. To add one, describe its modules in graphs/${modelType}.py, as graphs/llama.py does.`,
  );
}
