"""Llama and its relatives (SmolLM, TinyLlama, ...): grouped-query attention, SwiGLU, an RMSNorm before each.

The attribute path of a layer is the name of its tensor in the checkpoint: self.model.layers[3].mlp.up_proj holds
model.layers.3.mlp.up_proj.weight. The last class is the model; its forward takes token ids and their positions,
both [T], and returns logits [T, vocabulary]. What architectures share is in graphs/shared.
"""

from decoder import Attention, Block, Decoder, output_head


class LlamaForCausalLM(Module):
    def __init__(self, config):
        assert getattr(config, "sliding_window", None) is None, (
            "sliding-window attention is not supported; accepted as sliding_window: null"
        )
        layers = [Block(config, Attention(config)) for _ in range(config.num_hidden_layers)]
        self.model = Decoder(config, layers)
        self.lm_head = output_head(config, self.model.embed_tokens)

    def forward(self, tokens, positions):
        x = self.model(tokens, positions)
        logits = self.lm_head(x)
        return logits
