"""What PyTorch takes in bf16 on the same shapes: prints JSON for peers.ts. Seconds, the best of some."""
import json
import sys

import torch

asked = json.loads(sys.argv[1])
device = torch.device("cuda")
layers, tokens = asked["layers"], asked["tokens"]


def best(work, count=10):
    for _ in range(3):
        work()
    times = []
    for _ in range(count):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return min(times)


def random(*shape, **options):
    return (torch.rand(*shape, **options) - 0.5).to(torch.bfloat16) * 0.07


def products():
    found = []
    for name, rows, inputs in asked["linears"]:
        x, weight = random(tokens, inputs, device=device), random(rows, inputs, device=device)
        found.append({"name": name, "seconds": best(lambda: torch.nn.functional.linear(x, weight))})
    return found


def layer(weights, x, keys, values):
    """A decode step of one layer without its norms and rotations, which are small."""
    qkv, output, gate_up, down = weights
    heads, head_dim = asked["heads"], asked["headDim"]
    q = torch.nn.functional.linear(x, qkv)[:, : heads * head_dim].view(1, heads, 1, head_dim)
    attended = torch.nn.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
    x = x + torch.nn.functional.linear(attended.reshape(1, -1), output)
    gate, up = torch.nn.functional.linear(x, gate_up).chunk(2, dim=-1)
    return x + torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down)


def make(where, **options):
    return [random(rows, inputs, device=where).contiguous() for _, rows, inputs in asked["linears"]]


def cache():
    shape = (1, asked["kvHeads"], asked["context"], asked["headDim"])
    return random(*shape, device=device), random(*shape, device=device)


def step():
    """All weights on the GPU, the step one CUDA graph."""
    hidden = asked["linears"][0][2]
    weights = [make(device) for _ in range(layers)]
    caches = [cache() for _ in range(layers)]
    head = random(asked["vocabulary"], hidden, device=device)
    x = random(1, hidden, device=device)

    def work():
        y = x
        for own, (keys, values) in zip(weights, caches):
            y = layer(own, y, keys, values)
        return torch.nn.functional.linear(y, head)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return best(graph.replay)


def capped():
    """As many layers on the GPU as fit the cap; the others stream from pinned memory, one copied while one is computed."""
    hidden = asked["linears"][0][2]
    bytes_of_layer = 2 * sum(rows * inputs for _, rows, inputs in asked["linears"])
    head = random(asked["vocabulary"], hidden, device=device)
    # Two buffers, the head, caches and a quarter of a GiB for the context.
    room = asked["capGiB"] * 2**30 - 2 * bytes_of_layer - 2 * head.numel() - 2**28
    resident = max(0, min(layers, int(room // bytes_of_layer)))
    weights = [make(device) for _ in range(resident)]
    pinned = [[w.cpu().pin_memory() for w in make(device)] for _ in range(min(2, layers - resident))]
    buffers, copies = [make(device), make(device)], torch.cuda.Stream()
    keys, values = cache()
    x = random(1, hidden, device=device)

    def work():
        y = x
        for own in weights:
            y = layer(own, y, keys, values)
        compute, done = torch.cuda.current_stream(), [None, None]
        for i in range(layers - resident):
            buffer = buffers[i % 2]
            with torch.cuda.stream(copies):
                if done[i % 2] is not None:
                    copies.wait_event(done[i % 2])
                for to, source in zip(buffer, pinned[i % len(pinned)]):
                    to.copy_(source, non_blocking=True)
                copied = copies.record_event()
            compute.wait_event(copied)
            y = layer(buffer, y, keys, values)
            done[i % 2] = compute.record_event()
        return torch.nn.functional.linear(y, head)

    return best(work, 3)


def attempt(work):
    try:
        return work()
    except Exception as error:  # what there is no memory for is said, and the rest measured
        return str(error).split("\n")[0]
    finally:
        torch.cuda.empty_cache()


with torch.inference_mode():
    print(json.dumps({
        "version": f"{torch.__version__}, {torch.cuda.get_device_name()}",
        "products": products(),
        "step": attempt(step),
        "capped": attempt(capped),
    }))
