"""What decoders of Llama's kind share: the blocks around attention, the stack of them, and the head."""

from rotary import RotaryEmbedding


class Attention(Module):
    """Grouped-query attention."""

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

    def forward(self, x, positions):
        q = self.rotary(split_heads(self.q_proj(x), self.head_dim), positions)
        k = self.rotary(split_heads(self.k_proj(x), self.head_dim), positions)
        v = split_heads(self.v_proj(x), self.head_dim)
        return self.o_proj(merge_heads(attention(q, k, v, positions)))


class MLP(Module):
    """SwiGLU."""

    def __init__(self, config):
        assert config.hidden_act == "silu", 'this activation is not supported; accepted as hidden_act: "silu"'
        assert not getattr(config, "mlp_bias", False), (
            "an MLP with biases is not supported; accepted as mlp_bias: false"
        )
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(silu(gate) * up)


class Block(Module):
    """Attention and an MLP, each added to the residual stream and with an RMSNorm before it."""

    def __init__(self, config, attention):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, positions):
        x = x + self.self_attn(self.input_layernorm(x), positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Module):
    """Token ids and their positions, both [T], to the last hidden states, [T, hidden_size]."""

    def __init__(self, config, layers):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, tokens, positions):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)


class TiedHead(Module):
    """The embedding's matrix, used again for the logits."""

    def __init__(self, embedding):
        self.embedding = embedding

    def forward(self, x):
        return self.embedding.as_linear(x)


def output_head(config, embedding):
    if getattr(config, "tie_word_embeddings", False):
        return TiedHead(embedding)
    return Linear(config.hidden_size, config.vocab_size)
