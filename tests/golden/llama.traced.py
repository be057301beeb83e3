architecture = "llama"
stage = "traced"
tokens = input("i32", "T")
positions = input("i32", "T")
rope_0 = rope_table(frequencies=(1, 0.6978305848598664, 0.4869675251658631, 0.33982083289425596,
    0.23713737056616552, 0.16548170999431813, 0.11547819846894582, 0.08058421877614819, 0.05623413251903491,
    0.03924189758484536, 0.027384196342643614, 0.019109529749704406, 0.01333521432163324, 0.00930572040929699,
    0.006493816315762113, 0.004531583637600818, 0.0031622776601683794, 0.0022067340690845897,
    0.001539926526059492, 0.0010746078283213176, 0.0007498942093324559, 0.0005232991146814947,
    0.0003651741272548377, 0.00025482967479793463, 0.00017782794100389227, 0.00012409377607517196,
    0.00008659643233600654, 0.00006042963902381328, 0.00004216965034285822, 0.000029427271762092818,
    0.000020535250264571462, 0.000014330125702369627), scale=1)

x = embedding(tokens, "model.embed_tokens", rows=49152, width=576)  # [T,576] f32
x1 = rms_norm(x, "model.layers.0.input_layernorm", epsilon=0.00001)  # [T,576] f32
q = linear(x1, "model.layers.0.self_attn.q_proj", outputs=576)  # [T,576] f32
q1 = split_heads(q, head_dim=64)  # [T,9,64] f32
q2 = rope(q1, positions, "rope_0")  # [T,9,64] f32
k = linear(x1, "model.layers.0.self_attn.k_proj", outputs=192)  # [T,192] f32
k1 = split_heads(k, head_dim=64)  # [T,3,64] f32
k2 = rope(k1, positions, "rope_0")  # [T,3,64] f32
v = linear(x1, "model.layers.0.self_attn.v_proj", outputs=192)  # [T,192] f32
v1 = split_heads(v, head_dim=64)  # [T,3,64] f32
x2 = attention(q2, k2, v1, positions, layer=0, scale=0.125)  # [T,9,64] f32
x3 = merge_heads(x2)  # [T,576] f32
x4 = linear(x3, "model.layers.0.self_attn.o_proj", outputs=576)  # [T,576] f32
x5 = add(x, x4)  # [T,576] f32
x6 = rms_norm(x5, "model.layers.0.post_attention_layernorm", epsilon=0.00001)  # [T,576] f32
gate = linear(x6, "model.layers.0.mlp.gate_proj", outputs=1536)  # [T,1536] f32
up = linear(x6, "model.layers.0.mlp.up_proj", outputs=1536)  # [T,1536] f32
x7 = silu(gate)  # [T,1536] f32
x8 = mul(x7, up)  # [T,1536] f32
x9 = linear(x8, "model.layers.0.mlp.down_proj", outputs=576)  # [T,576] f32
x10 = add(x5, x9)  # [T,576] f32
x11 = rms_norm(x10, "model.layers.1.input_layernorm", epsilon=0.00001)  # [T,576] f32
q3 = linear(x11, "model.layers.1.self_attn.q_proj", outputs=576)  # [T,576] f32
q4 = split_heads(q3, head_dim=64)  # [T,9,64] f32
q5 = rope(q4, positions, "rope_0")  # [T,9,64] f32
k3 = linear(x11, "model.layers.1.self_attn.k_proj", outputs=192)  # [T,192] f32
k4 = split_heads(k3, head_dim=64)  # [T,3,64] f32
k5 = rope(k4, positions, "rope_0")  # [T,3,64] f32
v2 = linear(x11, "model.layers.1.self_attn.v_proj", outputs=192)  # [T,192] f32
v3 = split_heads(v2, head_dim=64)  # [T,3,64] f32
x12 = attention(q5, k5, v3, positions, layer=1, scale=0.125)  # [T,9,64] f32
x13 = merge_heads(x12)  # [T,576] f32
x14 = linear(x13, "model.layers.1.self_attn.o_proj", outputs=576)  # [T,576] f32
x15 = add(x10, x14)  # [T,576] f32
x16 = rms_norm(x15, "model.layers.1.post_attention_layernorm", epsilon=0.00001)  # [T,576] f32
gate1 = linear(x16, "model.layers.1.mlp.gate_proj", outputs=1536)  # [T,1536] f32
up1 = linear(x16, "model.layers.1.mlp.up_proj", outputs=1536)  # [T,1536] f32
x17 = silu(gate1)  # [T,1536] f32
x18 = mul(x17, up1)  # [T,1536] f32
x19 = linear(x18, "model.layers.1.mlp.down_proj", outputs=576)  # [T,576] f32
x20 = add(x15, x19)  # [T,576] f32
x21 = rms_norm(x20, "model.norm", epsilon=0.00001)  # [T,576] f32
logits = linear(x21, "model.embed_tokens", outputs=49152)  # [T,49152] f32

return logits
