architecture = "tiny"
stage = "scheduled"
tokens = input("i32", "T")
positions = input("i32", "T")
rows = input("i32", "R")
rope_0 = rope_table(frequencies=(1, 0.8058421877614819, 0.6493816315762113, 0.5232991146814947,
    0.4216965034285822, 0.33982083289425596, 0.27384196342643613, 0.220673406908459, 0.1778279410038923,
    0.14330125702369628, 0.11547819846894582, 0.0930572040929699, 0.07498942093324558, 0.060429639023813285,
    0.04869675251658631, 0.03924189758484536, 0.03162277660168379, 0.025482967479793464, 0.02053525026457146,
    0.016548170999431813, 0.01333521432163324, 0.010746078283213174, 0.008659643233600654,
    0.006978305848598663, 0.005623413251903491, 0.004531583637600818, 0.003651741272548377,
    0.002942727176209282, 0.0023713737056616554, 0.0019109529749704406, 0.001539926526059492,
    0.0012409377607517195, 0.001, 0.0008058421877614818, 0.0006493816315762113, 0.0005232991146814947,
    0.00042169650342858224, 0.00033982083289425596, 0.0002738419634264361, 0.00022067340690845897,
    0.00017782794100389227, 0.00014330125702369627, 0.00011547819846894582, 0.0000930572040929699,
    0.00007498942093324559, 0.00006042963902381328, 0.00004869675251658631, 0.00003924189758484536,
    0.000031622776601683795, 0.000025482967479793464, 0.000020535250264571462, 0.000016548170999431813,
    0.00001333521432163324, 0.000010746078283213176, 0.000008659643233600654, 0.000006978305848598663,
    0.000005623413251903491, 0.000004531583637600818, 0.000003651741272548377, 0.0000029427271762092816,
    0.0000023713737056616552, 0.0000019109529749704404, 0.000001539926526059492, 0.0000012409377607517195),
    scale=1)

h = embedding(tokens, "model.embed_tokens", rows=128256, width=4096, format="q8g64")
    # [T,4096] f32 | cpu compensation | 4224 B read | 541753344 B stored | 2.07 us | because q8g64: format of embedding and head | because cpu: before layers that do not fit: 1.07 GiB of 1.2 GiB are taken
