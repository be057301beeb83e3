architecture = "qwen3"
stage = "compensated"
tokens = input("i32", "T")
positions = input("i32", "T")
rope_0 = rope_table(frequencies=(1, 0.5623413251903491, 0.31622776601683794, 0.1778279410038923, 0.1,
    0.05623413251903491, 0.03162277660168379, 0.01778279410038923, 0.01, 0.005623413251903491,
    0.0031622776601683794, 0.0017782794100389228, 0.001, 0.0005623413251903491, 0.00031622776601683794,
    0.00017782794100389227), scale=1)

x = embedding(tokens, "model.embed_tokens", rows=4096, width=256, format="q8g64")
    # [T,256] f32 | cpu | 264 B read | 1081344 B stored | 1.01 us | because q8g64: format of embedding and head | because cpu: the only device
x1 = rms_norm(x, "model.layers.0.input_layernorm", epsilon=0.000001)
    # [T,256] f32 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device

# layer 0, window qkv
budget("0.qkv", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
q, k, v = linear(x1, "model.layers.0.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="0.qkv", format="q3g64")
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 57344 B read | 57344 B stored | 2.51 us | because q3g64: format of the layers | because cpu: the only device
rows_0_qkv = sparse_residual(x1, "0.qkv", channels=22, outputs=512, width=4)
    # [T,512] f32 | cpu | 6744 B read | 69632 B stored | 1.26 us | because cpu: corrections live in its memory
q_merged, k_merged, v_merged = merge(q, k, v, rows_0_qkv, "0.qkv", deltas=1, slack=0)
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 0 us | because cpu: where its linear is
q1 = split_heads(q_merged, head_dim=32)  # [T,8,32] f32 | cpu | 0 us | because cpu: the only device
q2 = rms_norm(q1, "model.layers.0.self_attn.q_norm", epsilon=0.000001)
    # [T,8,32] f32 | cpu | 128 B read | 128 B stored | 1.01 us | because cpu: the only device
k1 = split_heads(k_merged, head_dim=32)  # [T,4,32] f32 | cpu | 0 us | because cpu: the only device
k2 = rms_norm(k1, "model.layers.0.self_attn.k_norm", epsilon=0.000001)
    # [T,4,32] f32 | cpu | 128 B read | 128 B stored | 1 us | because cpu: the only device
v1 = split_heads(v_merged, head_dim=32)  # [T,4,32] f32 | cpu | 0 us | because cpu: the only device
q3 = rope(q2, positions, "rope_0")  # [T,8,32] f32 | cpu | 1 us | because cpu: the only device
k3 = rope(k2, positions, "rope_0")  # [T,4,32] f32 | cpu | 1 us | because cpu: the only device
x2 = attention(q3, k3, v1, positions, layer=0, scale=0.17677669529663687)
    # [T,8,32] f32 | cpu | 131072 B read | 4.45 us | because cpu: the only device
x3 = merge_heads(x2)  # [T,256] f32 | cpu | 0 us | because cpu: the only device

# layer 0, window o
budget("0.o", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.3 kB; stopped by the budget of 10 % bytes
x4 = linear(x3, "model.layers.0.self_attn.o_proj", outputs=256, window="0.o", format="q3g64")
    # [T,256] f32 | cpu | 28672 B read | 28672 B stored | 1.75 us | because q3g64: format of the layers | because cpu: the only device
rows_0_o = sparse_residual(x3, "0.o", channels=22, outputs=256, width=4)
    # [T,256] f32 | cpu | 3928 B read | 35840 B stored | 1.22 us | because cpu: corrections live in its memory
x4_merged = merge(x4, rows_0_o, "0.o", deltas=1, slack=0)
    # [T,256] f32 | cpu | 0 us | because cpu: where its linear is
x5, x6 = add_rms_norm(x, x4_merged, "model.layers.0.post_attention_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device

# layer 0, window gate_up
budget("0.gate_up", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 1.5 kB; stopped by the budget of 10 % bytes
gate, up = linear(x6, "model.layers.0.mlp.gate_proj+up_proj", outputs=(768, 768), window="0.gate_up", format="q3g64")
    # [T,768] f32, [T,768] f32 | cpu | 172032 B read | 172032 B stored | 5.53 us | because q3g64: format of the layers | because cpu: the only device
rows_0_gate_up = sparse_residual(x6, "0.gate_up", channels=22, outputs=1536, width=4)
    # [T,1536] f32 | cpu | 18008 B read | 204800 B stored | 1.47 us | because cpu: corrections live in its memory
gate_merged, up_merged = merge(gate, up, rows_0_gate_up, "0.gate_up", deltas=1, slack=0)
    # [T,768] f32, [T,768] f32 | cpu | 0.01 us | because cpu: where its linear is
x8 = silu_mul(gate_merged, up_merged)  # [T,768] f32 | cpu | 1.05 us | because cpu: the only device

# layer 0, window down
budget("0.down", rank=0, channels=68)
    # 68 rows of 768: next 4 would win 1.5 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
x9 = linear(x8, "model.layers.0.mlp.down_proj", outputs=256, window="0.down", format="q3g64")
    # [T,256] f32 | cpu | 86016 B read | 86016 B stored | 3.26 us | because q3g64: format of the layers | because cpu: the only device
rows_0_down = sparse_residual(x8, "0.down", channels=68, outputs=256, width=4)
    # [T,256] f32 | cpu | 12048 B read | 105472 B stored | 1.67 us | because cpu: corrections live in its memory
x9_merged = merge(x9, rows_0_down, "0.down", deltas=1, slack=0)
    # [T,256] f32 | cpu | 0 us | because cpu: where its linear is
x10, x11 = add_rms_norm(x5, x9_merged, "model.layers.1.input_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device

# layer 1, window qkv
budget("1.qkv", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
q4, k4, v2 = linear(x11, "model.layers.1.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="1.qkv", format="q3g64")
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 57344 B read | 57344 B stored | 2.51 us | because q3g64: format of the layers | because cpu: the only device
rows_1_qkv = sparse_residual(x11, "1.qkv", channels=22, outputs=512, width=4)
    # [T,512] f32 | cpu | 6744 B read | 69632 B stored | 1.26 us | because cpu: corrections live in its memory
q4_merged, k4_merged, v2_merged = merge(q4, k4, v2, rows_1_qkv, "1.qkv", deltas=1, slack=0)
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 0 us | because cpu: where its linear is
q5 = split_heads(q4_merged, head_dim=32)  # [T,8,32] f32 | cpu | 0 us | because cpu: the only device
q6 = rms_norm(q5, "model.layers.1.self_attn.q_norm", epsilon=0.000001)
    # [T,8,32] f32 | cpu | 128 B read | 128 B stored | 1.01 us | because cpu: the only device
k5 = split_heads(k4_merged, head_dim=32)  # [T,4,32] f32 | cpu | 0 us | because cpu: the only device
k6 = rms_norm(k5, "model.layers.1.self_attn.k_norm", epsilon=0.000001)
    # [T,4,32] f32 | cpu | 128 B read | 128 B stored | 1 us | because cpu: the only device
v3 = split_heads(v2_merged, head_dim=32)  # [T,4,32] f32 | cpu | 0 us | because cpu: the only device
q7 = rope(q6, positions, "rope_0")  # [T,8,32] f32 | cpu | 1 us | because cpu: the only device
k7 = rope(k6, positions, "rope_0")  # [T,4,32] f32 | cpu | 1 us | because cpu: the only device
x12 = attention(q7, k7, v3, positions, layer=1, scale=0.17677669529663687)
    # [T,8,32] f32 | cpu | 131072 B read | 4.45 us | because cpu: the only device
x13 = merge_heads(x12)  # [T,256] f32 | cpu | 0 us | because cpu: the only device

# layer 1, window o
budget("1.o", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.3 kB; stopped by the budget of 10 % bytes
x14 = linear(x13, "model.layers.1.self_attn.o_proj", outputs=256, window="1.o", format="q3g64")
    # [T,256] f32 | cpu | 28672 B read | 28672 B stored | 1.75 us | because q3g64: format of the layers | because cpu: the only device
rows_1_o = sparse_residual(x13, "1.o", channels=22, outputs=256, width=4)
    # [T,256] f32 | cpu | 3928 B read | 35840 B stored | 1.22 us | because cpu: corrections live in its memory
x14_merged = merge(x14, rows_1_o, "1.o", deltas=1, slack=0)
    # [T,256] f32 | cpu | 0 us | because cpu: where its linear is
x15, x16 = add_rms_norm(x10, x14_merged, "model.layers.1.post_attention_layernorm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device

# layer 1, window gate_up
budget("1.gate_up", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 1.5 kB; stopped by the budget of 10 % bytes
gate1, up1 = linear(x16, "model.layers.1.mlp.gate_proj+up_proj", outputs=(768, 768), window="1.gate_up", format="q3g64")
    # [T,768] f32, [T,768] f32 | cpu | 172032 B read | 172032 B stored | 5.53 us | because q3g64: format of the layers | because cpu: the only device
rows_1_gate_up = sparse_residual(x16, "1.gate_up", channels=22, outputs=1536, width=4)
    # [T,1536] f32 | cpu | 18008 B read | 204800 B stored | 1.47 us | because cpu: corrections live in its memory
gate1_merged, up1_merged = merge(gate1, up1, rows_1_gate_up, "1.gate_up", deltas=1, slack=0)
    # [T,768] f32, [T,768] f32 | cpu | 0.01 us | because cpu: where its linear is
x18 = silu_mul(gate1_merged, up1_merged)  # [T,768] f32 | cpu | 1.05 us | because cpu: the only device

# layer 1, window down
budget("1.down", rank=0, channels=64)
    # 64 rows of 768: next 4 would win 1.6 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
x19 = linear(x18, "model.layers.1.mlp.down_proj", outputs=256, window="1.down", format="q3g64")
    # [T,256] f32 | cpu | 86016 B read | 86016 B stored | 3.26 us | because q3g64: format of the layers | because cpu: the only device
rows_1_down = sparse_residual(x18, "1.down", channels=64, outputs=256, width=4)
    # [T,256] f32 | cpu | 11520 B read | 105472 B stored | 1.67 us | because cpu: corrections live in its memory
x19_merged = merge(x19, rows_1_down, "1.down", deltas=1, slack=0)
    # [T,256] f32 | cpu | 0 us | because cpu: where its linear is
x20, x21 = add_rms_norm(x15, x19_merged, "model.norm", epsilon=0.000001)
    # [T,256] f32, [T,256] f32 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
logits = linear(x21, "model.embed_tokens", outputs=4096, format="q8g64")
    # [T,4096] f32 | cpu | 1081344 B read | 1081344 B stored | 29.46 us | because q8g64: format of embedding and head | because cpu: the only device

return logits
