"""Qwen3, dense: grouped-query attention with normalised queries and keys, SwiGLU, an RMSNorm before each block.

The attribute path of a layer is the name of its tensor in the checkpoint: self.model.layers[3].mlp.up_proj holds
model.layers.3.mlp.up_proj.weight. The last class is the model; its forward takes token ids and their positions,
both [T], and returns logits [T, vocabulary].
"""


def rope_frequencies(config, head_dim):
    """Radians per position of each pair of columns. Newer checkpoints keep theta in rope_parameters."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    assert getattr(rope, "rope_type", getattr(rope, "type", "default")) == "default", (
        'scaled rotary embeddings are not supported; accepted: rope_scaling null or of type "default"'
    )
    theta = getattr(rope, "rope_theta", None) or config.rope_theta
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


class Attention(Module):
    def __init__(self, config):
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.frequencies = rope_frequencies(config, self.head_dim)
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
        q = rope(q, positions, self.frequencies)
        k = rope(k, positions, self.frequencies)
        return self.o_proj(merge_heads(attention(q, k, v, positions)))


class MLP(Module):
    def __init__(self, config):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(silu(gate) * up)


class Block(Module):
    def __init__(self, config):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, positions):
        x = x + self.self_attn(self.input_layernorm(x), positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(Module):
    def __init__(self, config):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, tokens, positions):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)


class Qwen3ForCausalLM(Module):
    def __init__(self, config):
        assert config.hidden_act == "silu", 'accepted as hidden_act: "silu"'
        assert not getattr(config, "attention_bias", False), "attention with biases is not supported"
        assert not getattr(config, "use_sliding_window", False), "sliding-window attention is not supported"
        self.model = Model(config)
        self.tied = getattr(config, "tie_word_embeddings", False)
        if not self.tied:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, tokens, positions):
        x = self.model(tokens, positions)
        logits = self.model.embed_tokens.as_linear(x) if self.tied else self.lm_head(x)
        return logits
