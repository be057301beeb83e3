/**
 * The layers that hold weights: Linear, Embedding and RMSNorm, with PyTorch's parameters. The attribute path of a
 * layer is the name of its tensor in the checkpoint, without `.weight`.
 */
import { type Arguments, callable } from "./calls.ts";
import { moduleTensor } from "../ir/naming.ts";
import type { Op, Params, TensorRef } from "../ir/ops.ts";
import { typeText } from "../ir/types.ts";
import { type Callable, type ModuleInstance, newModule, type Value } from "./values.ts";

type Method = (self: ModuleInstance) => Callable;

/** A layer: `construct` checks its arguments and gives its attributes. */
function layer(
  name: string,
  parameters: string,
  construct: (found: Arguments) => Iterable<readonly [string, Value]>,
  methods: Readonly<Record<string, Method>>,
): Callable {
  const type = { kind: "class", name, methods: new Map(Object.entries(methods)) } as const;
  return callable(name, parameters, (found) => newModule(type, construct(found)));
}

/**
 * A method of one tensor that makes a node, whose last dimension must be the attribute `width`, if one is named.
 * `size` reads an attribute.
 */
function method<P extends Op>(
  name: string,
  op: P,
  width: string | undefined,
  params: (ref: TensorRef, size: (attribute: string) => number) => Params[P],
): Method {
  return (self) =>
    callable(name, "x", (found) => {
      const x = found.tensor("x");
      const path = found.tracing.path(self, found.span);
      const size = (attribute: string) => Number(self.attributes.get(attribute));
      const { type } = x.value;
      if (width !== undefined && type.shape.at(-1) !== size(width)) {
        found.fail("x", `${path} expects ${size(width)} inputs, found a tensor ${typeText(type)}`);
      }
      return found.tracing.node(op, [x], params(moduleTensor(path), size), found.span);
    });
}

/** A product with the layer's weight; `inputs` and `outputs` are the attributes that hold its sizes. */
function linear(name: string, inputs: string, outputs: string): Method {
  return method(name, "linear", inputs, (ref, size) => ({ weights: [{ ...ref, outputs: size(outputs) }] }));
}

export const LAYERS: readonly Callable[] = [
  layer("Linear", "in_features out_features bias=", (found) => {
    if (found.has("bias") && found.value("bias") !== false) {
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
    forward: method("Embedding", "embedding", undefined, (ref, size) => ({
      ...ref,
      rows: size("num_embeddings"),
      width: size("embedding_dim"),
    })),
    // The output head of a model whose embeddings are tied, as MLX names it.
    as_linear: linear("as_linear", "embedding_dim", "num_embeddings"),
  }),

  layer("RMSNorm", "dim eps", (found) => [["dim", found.size("dim")], ["eps", found.positive("eps")]], {
    forward: method("RMSNorm", "rms_norm", "dim", (ref, size) => ({ ...ref, epsilon: size("eps") })),
  }),
];
