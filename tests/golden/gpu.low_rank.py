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
    # [T,4096] f32 | gpu backbone | 4224 B read | 541753344 B stored | 1.52 us | because q8g64: format of embedding and head | because gpu: it fits
x, x_codes = rms_norm(h, "model.layers.0.input_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
factors_0_qkv_hidden = low_rank_down(x, "0.qkv", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 0, window qkv
budget("0.qkv", rank=16, channels=0)
    # rank 16 of 16: all there are; 13.9 us of 56.8 us beside the GPU, hidden
q, k, v = linear(x_codes, "model.layers.0.self_attn.q_proj+k_proj+v_proj", outputs=(4096, 1024, 1024), window="0.qkv", format="q4g64")
    # [T,4096] f32, [T,1024] f32, [T,1024] f32 | gpu backbone | 14155776 B read | 14155776 B stored | 56.8 us | because q4g64: format of the layers | because gpu: it fits
factors_0_qkv = low_rank_up(factors_0_qkv_hidden, "0.qkv", rank=16, outputs=6144, dtype="i8")
    # [T,6144] f32 | cpu compensation | 98368 B read | 98368 B stored | 3.64 us | because cpu: corrections live in its memory
a_q = append(q + factors_0_qkv, k + factors_0_qkv, v + factors_0_qkv, positions, "model.layers.0.self_attn.q_norm", "model.layers.0.self_attn.k_norm", layer=0, head_dim=128, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,4096] f32 | gpu backbone | 1.54 us | because gpu: it fits
a = attend(a_q, positions, layer=0, head_dim=128, kv_heads=8, scale=0.08838834764831845)
    # [T,4096] f32 | gpu backbone | 1048576 B read | 5.6 us | because gpu: it fits
a_codes = quantize(a, group=64)
    # [T,4096] i8g64 | gpu backbone | 1.5 us | because int8 codes for a linear: its producer makes none
factors_0_o_hidden = low_rank_down(a, "0.o", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 0, window o
budget("0.o", rank=16, channels=0)  # rank 16 of 16: all there are; 12.7 us of 38.4 us beside the GPU, hidden
o = linear(a_codes, "model.layers.0.self_attn.o_proj", outputs=4096, window="0.o", format="q4g64")
    # [T,4096] f32 | gpu backbone | 9437184 B read | 9437184 B stored | 38.36 us | because q4g64: format of the layers | because gpu: it fits
factors_0_o = low_rank_up(factors_0_o_hidden, "0.o", rank=16, outputs=4096, dtype="i8")
    # [T,4096] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory
h1, x1, x1_codes = add_rms_norm(h, o + factors_0_o, "model.layers.0.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
factors_0_gate_up_hidden = low_rank_down(x1, "0.gate_up", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 0, window gate_up
budget("0.gate_up", rank=16, channels=0)
    # rank 16 of 16: all there are; 26.8 us of 259.6 us beside the GPU, hidden
gate, up = linear(x1_codes, "model.layers.0.mlp.gate_proj+up_proj", outputs=(14336, 14336), window="0.gate_up", format="q4g64")
    # [T,14336] f32, [T,14336] f32 | gpu backbone | 66060288 B read | 66060288 B stored | 259.55 us | because q4g64: format of the layers | because gpu: it fits
factors_0_gate_up = low_rank_up(factors_0_gate_up_hidden, "0.gate_up", rank=16, outputs=28672, dtype="i8")
    # [T,28672] f32 | cpu compensation | 458816 B read | 458816 B stored | 9.65 us | because cpu: corrections live in its memory
m, m_codes = silu_mul(gate + factors_0_gate_up, up + factors_0_gate_up, codes=64)
    # [T,14336] f32, [T,14336] i8g64 | gpu backbone | 1.52 us | because gpu: it fits
factors_0_down_hidden = low_rank_down(m, "0.down", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 229440 B read | 229440 B stored | 5.82 us | because cpu: corrections live in its memory

# layer 0, window down
budget("0.down", rank=16, channels=0)
    # rank 16 of 16: all there are; 18.6 us of 130.5 us beside the GPU, hidden
down = linear(m_codes, "model.layers.0.mlp.down_proj", outputs=4096, window="0.down", format="q4g64")
    # [T,4096] f32 | gpu backbone | 33030144 B read | 33030144 B stored | 130.52 us | because q4g64: format of the layers | because gpu: it fits
factors_0_down = low_rank_up(factors_0_down_hidden, "0.down", rank=16, outputs=4096, dtype="i8")
    # [T,4096] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory
h2, x2, x2_codes = add_rms_norm(h1, down + factors_0_down, "model.layers.1.input_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
factors_1_qkv_hidden = low_rank_down(x2, "1.qkv", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 1, window qkv
budget("1.qkv", rank=16, channels=0)
    # rank 16 of 16: all there are; 13.9 us of 56.8 us beside the GPU, hidden
q3, k3, v1 = linear(x2_codes, "model.layers.1.self_attn.q_proj+k_proj+v_proj", outputs=(4096, 1024, 1024), window="1.qkv", format="q4g64")
    # [T,4096] f32, [T,1024] f32, [T,1024] f32 | gpu backbone | 14155776 B read | 14155776 B stored | 56.8 us | because q4g64: format of the layers | because gpu: it fits
factors_1_qkv = low_rank_up(factors_1_qkv_hidden, "1.qkv", rank=16, outputs=6144, dtype="i8")
    # [T,6144] f32 | cpu compensation | 98368 B read | 98368 B stored | 3.64 us | because cpu: corrections live in its memory
a2_q = append(q3 + factors_1_qkv, k3 + factors_1_qkv, v1 + factors_1_qkv, positions, "model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm", layer=1, head_dim=128, q_epsilon=0.000001, k_epsilon=0.000001, rope="rope_0")
    # [T,4096] f32 | gpu backbone | 1.54 us | because gpu: it fits
a2 = attend(a2_q, positions, layer=1, head_dim=128, kv_heads=8, scale=0.08838834764831845)
    # [T,4096] f32 | gpu backbone | 1048576 B read | 5.6 us | because gpu: it fits
a2_codes = quantize(a2, group=64)
    # [T,4096] i8g64 | gpu backbone | 1.5 us | because int8 codes for a linear: its producer makes none
factors_1_o_hidden = low_rank_down(a2, "1.o", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 1, window o
budget("1.o", rank=16, channels=0)  # rank 16 of 16: all there are; 12.7 us of 38.4 us beside the GPU, hidden
o1 = linear(a2_codes, "model.layers.1.self_attn.o_proj", outputs=4096, window="1.o", format="q4g64")
    # [T,4096] f32 | gpu backbone | 9437184 B read | 9437184 B stored | 38.36 us | because q4g64: format of the layers | because gpu: it fits
factors_1_o = low_rank_up(factors_1_o_hidden, "1.o", rank=16, outputs=4096, dtype="i8")
    # [T,4096] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory
h3, x3, x3_codes = add_rms_norm(h2, o1 + factors_1_o, "model.layers.1.post_attention_layernorm", epsilon=0.000001, codes=64)
    # [T,4096] f32, [T,4096] f32, [T,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
factors_1_gate_up_hidden = low_rank_down(x3, "1.gate_up", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory

# layer 1, window gate_up
budget("1.gate_up", rank=16, channels=0)
    # rank 16 of 16: all there are; 26.8 us of 259.6 us beside the GPU, hidden
gate2, up1 = linear(x3_codes, "model.layers.1.mlp.gate_proj+up_proj", outputs=(14336, 14336), window="1.gate_up", format="q4g64")
    # [T,14336] f32, [T,14336] f32 | gpu backbone | 66060288 B read | 66060288 B stored | 259.55 us | because q4g64: format of the layers | because gpu: it fits
factors_1_gate_up = low_rank_up(factors_1_gate_up_hidden, "1.gate_up", rank=16, outputs=28672, dtype="i8")
    # [T,28672] f32 | cpu compensation | 458816 B read | 458816 B stored | 9.65 us | because cpu: corrections live in its memory
m1, m1_codes = silu_mul(gate2 + factors_1_gate_up, up1 + factors_1_gate_up, codes=64)
    # [T,14336] f32, [T,14336] i8g64 | gpu backbone | 1.52 us | because gpu: it fits
factors_1_down_hidden = low_rank_down(m1, "1.down", rank=16, dtype="i8")
    # [T,16] f32 | cpu compensation | 229440 B read | 229440 B stored | 5.82 us | because cpu: corrections live in its memory

# layer 1, window down
budget("1.down", rank=16, channels=0)
    # rank 16 of 16: all there are; 18.6 us of 130.5 us beside the GPU, hidden
down1 = linear(m1_codes, "model.layers.1.mlp.down_proj", outputs=4096, window="1.down", format="q4g64")
    # [T,4096] f32 | gpu backbone | 33030144 B read | 33030144 B stored | 130.52 us | because q4g64: format of the layers | because gpu: it fits
factors_1_down = low_rank_up(factors_1_down_hidden, "1.down", rank=16, outputs=4096, dtype="i8")
    # [T,4096] f32 | cpu compensation | 65600 B read | 65600 B stored | 3.09 us | because cpu: corrections live in its memory
h4, x4, x4_codes = add_rms_norm(h3, down1 + factors_1_down, rows, "model.norm", epsilon=0.000001, codes=64)
    # [R,4096] f32, [R,4096] f32, [R,4096] i8g64 | gpu backbone | 16384 B read | 16384 B stored | 1.56 us | because gpu: it fits
logits = linear(x4_codes, "lm_head", outputs=128256, format="q8g64")
    # [R,128256] f32 | gpu backbone | 541753344 B read | 541753344 B stored | 2117.72 us | because q8g64: format of embedding and head | because gpu: it fits

return logits
