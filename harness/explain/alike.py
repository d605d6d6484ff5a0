"""Whether two edits are one: they make the same of other numbers too."""

from __future__ import annotations

import numpy as np

from harness.explain.case import Array
from harness.explain.trial import FAILURES, Fit, Trial, largest, values_of
from harness.models.graph import rebuilt

SCALES = (1.0, 30.0, 1e4, 0.03)  # sizes at which two edits are told apart


def told_apart(trial: Trial, fits: list[Fit]) -> list[Fit]:
    """The fits without those that say of all numbers what a shorter one says."""
    kept: list[Fit] = []
    for fit in fits[:40]:
        if not any(one_claim(trial, fit, other) for other in kept):
            kept.append(fit)
    return kept


def one_claim(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether two fits say the same of a side: in the same words, or of all numbers.

    An epsilon of 1e-6 is the constant and, where 1e-3 was meant, its square: to a reader it is one.
    """
    said = one.side == two.side and one.edit.words == two.edit.words
    return said or same_everywhere(trial, one, two)


def same_everywhere(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether two edits are one and the same function: they agree on other numbers too."""
    if one.side != two.side:
        return _mirrored(trial, one, two)
    for seed, size in enumerate(SCALES):
        x, y = (_elsewhere(trial, fit, seed, size) for fit in (one, two))
        if x is None or y is None or x.shape != y.shape:
            return False
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(all="ignore"):
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            if "moved" in (one.edit.value.op, two.edit.value.op):
                same |= np.isnan(x) | np.isnan(y)
            if not np.all(same | (np.abs(x - y) <= 1e-9 * (np.abs(x) + largest(y)))):
                return False
    return True


def _mirrored(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether both say what one tensor is of the other: from either side it is one statement."""
    if not one.base.op == two.base.op == "other":
        return False
    if one.edit.name == two.edit.name:
        return True
    back = rebuilt(two.edit.value, lambda x: one.edit.value if x.op == "other" else None)
    there_and_back = one._replace(edit=one.edit._replace(value=back))
    return same_everywhere(
        trial, there_and_back, one._replace(edit=one.edit._replace(value=one.base))
    )


def _elsewhere(trial: Trial, fit: Fit, seed: int, size: float) -> Array | None:
    """The value of an edit at other numbers of the same kind."""
    case, side = trial.case, fit.side

    def change(name: str, x: Array) -> Array:
        if x.dtype.kind != "f":
            return x
        noise = np.random.default_rng([seed, *map(ord, name)])
        if name.startswith("setting "):
            return np.asarray(x * noise.uniform(0.8, 0.95, x.shape))
        if name.removeprefix("inputs/").startswith("params/") and not x.any():
            x = np.ones_like(x)  # a bias is zero at the first step, and at no other
        with np.errstate(all="ignore"):
            return np.asarray(x * size * noise.uniform(0.5, 1.5, x.shape))

    try:
        return np.asarray(values_of(case, side, change).value(fit.edit.value))
    except FAILURES:
        return None
