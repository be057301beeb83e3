"""OLMo 2: an RMSNorm over all columns of the queries and of the keys, and norms behind attention and MLP, not before."""

from decoder import MLP, Decoder, output_head
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
        self.q_norm = RMSNorm(heads * self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(kv_heads * self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x, positions):
        q = split_heads(self.q_norm(self.q_proj(x)), self.head_dim)
        k = split_heads(self.k_norm(self.k_proj(x)), self.head_dim)
        v = split_heads(self.v_proj(x), self.head_dim)
        q, k = self.rotary(q, positions), self.rotary(k, positions)
        return self.o_proj(merge_heads(attention(q, k, v, positions)))


class Block(Module):
    def __init__(self, config):
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x, positions):
        x = x + self.post_attention_layernorm(self.self_attn(x, positions))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Olmo2ForCausalLM(Module):
    def __init__(self, config):
        self.model = Decoder(config, [Block(config) for _ in range(config.num_hidden_layers)])
        self.lm_head = output_head(config, self.model.embed_tokens)

    def forward(self, tokens, positions):
        x = self.model(tokens, positions)
        logits = self.lm_head(x)
        return logits
