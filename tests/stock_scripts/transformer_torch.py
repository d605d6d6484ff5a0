"""A small causal transformer of stock PyTorch layers, traced."""

import torch
from given import EPSILON, RATE, arguments, transformer
from torch import nn
from torch.nn import functional

import harness

FAULTS = [
    "layernorm-epsilon",
    "gelu-tanh",
    "loss-sum",
    "kernel-transposed",
    "bias-dropped",
    "scale-missing",
    "gradient-doubled",
]
HEADS = 2


class Block(nn.Module):
    """Attention, then two dense layers; each reads a norm of what it adds to."""

    def __init__(self, width, bias, fault):
        super().__init__()
        epsilon = 1e-6 if fault == "layernorm-epsilon" else EPSILON
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = nn.MultiheadAttention(width, HEADS, bias=bias, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.wide, self.narrow = nn.Linear(width, 13), nn.Linear(13, width)
        self.fault = fault

    def forward(self, x):
        """What the block makes of x [B, T, E], and its activations by name."""
        seen = {"norm1": (h := self.norm1(x))}
        seen["attention"] = h = self.attend(h)
        seen["norm2"] = h = self.norm2(x := x + h)
        seen["wide"] = h = self.wide(h)
        tanh = "tanh" if self.fault == "gelu-tanh" else "none"
        seen["gelu"] = h = functional.gelu(h, approximate=tanh)
        bias = None if self.fault == "bias-dropped" else self.narrow.bias
        seen["narrow"] = h = functional.linear(h, self.narrow.weight, bias)
        return x + h, seen

    def attend(self, x):
        """Causal attention of x to itself."""
        if self.fault != "scale-missing":
            late = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
            return self.attention(x, x, x, attn_mask=late, need_weights=False)[0]
        own = self.attention
        both = functional.linear(x, own.in_proj_weight, own.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (h.unflatten(-1, (HEADS, -1)).transpose(1, 2) for h in both)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return own.out_proj(h.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Embedding, two blocks, a norm, logits; `fault` is in the first block."""

    def __init__(self, width, bias, fault):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, width), nn.Embedding(7, width)
        self.block0, self.block1 = Block(width, bias, fault), Block(width, bias, None)
        self.norm, self.head = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, 11)

    def forward(self, x):
        """The activations by name, the logits [B, T, 11] last."""
        seen = {"embedding": self.tokens(x) + self.positions.weight}
        h = seen["embedding"]
        for name in ("block0", "block1"):
            h, inner = getattr(self, name)(h)
            seen |= {f"{name}/{point}": value for point, value in inner.items()}
        seen["norm"] = self.norm(h)
        seen["logits"] = self.head(seen["norm"])
        return seen


def named(model, of):
    """By the names of the weights, what `of` makes of each parameter: views, kernels [in, out]."""
    found = {}
    for path, parameter in model.named_parameters():
        value, (layer, _, kind) = of(parameter), path.replace(".", "/").rpartition("/")
        if kind.startswith("in_proj"):
            kind = kind.replace("in_proj_weight", "kernel").replace("in_proj_bias", "bias")
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{layer.replace('attention', part)}/{kind}"] = third
        elif isinstance(model.get_submodule(layer.replace("/", ".")), nn.LayerNorm):
            found[f"{layer}/{'gamma' if kind == 'weight' else 'beta'}"] = value
        elif layer in ("tokens", "positions"):
            found[f"{layer}/table"] = value
        else:
            layer = layer.replace("attention/out_proj", "output")
            found[f"{layer}/{kind.replace('weight', 'kernel')}"] = value
    return {n: value.T if n.endswith("kernel") else value for n, value in found.items()}


def arrays(tensors, prefix):
    """Copies, by names with `prefix`."""
    return {f"{prefix}/{name}": t.detach().numpy().copy() for name, t in tensors.items()}


def gradient(parameter):
    """The gradient of a parameter, zeros where it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def main(argv=None):
    """Train and leave a trace."""
    torch.set_num_threads(1)
    given = arguments(argv, FAULTS)
    weights, batches = transformer(given.seed, given.plain)
    width = 8 if given.plain else 6
    model = Net(width, not given.plain, given.fault).to(getattr(torch, given.dtype))
    parameters = named(model, lambda parameter: parameter.data)
    for name, parameter in parameters.items():
        parameter.copy_(torch.from_numpy(weights[name]))
    if given.fault == "kernel-transposed":
        square = parameters["block0/output/kernel"]
        square.copy_(square.T.clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with harness.TraceWriter(given.out, label="torch", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches, start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= arrays(parameters, "inputs/params")
            seen = model(torch.from_numpy(x))
            points |= arrays(seen, "forward")
            reduction = "sum" if given.fault == "loss-sum" else "mean"
            logits, target = seen["logits"].flatten(0, 1), torch.from_numpy(y).long().flatten()
            loss = functional.cross_entropy(logits, target, reduction=reduction)
            points["forward/loss"] = loss.detach().numpy()
            optimizer.zero_grad()
            loss.backward()
            if given.fault == "gradient-doubled":
                model.block0.wide.weight.grad *= 2
            points |= arrays(named(model, gradient), "grads")
            optimizer.step()
            points |= arrays(parameters, "params")
            trace.write(step, points)


if __name__ == "__main__":
    main()
