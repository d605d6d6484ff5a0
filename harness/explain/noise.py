"""Tensors that are zero but for rounding, and what such numbers are carried into.

The gradient of a convolution's bias before a batch normalization is zero: what is left of it, 1e-17
in float64 and 1e-9 in float32, is rounding, and nothing about it has to agree. An optimizer that
divides by the size of its gradients (Adam) makes a full step of it, in either direction: the bias
then differs by a learning rate in both precisions, and so do the convolution's outputs, though no
loss does. All of that is rounding, and is passed over; what is not made of it is not.
"""

from __future__ import annotations

import re

import numpy as np

from harness.explain.case import Array, Side
from harness.explain.evidence import Pair

SMALL = 1e-4  # of its float32 numbers: a float64 tensor that is smaller is zero but for rounding
ALIKE = 1e-3  # relative: what a difference may have beside the one it is said to come from
MOST = 4096  # elements of a parameter whose differences are looked for elsewhere

# What a name says of a parameter's part in a step, and not which parameter it is.
ROLES = {
    *("grad", "grads", "gradient", "gradients", "update", "clipped", "param", "params", "weights"),
    *("optimizer", "slots", "m", "v", "velocity", "momentum", "square", "accumulator", "exp_avg"),
    *("exp_avg_sq", "parameters", "inputs"),
}


def parameter_of(name: str) -> tuple[str, ...]:
    """The parts of a tensor's name that say whose it is."""
    return tuple(part for part in re.split(r"[/.:]", name) if part not in ROLES)


class Noise:
    """The tensors of both pairs that are zero but for rounding, as far as the walk has come."""

    def __init__(self, narrow: Pair, wide: Pair) -> None:
        """Nothing is known yet; `narrow` are the float32 runs, `wide` the float64 ones."""
        self.narrow, self.wide = narrow, wide
        self._parameters: set[tuple[str, ...]] = set()
        self._moved: dict[str, Array] = {}  # a - b of what noise has moved, in float64

    def kind(self, step: int, tensor: str) -> str | None:
        """What a tensor that differs is by itself or made of, in words; None if it is neither."""
        if self._shrinks(step, tensor):
            self._parameters.add(parameter_of(tensor))
            return "zero but for rounding, on both sides"
        if parameter_of(tensor) in self._parameters:
            self._keep(step, tensor)
            return "moved by a gradient that is zero but for rounding"
        if self._carries(step, tensor):
            self._keep(step, tensor)
            return "apart by what such a gradient has moved, and by nothing else"
        return None

    def _shrinks(self, step: int, tensor: str) -> bool:
        """Whether the numbers of both sides shrink with epsilon, as those of a true zero do."""
        sides: tuple[Side, Side] = ("a", "b")
        for side in sides:
            low, high = (pair.read(side, step, tensor) for pair in (self.narrow, self.wide))
            if low is None or high is None or low.dtype != np.float32 or high.dtype != np.float64:
                return False
            if not np.abs(high).max(initial=0.0) <= SMALL * np.abs(low).max(initial=0.0):
                return False
        return True

    def _keep(self, step: int, tensor: str) -> None:
        """Remember by how much a small tensor differs: it may be carried on."""
        a, b = self.wide.both(step, tensor)
        if a is not None and b is not None and 1 < a.size <= MOST and a.ndim == 1:
            self._moved[tensor] = a - b

    def _carries(self, step: int, tensor: str) -> bool:
        """Whether a tensor differs by a multiple of what was moved, along one axis, and no more."""
        if not self._moved:
            return False
        a, b = self.wide.both(step, tensor)
        if a is None or b is None or a.dtype.kind != "f" or not a.ndim:
            return False
        gap = np.asarray(a, np.float64) - b
        size = float(np.abs(gap).max(initial=0.0))
        if not 0 < size < np.inf:
            return False
        known = self._moved.get(tensor)
        for axis, width in enumerate(gap.shape):
            along = gap.mean(axis=tuple(k for k in range(gap.ndim) if k != axis))
            shape = [1] * gap.ndim
            shape[axis] = width
            if np.abs(gap - along.reshape(shape)).max() > ALIKE * size:
                continue
            for moved in self._moved.values():
                if moved.shape == along.shape and _spanned(along, moved, known):
                    return True
        return False


def _spanned(along: Array, moved: Array, before: Array | None) -> bool:
    """Whether a difference is made of another one, and of its own at the step before."""
    basis = [moved] if before is None or before is moved else [moved, before]
    if len(basis) >= len(along):
        return False
    matrix = np.stack(basis, axis=1)
    share = np.linalg.lstsq(matrix, along, rcond=None)[0]
    left = float(np.abs(along - matrix @ share).max())
    return left <= ALIKE * float(np.abs(along).max())
