"""A small CNN of stock PyTorch layers, traced; images are [B, C, H, W]."""

import torch
from given import ADAM_EPSILON, ADAM_RATE, EPSILON, RATE, arguments, cnn
from torch import nn
from torch.nn import functional

import harness

FAULTS = [
    "batchnorm-momentum",
    "loss-sum",
    "kernel-transposed",
    "conv-bfloat16",
    "bias-dropped",
    "gradient-doubled",
    "leaky-relu",
]


class Net(nn.Module):
    """Two of convolution, batch normalization, ReLU, the first with pooling; then classes."""

    def __init__(self, bias, fault):
        super().__init__()
        momentum = 0.01 if fault == "batchnorm-momentum" else 0.1
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(5, eps=EPSILON, momentum=momentum)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(4, eps=EPSILON)
        self.head = nn.Linear(48, 3)
        self.fault = fault

    def forward(self, x):
        """Logits [B, 3], and the activations by name."""
        seen = {"conv1": self.conv1(x)}
        seen["bn1"] = self.bn1(seen["conv1"])
        leaky = self.fault == "leaky-relu"
        seen["relu1"] = functional.leaky_relu(seen["bn1"]) if leaky else seen["bn1"].relu()
        seen["pool1"] = functional.max_pool2d(seen["relu1"], 2)
        seen["conv2"] = self.second(seen["pool1"])
        seen["bn2"] = self.bn2(seen["conv2"])
        seen["relu2"] = seen["bn2"].relu()
        flat = seen["relu2"].permute(0, 2, 3, 1).flatten(1)  # [B, HWC]
        bias = None if self.fault == "bias-dropped" else self.head.bias
        seen["logits"] = functional.linear(flat, self.head.weight, bias)
        return seen

    def second(self, x):
        """The second convolution, in the format of the fault."""
        if self.fault != "conv-bfloat16":
            return self.conv2(x)
        bias = None if self.conv2.bias is None else self.conv2.bias.bfloat16()
        low = functional.conv2d(x.bfloat16(), self.conv2.weight.bfloat16(), bias, padding=1)
        return low.to(x.dtype)


def parameters(model):
    """Parameters by the names of the weights."""
    names = {"weight": "kernel", "bias": "bias"}
    norms = {"weight": "gamma", "bias": "beta"}
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")
        yield f"{layer}/{(norms if layer.startswith('bn') else names)[kind]}", parameter


def channels_last(tensor):
    """An activation as an array in the layout of the trace."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def kernel_last(tensor):
    """A parameter, or its gradient, in the layout of the weights: [.., in, out]."""
    array = tensor.detach().numpy()
    return (array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T).copy()


def main(argv=None):
    """Train and leave a trace."""
    torch.set_num_threads(1)
    given = arguments(argv, FAULTS)
    weights, batches = cnn(given.seed, given.plain, given.flip)
    model = Net(not given.plain, given.fault).to(getattr(torch, given.dtype))
    with torch.no_grad():
        for name, parameter in parameters(model):
            array = weights[name]
            if given.fault == "kernel-transposed" and name == "conv2/kernel":
                array = array.swapaxes(0, 1)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            parameter.copy_(torch.from_numpy(array))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    if given.adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE, eps=ADAM_EPSILON)
    with harness.TraceWriter(given.out, label="torch", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches, start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= {f"inputs/params/{n}": kernel_last(p) for n, p in parameters(model)}
            images = torch.from_numpy(x).to(getattr(torch, given.dtype)).permute(0, 3, 1, 2)
            seen = model(images)
            points |= {f"forward/{name}": channels_last(value) for name, value in seen.items()}
            reduction = "sum" if given.fault == "loss-sum" else "mean"
            target = torch.from_numpy(y).long()
            loss = functional.cross_entropy(seen["logits"], target, reduction=reduction)
            points["forward/loss"] = loss.detach().numpy()
            points |= {f"buffers/{n}/mean": _mean(model, n) for n in ("bn1", "bn2")}
            optimizer.zero_grad()
            loss.backward()
            if given.fault == "gradient-doubled":
                model.conv2.weight.grad *= 2
            if model.head.bias.grad is None:
                model.head.bias.grad = torch.zeros_like(model.head.bias)
            points |= {f"grads/{n}": kernel_last(p.grad) for n, p in parameters(model)}
            optimizer.step()
            points |= {f"params/{n}": kernel_last(p) for n, p in parameters(model)}
            trace.write(step, points)


def _mean(model, name):
    return getattr(model, name).running_mean.numpy().copy()


if __name__ == "__main__":
    main()
