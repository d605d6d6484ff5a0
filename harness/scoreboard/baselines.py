"""What a person would use instead: fixed tolerances on the losses, or on every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from harness.compare.metrics import is_close
from harness.trace import Trace

# The defaults of torch.testing.assert_close, rtol and atol (torch/testing/_comparison.py).
TORCH = {"float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}
NUMPY = {"float32": (1e-5, 1e-8), "float64": (1e-5, 1e-8)}  # those of numpy.allclose


class Baseline(NamedTuple):
    """A rule with fixed tolerances by dtype, on all tensors or on the loss alone."""

    tolerances: Mapping[str, tuple[float, float]]
    loss_only: bool = False


BASELINES: dict[str, Baseline] = {
    "numpy.allclose on the losses": Baseline(NUMPY, loss_only=True),
    "numpy.allclose on every tensor": Baseline(NUMPY),
    "torch.testing.assert_close on every tensor": Baseline(TORCH),
}


def first_failure(baseline: Baseline, a: Trace, b: Trace) -> tuple[int, str] | None:
    """The first step and tensor, in execution order, that a baseline does not let pass.

    Integers and booleans must be equal, as they must in all three.
    """
    for number in (step for step in b.steps if step in a.steps):
        x, y = a.step(number), b.step(number)
        others = {entry.name: entry for entry in x.entries}
        for entry in y.entries:
            if baseline.loss_only and entry.name != "forward/loss":
                continue
            other = others.get(entry.name)
            if other is None or (other.dtype, other.shape) != (entry.dtype, entry.shape):
                return number, entry.name
            if other.hash == entry.hash and not entry.nan:
                continue
            rtol, atol = baseline.tolerances.get(entry.dtype, (0.0, 0.0))
            with np.errstate(all="ignore"):
                close = is_close(x.read(other), y.read(entry), rtol, atol)
            if entry.nan or not close.all():  # NaN equals nothing, by default, in all three
                return number, entry.name
    return None
