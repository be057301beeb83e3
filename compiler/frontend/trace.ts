/**
 * From a model description (graphs/*.py) and a config.json to a graph at stage "traced". The way there: parse
 * (python.ts), check the whole file against the subset (syntax_errors.ts, lower.ts, names.ts), evaluate it
 * symbolically (interpreter.ts). A description is never executed: it can make a graph or a diagnostic, nothing else.
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
import { Diagnostics, type Span, TooManyDiagnostics } from "./diagnostics.ts";
import { Interpreter } from "./interpreter.ts";
import { lower } from "./lower.ts";
import { checkNames } from "./names.ts";
import { parsePython } from "./python.ts";
import type { Program } from "./syntax.ts";
import { reportSyntaxErrors } from "./syntax_errors.ts";
import { LimitReached, Tracing } from "./tracing.ts";
import { describe, isTensor, isUnknown, type Tensor } from "./values.ts";

/** The fields of a config.json, by their names; what descriptions read as `config.hidden_size`. */
export interface Config {
  readonly [field: string]: unknown;
}

export interface TraceOptions {
  /** Text of the description. */
  readonly source: string;
  /** Its path, for messages; its name without `.py` is the architecture. */
  readonly file: string;
  readonly config: Config;
}

/** Longer than any description; a longer file is another kind of file. */
const LONGEST_SOURCE = 1 << 16;
const START: Span = { row: 0, column: 0, endRow: 0, endColumn: 1 };

/**
 * Traces a description: inputs `tokens` and `positions`, both i32 [T]; output logits f32 [T, vocabulary].
 *
 * @throws HcinferError "model-description" with every diagnostic: file, line, column, source line, caret, and what
 * would be accepted.
 */
export async function traceModel(options: TraceOptions): Promise<Graph> {
  const { file, config } = options;
  const source = options.source.replace(/^\ufeff/, "");
  const diagnostics = new Diagnostics(file, source);
  try {
    if (source.length > LONGEST_SOURCE) {
      diagnostics.report(
        START,
        `a description has at most ${LONGEST_SOURCE} characters, found ${source.length}`,
      );
    }
    diagnostics.throwIfAny();
    const program = await check(source, diagnostics);
    diagnostics.throwIfAny();
    const graph = trace(program, basename(file).replace(/\.py$/, ""), config, diagnostics);
    diagnostics.throwIfAny();
    if (graph) return graph;
  } catch (error) {
    if (!(error instanceof LimitReached || error instanceof TooManyDiagnostics)) throw error;
  }
  diagnostics.throwIfAny();
  throw new HcinferError("model-description", `${file}: no graph was traced`);
}

/** The static checks, over the whole file. */
async function check(source: string, diagnostics: Diagnostics): Promise<Program> {
  const tree = await parsePython(source);
  try {
    const broken = await reportSyntaxErrors(source, tree, diagnostics);
    const program = lower(tree, diagnostics, broken);
    // With syntax errors, definitions may be lost, and their names would be reported as unknown.
    if (!broken) checkNames(program, diagnostics);
    return program;
  } finally {
    tree.delete();
  }
}

function trace(
  program: Program,
  architecture: string,
  config: Config,
  diagnostics: Diagnostics,
): Graph | undefined {
  const model = [...program.classes.values()].at(-1);
  const forward = model?.methods.get("forward");
  if (!model || !forward) {
    const found = model ? `class ${model.name} has no forward` : "there is no class in this file";
    diagnostics.report(
      model?.span ?? START,
      found,
      "the last class is the model: __init__(self, config), forward(self, tokens, positions)",
    );
    return undefined;
  }
  const builder = new GraphBuilder(architecture);
  const symbol = (name: string): Tensor => ({
    kind: "tensor",
    value: builder.input(name, tensor("i32", "T")),
  });
  const inputs = [symbol("tokens"), symbol("positions")];
  const interpreter = new Interpreter(program, new Tracing(builder, diagnostics));
  const root = interpreter.construct(model, { kind: "record", path: "", fields: config });
  const logits = interpreter.forward(root, forward, inputs);
  if (isUnknown(logits)) return undefined;
  const shape = isTensor(logits) ? logits.value.type.shape : [];
  if (!isTensor(logits) || shape.length !== 2 || logits.value.type.dtype !== "f32") {
    diagnostics.report(
      forward.span,
      `forward must return logits [T,vocabulary] f32, found ${describe(logits)}`,
    );
    return undefined;
  }
  const graph = builder.finish([logits.value], "traced");
  try {
    verify(graph);
  } catch (error) {
    if (!(error instanceof GraphError)) throw error;
    diagnostics.report(model.span, `this model makes no valid graph: ${error.message}`);
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
