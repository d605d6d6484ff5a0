"""A script of somebody's own, in plain PyTorch, that traces its steps and says how they are made.

python declaring_script.py PATH DTYPE: a small network over images and one over tokens, together.
"""

import sys

import torch
from torch.nn import functional as f

import harness
from harness import stage

B, V, T, E, HEADS, CLASSES, LR, MOMENTUM, EPSILON = 4, 11, 5, 8, 2, 3, 0.1, 0.9, 1e-5
SHAPES = {
    "conv/w": (6, 3, 3, 3),
    "conv/b": (6,),
    "norm/w": (6,),
    "norm/b": (6,),
    "table": (V, E),
    "query": (E, E),
    "key": (E, E),
    "value": (E, E),
    "layer_norm/w": (E,),
    "layer_norm/b": (E,),
    "head/w": (CLASSES, 6 * 2 * 3 + E),
    "head/b": (CLASSES,),
}


def before(name):
    return f"params/{name}@step-1|inputs/params/{name}"


def product(x, name):
    """x times the weights of a torch.nn.Linear, which are [out, in]."""
    return stage("linear", x, stage("transpose", before(name)))


STAGES = {
    "forward/conv": stage(
        "bias_channels",
        stage("conv", "inputs/image", before("conv/w"), stride=2, padding=1),
        before("conv/b"),
    ),
    "forward/norm": stage(
        "batch_norm", "forward/conv", before("norm/w"), before("norm/b"), EPSILON
    ),
    "forward/pool": stage("max_pool", stage("relu", "forward/norm"), size=2, stride=(2, 1)),
    "forward/embedding": stage("embed_padded", before("table"), "inputs/tokens", padding=0),
    "forward/layer_norm": stage(
        "layer_norm", "forward/embedding", before("layer_norm/w"), before("layer_norm/b"), EPSILON
    ),
    "forward/query": product("forward/layer_norm", "query"),
    "forward/key": product("forward/layer_norm", "key"),
    "forward/value": product("forward/layer_norm", "value"),
    "forward/attention": stage(
        "attention", "forward/query", "forward/key", "forward/value", heads=HEADS, causal=True
    ),
    "forward/mean": stage(
        "mean_over", stage("gelu", stage("add", "forward/attention", "forward/embedding")), axis=1
    ),
    "forward/joined": stage("concat", stage("flatten", "forward/pool"), "forward/mean", axis=1),
    "forward/logits": stage("bias", product("forward/joined", "head/w"), before("head/b")),
    "forward/loss": stage("nll_loss", stage("log_softmax", "forward/logits"), "inputs/y"),
    "buffers/mean": stage(
        "running_mean", "buffers/mean@step-1|inputs/buffers/mean", "forward/conv", 0.1
    ),
    "buffers/variance": stage(
        "running_variance", "buffers/variance@step-1|inputs/buffers/variance", "forward/conv", 0.1
    ),
}
for name in SHAPES:
    velocity = f"optimizer/{name}/velocity"
    STAGES[velocity] = stage("velocity", f"{velocity}@step-1|zeros", f"grads/{name}", MOMENTUM, LR)
    STAGES[f"params/{name}"] = stage(
        "along_velocity", before(name), velocity, f"grads/{name}", LR, MOMENTUM
    )


def forward(p, seen, image, tokens, y, mean, variance):
    """The loss; what is on the way is kept in `seen`."""

    def keep(name, x):
        seen[f"forward/{name}"] = x
        x.retain_grad()
        return x

    conv = keep("conv", f.conv2d(image, p["conv/w"], p["conv/b"], stride=2, padding=1))
    norm = f.batch_norm(conv, mean, variance, p["norm/w"], p["norm/b"], True, 0.1, EPSILON)
    pool = keep("pool", f.max_pool2d(f.relu(keep("norm", norm)), 2, (2, 1)))
    embedding = keep("embedding", f.embedding(tokens, p["table"], padding_idx=0))
    gains = p["layer_norm/w"], p["layer_norm/b"]
    h = keep("layer_norm", f.layer_norm(embedding, (E,), *gains, EPSILON))
    q, k, v = (keep(name, f.linear(h, p[name])) for name in ("query", "key", "value"))
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    attention = f.scaled_dot_product_attention(q, k, v, is_causal=True)
    attention = keep("attention", attention.transpose(1, 2).flatten(2))
    average = keep("mean", f.gelu(attention + embedding).mean(1))
    joined = keep("joined", torch.cat([pool.flatten(1), average], 1))
    logits = keep("logits", f.linear(joined, p["head/w"], p["head/b"]))
    return keep("loss", f.nll_loss(f.log_softmax(logits, -1), y))


def main(path, dtype):
    torch.manual_seed(3)
    torch.set_default_dtype(getattr(torch, dtype))
    p = {name: torch.nn.Parameter(torch.randn(*shape) * 0.5) for name, shape in SHAPES.items()}
    optimizer = torch.optim.SGD(p.values(), lr=LR, momentum=MOMENTUM)
    mean, variance = torch.zeros(6), torch.ones(6)
    given = {f"inputs/params/{name}": x.detach().clone() for name, x in p.items()}
    given |= {"inputs/buffers/mean": mean.clone(), "inputs/buffers/variance": variance.clone()}
    with harness.TraceWriter(path, label="mine", dtype=dtype) as trace:
        for step in range(1, 4):
            image, y = torch.randn(B, 3, 7, 8), torch.randint(CLASSES, (B,))
            tokens = torch.randint(V, (B, T))
            seen = {**given, "inputs/image": image, "inputs/tokens": tokens, "inputs/y": y}
            given = {}
            optimizer.zero_grad()
            forward(p, seen, image, tokens, y, mean, variance).backward()
            seen |= {"buffers/mean": mean, "buffers/variance": variance}
            names = [name for name in reversed(seen) if name.startswith("forward/")]
            for name in names[1:]:
                seen[name.replace("forward/", "backward/")] = seen[name].grad
            seen |= {f"grads/{name}": x.grad for name, x in p.items()}
            optimizer.step()
            for name, x in p.items():
                seen[f"optimizer/{name}/velocity"] = optimizer.state[x]["momentum_buffer"]
                seen[f"params/{name}"] = x
            trace.write(step, seen, stages=STAGES)


if __name__ == "__main__":
    main(*sys.argv[1:])
