"""What the scripts of either framework are given: arguments, weights, batches. NumPy alone.

Weights are drawn in float32 also for float64 runs, kernels are [.., in, out], images [B, H, W, C].
"""

import argparse
from pathlib import Path

import numpy as np

STEPS, RATE, EPSILON = 20, 0.1, 1e-5
# So small that nothing depends on where a framework adds it, and noise moves weights as much.
ADAM_RATE, ADAM_EPSILON = 0.003, 1e-30


def arguments(argv, faults):
    """The command line of a script that knows `faults`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--out", type=Path, required=True, help="the trace")
    parser.add_argument("--seed", type=int, default=1, help="of weights and batches")
    parser.add_argument("--fault", choices=faults, help="what this script does wrong")
    parser.add_argument("--plain", action="store_true", help="no parameter whose gradient is zero")
    parser.add_argument("--adam", action="store_true", help="of the CNN: noise moves weights")
    parser.add_argument(
        "--flip", choices=["float32", "float64"], help="ReLUs at the mercy of rounding, step 1"
    )
    return parser.parse_args(argv)


def cnn(seed, plain, flip):
    """Weights by name, and the batches (x, y) of all steps.

    Under `flip` each channel of the first normalization has one element, the greatest of its pool,
    that is zero at step 1 but for rounding: of float32 alone, or of either precision.
    """
    draw = np.random.default_rng(seed)
    weights = {}
    for k, (inward, outward) in enumerate([(2, 5), (5, 4)], start=1):
        weights[f"conv{k}/kernel"] = draw.normal(0, 0.3, (3, 3, inward, outward))
        if not plain:
            weights[f"conv{k}/bias"] = draw.normal(0, 0.3, outward)
        weights[f"bn{k}/gamma"] = draw.uniform(0.7, 1.3, outward)
        weights[f"bn{k}/beta"] = draw.normal(0, 0.2, outward)
    weights["head/kernel"] = draw.normal(0, 0.3, (48, 3))
    weights["head/bias"] = draw.normal(0, 0.3, 3)
    x = draw.normal(0, 1, (STEPS, 6, 8, 6, 2)).astype(np.float32)  # [steps, B, H, W, C]
    y = draw.integers(0, 3, (STEPS, 6)).astype(np.int32)
    weights = _narrow(weights)
    if flip:
        beta = _flipping(x[0], weights["conv1/kernel"], weights["bn1/gamma"])
        weights["bn1/beta"] = beta.astype(flip)
    return weights, list(zip(x, y, strict=True))


def _flipping(x, kernel, gamma):
    """Beta [C] for which an element of each channel that its pool picks is zero, in float64."""
    padded = np.pad(np.float64(x), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    z = np.einsum("bhwcij,ijco->bhwo", windows, np.float64(kernel))
    z = (z - z.mean((0, 1, 2))) * (gamma / np.sqrt(z.var((0, 1, 2)) + EPSILON))
    pooled = z.reshape(6, 4, 2, 3, 2, 5).max((2, 4)).reshape(-1, 5)
    return -np.sort(pooled, axis=0)[len(pooled) // 3]


def transformer(seed, plain):
    """Weights by name, and the batches (x, y) of all steps; two heads.

    Plain, the scale of attention is 0.5, which every format holds, and attention has no biases.
    """
    draw, width = np.random.default_rng(seed), 8 if plain else 6
    weights = {
        "tokens/table": draw.normal(0, 0.5, (11, width)),
        "positions/table": draw.normal(0, 0.5, (7, width)),
    }
    for k in range(2):
        for name in ("query", "key", "value", "output"):
            weights[f"block{k}/{name}/kernel"] = draw.normal(0, 0.4, (width, width))
            if not plain:
                weights[f"block{k}/{name}/bias"] = draw.normal(0, 0.3, width)
        for name, inward, outward in (("wide", width, 13), ("narrow", 13, width)):
            weights[f"block{k}/{name}/kernel"] = draw.normal(0, 0.4, (inward, outward))
            weights[f"block{k}/{name}/bias"] = draw.normal(0, 0.3, outward)
    for norm in ("block0/norm1", "block0/norm2", "block1/norm1", "block1/norm2", "norm"):
        weights[f"{norm}/gamma"] = draw.uniform(0.7, 1.3, width)
        weights[f"{norm}/beta"] = draw.normal(0, 0.2, width)
    weights["head/kernel"] = draw.normal(0, 0.4, (width, 11))
    weights["head/bias"] = draw.normal(0, 0.3, 11)
    tokens = draw.integers(0, 9, (STEPS, 3, 8)).astype(np.int32)  # [steps, B, T + 1]
    return _narrow(weights), [(window[:, :-1], window[:, 1:]) for window in tokens]


def _narrow(weights):
    return {name: array.astype(np.float32) for name, array in weights.items()}
