/**
 * The text of a graph: straight-line Python, one node a line, that parse.ts reads back to the same graph. What the comment
 * after a node says (type, device and lane, bytes, predicted time, causes) is part of the text and is read back.
 *
 *     architecture = "qwen3"
 *     stage = "scheduled"
 *     tokens = input("i32", "T")
 *     rope_0 = rope_table(frequencies=(1, 0.1), scale=1)
 *
 *     # layer 3, window qkv
 *     budget("3.qkv", rank=0, channels=96)  # 96 rows of 4096: next 8 would win 0.8 % of the error for 2.3 kB
 *     q3, k3, v3 = linear(x7, "model.layers.3.self_attn.q_proj+k_proj+v_proj", outputs=(4096, 1024, 1024), format="q4g64")
 *         # [T,4096] f32, [T,1024] f32, [T,1024] f32 | cpu backbone | 14155776 B read | 372.5 us | q4g64: format of the layers
 *
 * A comment too long for its line stands on the next, indented. Deltas that are added to an input as it is read stand
 * behind it: `silu_mul(gate + rows_3_gate_up, up + rows_3_gate_up)`.
 */
import type { Graph, Node, Placement, RopeTable } from "./graph.ts";
import type { Op } from "./ops.ts";
import { typeText } from "./types.ts";
import { BUDGET, type Call, literalText, ROPE_TABLE, writeParams } from "./syntax.ts";

/** Longest line with its comment beside it; longer comments go below. */
const LINE_WIDTH = 110;

export function printGraph(graph: Graph): string {
  const lines = [
    `architecture = ${JSON.stringify(graph.architecture)}`,
    `stage = ${JSON.stringify(graph.stage)}`,
  ];
  for (const { name, type } of graph.inputs) {
    lines.push(`${name} = input(${[type.dtype, ...type.shape].map((d) => literalText(d)).join(", ")})`);
  }
  for (const table of graph.ropes) lines.push(...wrapped(ropeTableCall(table)));
  lines.push("");
  const budgets = new Map(graph.budgets.map((b) => [b.window, b]));
  for (const node of graph.nodes) {
    const window = node.op === "linear" ? node.params.window : undefined;
    const budget = window === undefined ? undefined : budgets.get(window);
    if (budget !== undefined) {
      const [layer, ...rest] = budget.window.split(".");
      lines.push("", `# layer ${layer}, window ${rest.join(".")}`);
      lines.push(...withComment(callText("budget", BUDGET.write(budget)), budget.cause));
    }
    lines.push(...withComment(nodeCall(node), nodeComment(node)));
  }
  lines.push("", `return ${graph.outputs.join(", ")}`, "");
  return lines.join("\n");
}

/** `q, k, v = linear(x, "...", outputs=(...))`. */
export function nodeCall(node: Node): string {
  const inputs = node.inputs.map((name, i) => [name, ...node.added?.[i] ?? []].join(" + "));
  const call = callText(node.op, writeParams<Op>(node.op, node.params), inputs);
  return `${node.outputs.map((v) => v.name).join(", ")} = ${call}`;
}

/** `rope_0 = rope_table(frequencies=(1, 0.1), scale=1)`. */
function ropeTableCall(table: RopeTable): string {
  return `${table.name} = ${callText("rope_table", ROPE_TABLE.write(table))}`;
}

/** `name(inputs..., "strings"..., keyword=value...)`. */
function callText(name: string, { strings, keywords }: Call, inputs: readonly string[] = []): string {
  const args = [
    ...inputs,
    ...strings.map((s) => JSON.stringify(s)),
    ...Object.entries(keywords).map(([keyword, value]) => `${keyword}=${literalText(value)}`),
  ];
  return `${name}(${args.join(", ")})`;
}

/** A call over as many lines as it takes, cut after commas. */
function wrapped(call: string): string[] {
  const lines: string[] = [];
  for (const piece of call.split(/(?<=,) /)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + piece.length < LINE_WIDTH) {
      lines[lines.length - 1] = `${last} ${piece}`;
    } else lines.push(lines.length === 0 ? piece : `    ${piece}`);
  }
  return lines;
}

/** Fields of a placement in the text, each with its unit; parse.ts has the inverse. */
function nodeComment(node: Node): string {
  const { device, lane, bytesRead, bytesStored, microseconds, causes }: Placement = node.placement;
  return [
    node.outputs.map((v) => typeText(v.type)).join(", "),
    ...(device === undefined ? [] : [lane === undefined ? device : `${device} ${lane}`]),
    ...(bytesRead === undefined ? [] : [`${bytesRead} B read`]),
    ...(bytesStored === undefined ? [] : [`${bytesStored} B stored`]),
    ...(microseconds === undefined ? [] : [`${microseconds} us`]),
    ...causes.map((cause) => `because ${cause}`),
  ].join(" | ");
}

function withComment(line: string, comment: string): string[] {
  const beside = `${line}  # ${comment}`;
  return beside.length <= LINE_WIDTH ? [beside] : [line, `    # ${comment}`];
}
