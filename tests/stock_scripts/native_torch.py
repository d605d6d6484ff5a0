"""The stock models in PyTorch, traced under the names and in the layouts that PyTorch has itself.

python native_torch.py MODEL --out PATH ...: cnn, transformer or lstm; arguments as of the others.
"""

import sys

import cnn_torch
import numpy as np
import torch
import transformer_torch
from given import ADAM_EPSILON, ADAM_RATE, arguments, cnn, transformer
from torch import nn
from torch.nn import functional

import harness


class Lstm(nn.Module):
    """Tokens, two LSTM layers, logits."""

    def __init__(self):
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(11, 6), nn.LSTM(6, 6, 2, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, x):
        """Logits [B, T, 11]."""
        return {"logits": self.head(self.rnn(self.tokens(x))[0])}


def lstm(seed):
    """Weights of the LSTM model in PyTorch's layout, biases zero at first, and batches."""
    draw = np.random.default_rng(seed)
    torch_like = Lstm().state_dict()
    weights = {
        n: np.zeros(p.shape) if "bias" in n else draw.normal(0, 0.4, p.shape)
        for n, p in torch_like.items()
    }
    tokens = draw.integers(0, 11, (5, 3, 8)).astype(np.int32)
    return {n: w.astype(np.float32) for n, w in weights.items()}, [
        (t[:, :-1], t[:, 1:]) for t in tokens
    ]


def made(which, given):
    """The model with its weights, and batches."""
    if which == "lstm":
        weights, batches = lstm(given.seed)
        model = Lstm()
        model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
        return model, batches
    if which == "cnn":
        weights, batches = cnn(given.seed, given.plain, None)
        model = cnn_torch.Net(not given.plain, given.fault)
        for name, parameter in cnn_torch.parameters(model):
            w = weights[name]
            if given.fault == "kernel-transposed" and name == "conv2/kernel":
                w = w.swapaxes(0, 1)
            w = w.transpose(3, 2, 0, 1) if w.ndim == 4 else w.T
            parameter.data.copy_(torch.from_numpy(w))
        return model, [(x.transpose(0, 3, 1, 2), y) for x, y in batches]
    weights, batches = transformer(given.seed, given.plain)
    model = transformer_torch.Net(8 if given.plain else 6, not given.plain, given.fault)
    named = transformer_torch.named(model, lambda parameter: parameter.data)
    for name, parameter in named.items():
        parameter.copy_(torch.from_numpy(weights[name]))
    if given.fault == "kernel-transposed":
        named["block0/output/kernel"].copy_(named["block0/output/kernel"].T.clone())
    return model, batches


def watched(model, seen):
    """See the output of every module."""

    def hook(path):
        def see(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor):
                output.retain_grad()
                seen[f"forward/{path.replace('.', '/')}"] = output

        return see

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(hook(path))


def main(argv=None):
    """Train and leave a trace."""
    which, *rest = sys.argv[1:] if argv is None else argv
    faults = [*cnn_torch.FAULTS, *transformer_torch.FAULTS]
    torch.set_num_threads(1)
    given = arguments(rest, faults)
    model, batches = made(which, given)
    model = model.to(getattr(torch, given.dtype))
    seen = {}
    watched(model, seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if given.adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE, eps=ADAM_EPSILON)
    names = {n.replace(".", "/"): p for n, p in model.named_parameters()}
    buffers = {n.replace(".", "/"): p for n, p in model.named_buffers()}
    with harness.TraceWriter(given.out, label="torch", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches[:5], start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= {f"inputs/params/{n}": p.detach().clone() for n, p in names.items()}
                points |= {f"inputs/buffers/{n}": p.clone() for n, p in buffers.items()}
            seen.clear()
            inputs = torch.from_numpy(np.ascontiguousarray(x))
            inputs = inputs.to(getattr(torch, given.dtype)) if x.dtype.kind == "f" else inputs
            logits = model(inputs)["logits"]
            logits = logits.flatten(0, -2)
            target = torch.from_numpy(y).long().flatten()
            loss = functional.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            points |= {n: t.detach() for n, t in seen.items()}
            points["forward/loss"] = loss.detach()
            grads = {n.replace("forward/", "backward/"): t.grad for n, t in seen.items()}
            points |= {n: g for n, g in reversed(grads.items()) if g is not None}
            points |= {f"grads/{n}": p.grad for n, p in names.items() if p.grad is not None}
            optimizer.step()
            for n, p in names.items():
                slots = optimizer.state.get(p, {})
                points |= {f"optimizer/{n}/{k}": v for k, v in slots.items() if v is not None}
            points |= {f"params/{n}": p for n, p in names.items()}
            points |= {f"buffers/{n}": p for n, p in buffers.items()}
            trace.write(step, points)


if __name__ == "__main__":
    main()
