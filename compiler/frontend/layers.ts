/**
 * The layers that hold weights: Linear, Embedding and RMSNorm, with PyTorch's parameters. The attribute path of a
 * layer is the name of its tensor in the checkpoint, without `.weight`.
 */
import { type Arguments, builtin } from "./calls.ts";
import { moduleTensor } from "../ir/naming.ts";
import { typeText } from "../ir/types.ts";
import type { Tracing } from "./tracing.ts";
import { type Builtin, type ModuleInstance, newModule, type Tensor, UNKNOWN, type Value } from "./values.ts";

type Method = (self: ModuleInstance) => Builtin;

/** A layer: `construct` checks its arguments and gives its attributes. */
function layer(
  name: string,
  parameters: string,
  construct: (found: Arguments) => Iterable<readonly [string, Value]>,
  methods: Readonly<Record<string, Method>>,
): Builtin {
  const type = { kind: "layer", name, methods: new Map(Object.entries(methods)) } as const;
  return builtin(name, parameters, (found) => {
    const attributes = construct(found);
    return found.unlessFailed(() => newModule(type, attributes));
  });
}

/** A method of one tensor, whose last dimension must be the attribute `width`, if one is named. */
function method(
  name: string,
  width: string | undefined,
  apply: (
    path: string,
    x: Tensor,
    size: (attribute: string) => number,
    found: Arguments,
    tracing: Tracing,
  ) => Value,
): Method {
  return (self) =>
    builtin(name, "x", (found, tracing) => {
      const x = found.tensor("x");
      const path = tracing.path(self, found.span);
      if (x === undefined || path === undefined) return UNKNOWN;
      const size = (attribute: string) => Number(self.attributes.get(attribute));
      const { type } = x.value;
      if (width !== undefined && type.shape.at(-1) !== size(width)) {
        return found.fail("x", `${path} expects ${size(width)} inputs, found a tensor ${typeText(type)}`);
      }
      return apply(path, x, size, found, tracing);
    });
}

/** A product with the layer's weight; `inputs` and `outputs` are the attributes that hold its sizes. */
function linear(name: string, inputs: string, outputs: string): Method {
  return method(name, inputs, (path, x, size, found, tracing) => {
    return tracing.node(
      "linear",
      [x],
      { weights: [{ ...moduleTensor(path), outputs: size(outputs) }] },
      found.span,
    );
  });
}

export const LAYERS: readonly Builtin[] = [
  layer("Linear", "in_features out_features bias=", (found) => {
    if (found.has("bias") && found.value("bias") !== false && !found.failed) {
      found.fail("bias", "a bias is not supported yet", "accepted: bias=False, which is the default here");
    }
    return [
      ["in_features", found.size("in_features")],
      ["out_features", found.size("out_features")],
    ];
  }, { forward: linear("Linear", "in_features", "out_features") }),

  layer("Embedding", "num_embeddings embedding_dim", (found) => [
    ["num_embeddings", found.size("num_embeddings")],
    ["embedding_dim", found.size("embedding_dim")],
  ], {
    forward: method("Embedding", undefined, (path, x, size, found, tracing) => {
      const params = { ...moduleTensor(path), rows: size("num_embeddings"), width: size("embedding_dim") };
      return tracing.node("embedding", [x], params, found.span);
    }),
    // The output head of a model whose embeddings are tied, as MLX names it.
    as_linear: linear("as_linear", "embedding_dim", "num_embeddings"),
  }),

  layer("RMSNorm", "dim eps", (found) => [["dim", found.size("dim")], ["eps", found.positive("eps")]], {
    forward: method("RMSNorm", "dim", (path, x, size, found, tracing) => {
      return tracing.node("rms_norm", [x], { ...moduleTensor(path), epsilon: size("eps") }, found.span);
    }),
  }),
];
