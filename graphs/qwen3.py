"""Qwen3, dense: Llama's decoder with an RMSNorm of each head's queries and keys.

The attribute path of a layer is the name of its tensor in the checkpoint: self.model.layers[3].mlp.up_proj holds
model.layers.3.mlp.up_proj.weight. The last class is the model; its forward takes token ids and their positions,
both [T], and returns logits [T, vocabulary]. What architectures share is in graphs/shared.
"""

from decoder import Block, Decoder, output_head
from rotary import RotaryEmbedding


class Attention(Module):
    def __init__(self, config):
        assert not getattr(config, "attention_bias", False), (
            "attention with biases is not supported; accepted as attention_bias: false"
        )
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.rotary = RotaryEmbedding(config, self.head_dim)
        self.q_proj = Linear(config.hidden_size, heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, kv_heads * self.head_dim)
        self.o_proj = Linear(heads * self.head_dim, config.hidden_size)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x, positions):
        q = self.q_norm(split_heads(self.q_proj(x), self.head_dim))
        k = self.k_norm(split_heads(self.k_proj(x), self.head_dim))
        v = split_heads(self.v_proj(x), self.head_dim)
        q = self.rotary(q, positions)
        k = self.rotary(k, positions)
        return self.o_proj(merge_heads(attention(q, k, v, positions)))


class Qwen3ForCausalLM(Module):
    def __init__(self, config):
        assert not getattr(config, "use_sliding_window", False), (
            "sliding-window attention is not supported; accepted as use_sliding_window: false"
        )
        layers = [Block(config, Attention(config)) for _ in range(config.num_hidden_layers)]
        self.model = Decoder(config, layers)
        self.lm_head = output_head(config, self.model.embed_tokens)

    def forward(self, tokens, positions):
        x = self.model(tokens, positions)
        logits = self.lm_head(x)
        return logits