x, x_codes = rms_norm(h, "model.layers.0.input_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] i8g64 | cpu compensation | 16384 B read | 16384 B stored | 2.27 us | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_qkv_chosen = sparse_select(x, "0.qkv", channels=496, width=4)
    # [T,496] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 0, window qkv
budget("0.qkv", rank=0, channels=496)
    # 496 rows of 4096: next 16 would win 0.81 % of the error for 49.2 kB; stopped by the budget of 10 % bytes
q, k, v = linear(x_codes, "model.layers.0.self_attn.q_proj+k_proj+v_proj", outputs=(4096, 1024, 1024), window="0.qkv", format="q4g64", residual=4)
    # [T,4096] f32, [T,1024] f32, [T,1024] f32 | cpu compensation | 14155776 B read | 14155776 B stored | 237.93 us | because q4g64: format of the layers | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_qkv = sparse_sum(rows_0_qkv_chosen, "0.qkv", outputs=6144, width=4)
    # [T,6144] f32 | cpu compensation | 1525696 B read | 24576 B stored | 27.43 us | because cpu: corrections live in its memory
a_q = append(q + rows_0_qkv, k + rows_0_qkv, v + rows_0_qkv, positions, "model.layers.0.self_attn.q_norm", "model.layers.0.self_attn.k_norm", layer=0, head_dim=128, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,4096] f32 | cpu compensation | 2.64 us | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
a = attend(a_q, positions, layer=0, head_dim=128, kv_heads=8, scale=0.08838834764831845)
    # [T,4096] f32 | cpu compensation | 1048576 B read | 19.48 us | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
a_codes = quantize(a, group=64)
    # [T,4096] i8g64 | cpu compensation | 2.03 us | because int8 codes for a linear: its producer makes none
rows_0_o_chosen = sparse_select(a, "0.o", channels=448, width=4)
    # [T,448] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 0, window o
budget("0.o", rank=0, channels=448)
    # 448 rows of 4096: next 16 would win 0.9 % of the error for 32.8 kB; stopped by the budget of 10 % bytes
o = linear(a_codes, "model.layers.0.self_attn.o_proj", outputs=4096, window="0.o", format="q4g64", residual=4)
    # [T,4096] f32 | cpu compensation | 9437184 B read | 9437184 B stored | 159.29 us | because q4g64: format of the layers | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_o = sparse_sum(rows_0_o_chosen, "0.o", outputs=4096, width=4)
    # [T,4096] f32 | cpu compensation | 919296 B read | 16384 B stored | 17.32 us | because cpu: corrections live in its memory
h1, x1, x1_codes = add_rms_norm(h, o + rows_0_o, "model.layers.0.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | cpu compensation | 16384 B read | 16384 B stored | 2.27 us | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_gate_up_chosen = sparse_select(x1, "0.gate_up", channels=480, width=4)
    # [T,480] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 0, window gate_up
budget("0.gate_up", rank=0, channels=480)
    # 480 rows of 4096: next 16 would win 0.9 % of the error for 229.4 kB; stopped by the budget of 10 % bytes
gate, up = linear(x1_codes, "model.layers.0.mlp.gate_proj+up_proj", outputs=(14336, 14336), window="0.gate_up", format="q4g64", residual=4)
    # [T,14336] f32, [T,14336] f32 | cpu compensation | 66060288 B read | 66060288 B stored | 1103 us | because q4g64: format of the layers | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_gate_up = sparse_sum(rows_0_gate_up_chosen, "0.gate_up", outputs=28672, width=4)
    # [T,28672] f32 | cpu compensation | 6883200 B read | 114688 B stored | 116.72 us | because cpu: corrections live in its memory
m, m_codes = silu_mul(gate + rows_0_gate_up, up + rows_0_gate_up, codes=64)
    # [T,14336] f32, [T,14336] i8g64 | cpu compensation | 2.27 us | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_down_chosen = sparse_select(m, "0.down", channels=1568, width=4)
    # [T,1568] chosen | cpu compensation | 57344 B read | 57344 B stored | 4.99 us | because cpu: corrections live in its memory

# layer 0, window down
budget("0.down", rank=0, channels=1568)
    # 1568 rows of 14336: next 56 would win 0.9 % of the error for 114.9 kB; stopped by the budget of 10 % bytes
down = linear(m_codes, "model.layers.0.mlp.down_proj", outputs=4096, window="0.down", format="q4g64", residual=4)
    # [T,4096] f32 | cpu compensation | 33030144 B read | 33030144 B stored | 552.5 us | because q4g64: format of the layers | because cpu: layer 0 of 2 does not fit: 1.07 GiB of 1.2 GiB are taken
rows_0_down = sparse_sum(rows_0_down_chosen, "0.down", outputs=4096, width=4)
    # [T,4096] f32 | cpu compensation | 3217536 B read | 16384 B stored | 55.63 us | because cpu: corrections live in its memory
h2, x2, x2_codes = add_rms_norm(h1, down + rows_0_down, "model.layers.1.input_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
rows_1_qkv_chosen = sparse_select(x2, "1.qkv", channels=464, width=4)
    # [T,464] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 1, window qkv
budget("1.qkv", rank=0, channels=464)
    # 464 rows of 4096: next 16 would win 0.9 % of the error for 49.2 kB; stopped by the budget of 10 % bytes; 35.8 us of 56.8 us beside the GPU, hidden
q3, k3, v1 = linear(x2_codes, "model.layers.1.self_attn.q_proj+k_proj+v_proj", outputs=(4096, 1024, 1024), window="1.qkv", format="q4g64", residual=4)
    # [T,4096] f32, [T,1024] f32, [T,1024] f32 | gpu backbone | 14155776 B read | 14155776 B stored | 56.8 us | because q4g64: format of the layers | because gpu: it fits
rows_1_qkv = sparse_sum(rows_1_qkv_chosen, "1.qkv", outputs=6144, width=4)
    # [T,6144] f32 | cpu compensation | 1427264 B read | 24576 B stored | 25.79 us | because cpu: corrections live in its memory
a2_q = append(q3 + rows_1_qkv, k3 + rows_1_qkv, v1 + rows_1_qkv, positions, "model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm", layer=1, head_dim=128, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,4096] f32 | gpu backbone | 1.54 us | because gpu: it fits
a2 = attend(a2_q, positions, layer=1, head_dim=128, kv_heads=8, scale=0.08838834764831845)
    # [T,4096] f32 | gpu backbone | 1048576 B read | 5.6 us | because gpu: it fits
a2_codes = quantize(a2, group=64)
    # [T,4096] i8g64 | gpu backbone | 1.5 us | because int8 codes for a linear: its producer makes none
rows_1_o_chosen = sparse_select(a2, "1.o", channels=448, width=4)
    # [T,448] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 1, window o
budget("1.o", rank=0, channels=448)
    # 448 rows of 4096: next 16 would win 0.9 % of the error for 32.8 kB; stopped by the budget of 10 % bytes; 26.7 us of 38.4 us beside the GPU, hidden
o1 = linear(a2_codes, "model.layers.1.self_attn.o_proj", outputs=4096, window="1.o", format="q4g64", residual=4)
    # [T,4096] f32 | gpu backbone | 9437184 B read | 9437184 B stored | 38.36 us | because q4g64: format of the layers | because gpu: it fits
rows_1_o = sparse_sum(rows_1_o_chosen, "1.o", outputs=4096, width=4)
    # [T,4096] f32 | cpu compensation | 919296 B read | 16384 B stored | 17.32 us | because cpu: corrections live in its memory
h3, x3, x3_codes = add_rms_norm(h2, o1 + rows_1_o, "model.layers.1.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
rows_1_gate_up_chosen = sparse_select(x3, "1.gate_up", channels=448, width=4)
    # [T,448] chosen | cpu compensation | 16384 B read | 16384 B stored | 2.85 us | because cpu: corrections live in its memory

# layer 1, window gate_up
budget("1.gate_up", rank=0, channels=448)
    # 448 rows of 4096: next 16 would win 0.9 % of the error for 229.4 kB; stopped by the budget of 10 % bytes; 126.0 us of 259.6 us beside the GPU, hidden
gate2, up1 = linear(x3_codes, "model.layers.1.mlp.gate_proj+up_proj", outputs=(14336, 14336), window="1.gate_up", format="q4g64", residual=4)
    # [T,14336] f32, [T,14336] f32 | gpu backbone | 66060288 B read | 66060288 B stored | 259.55 us | because q4g64: format of the layers | because gpu: it fits
rows_1_gate_up = sparse_sum(rows_1_gate_up_chosen, "1.gate_up", outputs=28672, width=4)
    # [T,28672] f32 | cpu compensation | 6424320 B read | 114688 B stored | 109.07 us | because cpu: corrections live in its memory
m1, m1_codes = silu_mul(gate2 + rows_1_gate_up, up1 + rows_1_gate_up, codes=64)
    # [T,14336] f32, [T,14336] i8g64 | gpu backbone | 1.52 us | because gpu: it fits
rows_1_down_chosen = sparse_select(m1, "1.down", channels=1568, width=4)
    # [T,1568] chosen | cpu compensation | 57344 B read | 57344 B stored | 4.99 us | because cpu: corrections live in its memory

# layer 1, window down
budget("1.down", rank=0, channels=1568)
    # 1568 rows of 14336: next 56 would win 0.9 % of the error for 114.9 kB; stopped by the budget of 10 % bytes; 70.3 us of 130.5 us beside the GPU, hidden
down1 = linear(m1_codes, "model.layers.1.mlp.down_proj", outputs=4096, window="1.down", format="q4g64", residual=4)
    # [T,4096] f32 | gpu backbone | 33030144 B read | 33030144 B stored | 130.52 us | because q4g64: format of the layers | because gpu: it fits
rows_1_down = sparse_sum(rows_1_down_chosen, "1.down", outputs=4096, width=4)
    # [T,4096] f32 | cpu compensation | 3217536 B read | 16384 B stored | 55.63 us | because cpu: corrections live in its memory
h4, x4, x4_codes = add_rms_norm(h3, down1 + rows_1_down, rows, "model.norm", epsilon=0.000001, codes=64)
    # [R,4096] f32, [R,4096] f32, [R,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
logits = linear(x4_codes, "lm_head", outputs=128256, format="q8g64")
    # [R,128256] f32 | gpu backbone | 541753344 B read | 541753344 B stored | 2117.72 us | because q8g64: format of embedding and head | because gpu: it fits

return logits
