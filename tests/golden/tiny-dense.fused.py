architecture = "qwen3"
stage = "fused"
tokens = input("i32", "T")
positions = input("i32", "T")
rope_0 = rope_table(frequencies=(1, 0.5623413251903491, 0.31622776601683794, 0.1778279410038923, 0.1,
    0.05623413251903491, 0.03162277660168379, 0.01778279410038923, 0.01, 0.005623413251903491,
    0.0031622776601683794, 0.0017782794100389228, 0.001, 0.0005623413251903491, 0.00031622776601683794,
    0.00017782794100389227), scale=1)

x = embedding(tokens, "model.embed_tokens", rows=4096, width=256)  # [T,256] f32
x1 = rms_norm(x, "model.layers.0.input_layernorm", epsilon=0.000001)  # [T,256] f32
q, k, v = linear(x1, "model.layers.0.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="0.qkv")
    # [T,256] f32, [T,128] f32, [T,128] f32
q1 = split_heads(q, head_dim=32)  # [T,8,32] f32
q2 = rms_norm(q1, "model.layers.0.self_attn.q_norm", epsilon=0.000001)  # [T,8,32] f32
k1 = split_heads(k, head_dim=32)  # [T,4,32] f32
k2 = rms_norm(k1, "model.layers.0.self_attn.k_norm", epsilon=0.000001)  # [T,4,32] f32
v1 = split_heads(v, head_dim=32)  # [T,4,32] f32
q3 = rope(q2, positions, "rope_0")  # [T,8,32] f32
k3 = rope(k2, positions, "rope_0")  # [T,4,32] f32
x2 = attention(q3, k3, v1, positions, layer=0, scale=0.17677669529663687)  # [T,8,32] f32
x3 = merge_heads(x2)  # [T,256] f32
x4 = linear(x3, "model.layers.0.self_attn.o_proj", outputs=256, window="0.o")  # [T,256] f32
x5, x6 = add_rms_norm(x, x4, "model.layers.0.post_attention_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32
gate, up = linear(x6, "model.layers.0.mlp.gate_proj+up_proj", outputs=(768, 768), window="0.gate_up")
    # [T,768] f32, [T,768] f32
x8 = silu_mul(gate, up)  # [T,768] f32
x9 = linear(x8, "model.layers.0.mlp.down_proj", outputs=256, window="0.down")  # [T,256] f32
x10, x11 = add_rms_norm(x5, x9, "model.layers.1.input_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32
q4, k4, v2 = linear(x11, "model.layers.1.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="1.qkv")
    # [T,256] f32, [T,128] f32, [T,128] f32
q5 = split_heads(q4, head_dim=32)  # [T,8,32] f32
q6 = rms_norm(q5, "model.layers.1.self_attn.q_norm", epsilon=0.000001)  # [T,8,32] f32
k5 = split_heads(k4, head_dim=32)  # [T,4,32] f32
k6 = rms_norm(k5, "model.layers.1.self_attn.k_norm", epsilon=0.000001)  # [T,4,32] f32
v3 = split_heads(v2, head_dim=32)  # [T,4,32] f32
q7 = rope(q6, positions, "rope_0")  # [T,8,32] f32
k7 = rope(k6, positions, "rope_0")  # [T,4,32] f32
x12 = attention(q7, k7, v3, positions, layer=1, scale=0.17677669529663687)  # [T,8,32] f32
x13 = merge_heads(x12)  # [T,256] f32
x14 = linear(x13, "model.layers.1.self_attn.o_proj", outputs=256, window="1.o")  # [T,256] f32
x15, x16 = add_rms_norm(x10, x14, "model.layers.1.post_attention_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32
gate1, up1 = linear(x16, "model.layers.1.mlp.gate_proj+up_proj", outputs=(768, 768), window="1.gate_up")
    # [T,768] f32, [T,768] f32
x18 = silu_mul(gate1, up1)  # [T,768] f32
x19 = linear(x18, "model.layers.1.mlp.down_proj", outputs=256, window="1.down")  # [T,256] f32
x20, x21 = add_rms_norm(x15, x19, "model.norm", epsilon=0.000001)  # [T,256] f32, [T,256] f32
logits = linear(x21, "model.embed_tokens", outputs=4096)  # [T,4096] f32

return logits
