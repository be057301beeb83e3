"""HunYuan, dense: an RMSNorm of each head's queries and keys, behind the rotary embedding."""

from decoder import Block, Decoder, output_head
from rotary import RotaryEmbedding


class Attention(Module):
    def __init__(self, config):
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.rotary = RotaryEmbedding(config, self.head_dim)
        self.q_proj = Linear(config.hidden_size, heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, kv_heads * self.head_dim)
        self.o_proj = Linear(heads * self.head_dim, config.hidden_size)
        self.query_layernorm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.key_layernorm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x, positions):
        q = self.query_layernorm(self.rotary(split_heads(self.q_proj(x), self.head_dim), positions))
        k = self.key_layernorm(self.rotary(split_heads(self.k_proj(x), self.head_dim), positions))
        v = split_heads(self.v_proj(x), self.head_dim)
        return self.o_proj(merge_heads(attention(q, k, v, positions)))


class HunYuanDenseV1ForCausalLM(Module):
    def __init__(self, config):
        layers = [Block(config, Attention(config)) for _ in range(config.num_hidden_layers)]
        self.model = Decoder(config, layers)
        self.lm_head = output_head(config, self.model.embed_tokens)

    def forward(self, tokens, positions):
        x = self.model(tokens, positions)
        logits = self.lm_head(x)
        return logits
