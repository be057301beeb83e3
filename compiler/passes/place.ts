/**
 * place: a device for every node.
 *
 * Needs: stage "quantized" (bytes follow from formats), a machine profile.
 * Guarantees: stage "placed". Every node has a device and the cause of that choice, its bytes and its predicted
 *   time. A user's override is kept as it is. What does not fit the memory that was allowed is an error.
 * Does not: choose the GPU. There is no GPU lane yet, so everything is on the CPU and an override that asks
 *   for "gpu" is an error; never a silent fallback.
 */
import { type Cost, costs, withCost } from "../cost.ts";
import { HcinferError } from "../errors.ts";
import type { Device, Graph, Node } from "../ir/graph.ts";
import { packedName } from "../ir/naming.ts";
import { verify } from "../ir/verify.ts";
import type { MachineProfile } from "../profile.ts";

export interface PlaceOptions {
  readonly profile: MachineProfile;
  /** Threads of the CPU that predictions assume; default: all cores. */
  readonly threads?: number;
  /** Bytes of weights each device may hold; absent: no limit. */
  readonly memory?: { readonly [D in Device]?: number };
  /**
   * Devices of single nodes, by the name of an output value, or of all nodes whose weights lie under a module path
   * (`model.layers.3`). The longest match counts.
   */
  readonly overrides?: ReadonlyMap<string, Device>;
}

export function place(graph: Graph, options: PlaceOptions): Graph {
  const { profile, threads = profile.cpu.cores } = options;
  const unused = new Set(options.overrides?.keys());
  const nodeCosts = costs(graph);
  const nodes = graph.nodes.map((node, i): Node => {
    const [device, cause] = choose(node, options, unused);
    const placement = { ...node.placement, device, causes: [...node.placement.causes, cause] };
    return { ...node, placement: withCost(placement, nodeCosts[i] as Cost, profile, threads) };
  });
  if (unused.size > 0) {
    throw new HcinferError(
      "usage",
      `a device was given for ${[...unused].join(", ")}, but the model has no such node`,
    );
  }
  checkMemory(nodes, options);
  const result: Graph = { ...graph, stage: "placed", nodes };
  verify(result);
  return result;
}

function choose(node: Node, options: PlaceOptions, unused: Set<string>): [Device, string] {
  const key = [...options.overrides?.keys() ?? []]
    .filter((k) =>
      node.outputs.some((v) => v.name === k) || paths(node).some((p) => p === k || p.startsWith(k + "."))
    )
    .sort((a, b) => b.length - a.length)[0];
  const device = key === undefined ? undefined : options.overrides?.get(key);
  if (key === undefined || device === undefined) return ["cpu", "cpu: the only lane"];
  unused.delete(key);
  if (device === "gpu") {
    throw new HcinferError(
      "usage",
      `the override of ${key} asks for the GPU, and hcinfer has no GPU lane yet; use "cpu"`,
    );
  }
  return [device, `${device}: override of ${key}`];
}

/** Module paths of what a node reads; none for nodes without weights. */
function paths(node: Node): readonly string[] {
  switch (node.op) {
    case "linear":
      return [...node.params.weights.map((w) => w.path), packedName(node.params.weights)];
    case "embedding":
    case "rms_norm":
    case "add_rms_norm":
      return [node.params.path];
    default:
      return [];
  }
}

function checkMemory(nodes: readonly Node[], options: PlaceOptions): void {
  for (const device of ["cpu", "gpu"] as const) {
    const limit = options.memory?.[device];
    if (limit === undefined) continue;
    const stored = new Map<string, number>();
    for (const node of nodes) {
      if (node.placement.device !== device) continue;
      // A tied head and the embedding are one packed weight.
      stored.set(paths(node).at(-1) ?? node.outputs[0]?.name ?? "", node.placement.bytesStored ?? 0);
    }
    const total = [...stored.values()].reduce((a, b) => a + b, 0);
    if (total > limit) {
      throw new HcinferError(
        "usage",
        `the weights on the ${device} need ${total} bytes and ${limit} are allowed: ` +
          `choose fewer bits, or allow more memory`,
      );
    }
  }
}
