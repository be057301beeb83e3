/**
 * The layers that hold weights: Linear, Embedding and RMSNorm, with PyTorch's parameters. The attribute path of a
 * layer is the name of its tensor in the checkpoint, without `.weight`.
 */
import type { Arguments, Context, Signature } from "./calls.ts";
import { signature } from "./calls.ts";
import { moduleTensor } from "../ir/naming.ts";
import { typeText } from "../ir/types.ts";
import type { Layer, ModuleInstance, Tensor, Value } from "./values.ts";
import { UNKNOWN } from "./values.ts";

interface Method {
  readonly signature: Signature;
  readonly call: (self: ModuleInstance, found: Arguments, context: Context) => Value;
}

interface LayerRule {
  readonly constructor: Signature;
  /** Checks the constructor's arguments and gives the attributes of the new layer. */
  readonly construct: (found: Arguments) => ReadonlyMap<string, Value>;
  /** `forward` and whatever else it can do. */
  readonly methods: ReadonlyMap<string, Method>;
}

/** A method of one tensor, whose last dimension must be `width`, if given. */
function method(
  name: string,
  apply: (self: ModuleInstance, path: string, x: Tensor, found: Arguments, context: Context) => Value,
): Method {
  return {
    signature: signature(name, "x"),
    call(self, found, context) {
      const x = found.tensor("x");
      const path = context.path(self, found.span);
      return x === undefined || path === undefined ? UNKNOWN : apply(self, path, x, found, context);
    },
  };
}

function size(self: ModuleInstance, attribute: string): number {
  const value = self.attributes.get(attribute);
  return typeof value === "number" ? value : NaN;
}

/** Reports a tensor whose last dimension is not what the layer was made for. */
function fits(x: Tensor, width: number, path: string, found: Arguments): boolean {
  if (x.value.type.shape.at(-1) === width) return true;
  found.fail("x", `${path} expects ${width} inputs, found a tensor ${typeText(x.value.type)}`);
  return false;
}

/** A product with the layer's weight; `inputs` and `outputs` are the attributes that hold its sizes. */
function linear(name: string, inputs: string, outputs: string): Method {
  return method(name, (self, path, x, found, context) => {
    if (!fits(x, size(self, inputs), path, found)) return UNKNOWN;
    const weight = { ...moduleTensor(path), outputs: size(self, outputs) };
    return context.node("linear", [x], { weights: [weight] }, found.span);
  });
}

const LAYERS: { readonly [L in Layer]: LayerRule } = {
  Linear: {
    constructor: signature("Linear", "in_features out_features bias="),
    construct(found) {
      if (found.has("bias") && found.value("bias") !== false && !found.failed) {
        found.fail("bias", "a bias is not supported yet", "accepted: bias=False, which is the default here");
      }
      return new Map([
        ["in_features", found.size("in_features")],
        ["out_features", found.size("out_features")],
      ]);
    },
    methods: new Map([["forward", linear("Linear", "in_features", "out_features")]]),
  },
  Embedding: {
    constructor: signature("Embedding", "num_embeddings embedding_dim"),
    construct: (found) =>
      new Map([
        ["num_embeddings", found.size("num_embeddings")],
        ["embedding_dim", found.size("embedding_dim")],
      ]),
    methods: new Map([
      [
        "forward",
        method("Embedding", (self, path, x, found, context) => {
          const [rows, width] = [size(self, "num_embeddings"), size(self, "embedding_dim")];
          const params = { ...moduleTensor(path), rows, width };
          return context.node("embedding", [x], params, found.span);
        }),
      ],
      // The output head of a model whose embeddings are tied, as MLX names it.
      ["as_linear", linear("as_linear", "embedding_dim", "num_embeddings")],
    ]),
  },
  RMSNorm: {
    constructor: signature("RMSNorm", "dim eps"),
    construct: (found) => new Map([["dim", found.size("dim")], ["eps", found.positive("eps")]]),
    methods: new Map([
      [
        "forward",
        method("RMSNorm", (self, path, x, found, context) => {
          if (!fits(x, size(self, "dim"), path, found)) return UNKNOWN;
          return context.node(
            "rms_norm",
            [x],
            { ...moduleTensor(path), epsilon: size(self, "eps") },
            found.span,
          );
        }),
      ],
    ]),
  },
};

export function layerRule(layer: Layer): LayerRule {
  return LAYERS[layer];
}
