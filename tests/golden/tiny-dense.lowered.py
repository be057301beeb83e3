architecture = "qwen3"
stage = "lowered"
tokens = input("i32", "T")
positions = input("i32", "T")
rows = input("i32", "R")
rope_0 = rope_table(frequencies=(1, 0.5623413251903491, 0.31622776601683794, 0.1778279410038923, 0.1,
    0.05623413251903491, 0.03162277660168379, 0.01778279410038923, 0.01, 0.005623413251903491,
    0.0031622776601683794, 0.0017782794100389228, 0.001, 0.0005623413251903491, 0.00031622776601683794,
    0.00017782794100389227), scale=1)

x = embedding(tokens, "model.embed_tokens", rows=4096, width=256, format="q8g64")
    # [T,256] f32 | cpu | 264 B read | 1081344 B stored | 1.01 us | because q8g64: format of embedding and head | because cpu: the only device
x1, x1_codes = rms_norm(x, "model.layers.0.input_layernorm", epsilon=0.000001, codes=64)
    # [T,256] f32, [T,256] i8g64 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
rows_0_qkv_chosen = sparse_select(x1, "0.qkv", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 0, window qkv
budget("0.qkv", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
q, k, v = linear(x1_codes, "model.layers.0.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="0.qkv", format="q3g64", residual=4)
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 57344 B read | 57344 B stored | 2.51 us | because q3g64: format of the layers | because cpu: the only device
rows_0_qkv = sparse_sum(rows_0_qkv_chosen, "0.qkv", outputs=512, width=4)
    # [T,512] f32 | cpu | 5720 B read | 2048 B stored | 1.15 us | because cpu: corrections live in its memory
x2_q = append(q + rows_0_qkv, k + rows_0_qkv, v + rows_0_qkv, positions, "model.layers.0.self_attn.q_norm", "model.layers.0.self_attn.k_norm", layer=0, head_dim=32, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,256] f32 | cpu | 1.16 us | because cpu: the only device
x2 = attend(x2_q, positions, layer=0, head_dim=32, kv_heads=4, scale=0.17677669529663687)
    # [T,256] f32 | cpu | 131072 B read | 4.45 us | because cpu: the only device
x2_codes = quantize(x2, group=64)
    # [T,256] i8g64 | cpu | 1.01 us | because int8 codes for a linear: its producer makes none
rows_0_o_chosen = sparse_select(x2, "0.o", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 0, window o
budget("0.o", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.3 kB; stopped by the budget of 10 % bytes
x4 = linear(x2_codes, "model.layers.0.self_attn.o_proj", outputs=256, window="0.o", format="q3g64", residual=4)
    # [T,256] f32 | cpu | 28672 B read | 28672 B stored | 1.75 us | because q3g64: format of the layers | because cpu: the only device
rows_0_o = sparse_sum(rows_0_o_chosen, "0.o", outputs=256, width=4)
    # [T,256] f32 | cpu | 2904 B read | 1024 B stored | 1.08 us | because cpu: corrections live in its memory
x5, x6, x6_codes = add_rms_norm(x, x4 + rows_0_o, "model.layers.0.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,256] f32, [T,256] f32, [T,256] i8g64 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
rows_0_gate_up_chosen = sparse_select(x6, "0.gate_up", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 0, window gate_up
budget("0.gate_up", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 1.5 kB; stopped by the budget of 10 % bytes
gate, up = linear(x6_codes, "model.layers.0.mlp.gate_proj+up_proj", outputs=(768, 768), window="0.gate_up", format="q3g64", residual=4)
    # [T,768] f32, [T,768] f32 | cpu | 172032 B read | 172032 B stored | 5.53 us | because q3g64: format of the layers | because cpu: the only device
rows_0_gate_up = sparse_sum(rows_0_gate_up_chosen, "0.gate_up", outputs=1536, width=4)
    # [T,1536] f32 | cpu | 16984 B read | 6144 B stored | 1.45 us | because cpu: corrections live in its memory
x8, x8_codes = silu_mul(gate + rows_0_gate_up, up + rows_0_gate_up, codes=64)
    # [T,768] f32, [T,768] i8g64 | cpu | 1.05 us | because cpu: the only device
rows_0_down_chosen = sparse_select(x8, "0.down", channels=68, width=4)
    # [T,68] chosen | cpu | 3072 B read | 3072 B stored | 1.55 us | because cpu: corrections live in its memory

# layer 0, window down
budget("0.down", rank=0, channels=68)
    # 68 rows of 768: next 4 would win 1.5 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
x9 = linear(x8_codes, "model.layers.0.mlp.down_proj", outputs=256, window="0.down", format="q3g64", residual=4)
    # [T,256] f32 | cpu | 86016 B read | 86016 B stored | 3.26 us | because q3g64: format of the layers | because cpu: the only device
rows_0_down = sparse_sum(rows_0_down_chosen, "0.down", outputs=256, width=4)
    # [T,256] f32 | cpu | 8976 B read | 1024 B stored | 1.24 us | because cpu: corrections live in its memory
x10, x11, x11_codes = add_rms_norm(x5, x9 + rows_0_down, "model.layers.1.input_layernorm", epsilon=0.000001, codes=64)
    # [T,256] f32, [T,256] f32, [T,256] i8g64 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
rows_1_qkv_chosen = sparse_select(x11, "1.qkv", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 1, window qkv
budget("1.qkv", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
q4, k4, v2 = linear(x11_codes, "model.layers.1.self_attn.q_proj+k_proj+v_proj", outputs=(256, 128, 128), window="1.qkv", format="q3g64", residual=4)
    # [T,256] f32, [T,128] f32, [T,128] f32 | cpu | 57344 B read | 57344 B stored | 2.51 us | because q3g64: format of the layers | because cpu: the only device
rows_1_qkv = sparse_sum(rows_1_qkv_chosen, "1.qkv", outputs=512, width=4)
    # [T,512] f32 | cpu | 5720 B read | 2048 B stored | 1.15 us | because cpu: corrections live in its memory
x12_q = append(q4 + rows_1_qkv, k4 + rows_1_qkv, v2 + rows_1_qkv, positions, "model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm", layer=1, head_dim=32, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,256] f32 | cpu | 1.16 us | because cpu: the only device
x12 = attend(x12_q, positions, layer=1, head_dim=32, kv_heads=4, scale=0.17677669529663687)
    # [T,256] f32 | cpu | 131072 B read | 4.45 us | because cpu: the only device
x12_codes = quantize(x12, group=64)
    # [T,256] i8g64 | cpu | 1.01 us | because int8 codes for a linear: its producer makes none
rows_1_o_chosen = sparse_select(x12, "1.o", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 1, window o
budget("1.o", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 0.3 kB; stopped by the budget of 10 % bytes
x14 = linear(x12_codes, "model.layers.1.self_attn.o_proj", outputs=256, window="1.o", format="q3g64", residual=4)
    # [T,256] f32 | cpu | 28672 B read | 28672 B stored | 1.75 us | because q3g64: format of the layers | because cpu: the only device
rows_1_o = sparse_sum(rows_1_o_chosen, "1.o", outputs=256, width=4)
    # [T,256] f32 | cpu | 2904 B read | 1024 B stored | 1.08 us | because cpu: corrections live in its memory
x15, x16, x16_codes = add_rms_norm(x10, x14 + rows_1_o, "model.layers.1.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,256] f32, [T,256] f32, [T,256] i8g64 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
rows_1_gate_up_chosen = sparse_select(x16, "1.gate_up", channels=22, width=4)
    # [T,22] chosen | cpu | 1024 B read | 1024 B stored | 1.18 us | because cpu: corrections live in its memory

# layer 1, window gate_up
budget("1.gate_up", rank=0, channels=22)
    # 22 rows of 256: next 2 would win 2.3 % of the error for 1.5 kB; stopped by the budget of 10 % bytes
gate1, up1 = linear(x16_codes, "model.layers.1.mlp.gate_proj+up_proj", outputs=(768, 768), window="1.gate_up", format="q3g64", residual=4)
    # [T,768] f32, [T,768] f32 | cpu | 172032 B read | 172032 B stored | 5.53 us | because q3g64: format of the layers | because cpu: the only device
rows_1_gate_up = sparse_sum(rows_1_gate_up_chosen, "1.gate_up", outputs=1536, width=4)
    # [T,1536] f32 | cpu | 16984 B read | 6144 B stored | 1.45 us | because cpu: corrections live in its memory
x18, x18_codes = silu_mul(gate1 + rows_1_gate_up, up1 + rows_1_gate_up, codes=64)
    # [T,768] f32, [T,768] i8g64 | cpu | 1.05 us | because cpu: the only device
rows_1_down_chosen = sparse_select(x18, "1.down", channels=64, width=4)
    # [T,64] chosen | cpu | 3072 B read | 3072 B stored | 1.55 us | because cpu: corrections live in its memory

# layer 1, window down
budget("1.down", rank=0, channels=64)
    # 64 rows of 768: next 4 would win 1.6 % of the error for 0.5 kB; stopped by the budget of 10 % bytes
x19 = linear(x18_codes, "model.layers.1.mlp.down_proj", outputs=256, window="1.down", format="q3g64", residual=4)
    # [T,256] f32 | cpu | 86016 B read | 86016 B stored | 3.26 us | because q3g64: format of the layers | because cpu: the only device
rows_1_down = sparse_sum(rows_1_down_chosen, "1.down", outputs=256, width=4)
    # [T,256] f32 | cpu | 8448 B read | 1024 B stored | 1.22 us | because cpu: corrections live in its memory
x20, x21, x21_codes = add_rms_norm(x15, x19 + rows_1_down, rows, "model.norm", epsilon=0.000001, codes=64)
    # [R,256] f32, [R,256] f32, [R,256] i8g64 | cpu | 1024 B read | 1024 B stored | 1.03 us | because cpu: the only device
logits = linear(x21_codes, "model.embed_tokens", outputs=4096, format="q8g64")
    # [R,4096] f32 | cpu | 1081344 B read | 1081344 B stored | 29.46 us | because q8g64: format of embedding and head | because cpu: the only device

return logits
