"""Running statistics of a batch normalisation, as torch and as Keras keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.models.ops.basic import largest
from harness.models.ops.normalize import centred, others, variance
from harness.models.ops.op import Array, kin, op

N = Any  # a number: a Python float, or an array of no axes


def _old_and_new(old: float | None, x: float | None, *_: Any) -> float | None:
    return largest(old, x)


def _spread_of_old(old: float | None, x: float | None, *_: Any) -> float | None:
    return largest(old, x * x if x is not None else None)


def _mean(x: Array, axis: int) -> Array:
    return np.asarray(x.mean(axis=others(x, axis)))


def _biased(x: Array, axis: int) -> Array:
    axes = others(x, axis)
    return np.asarray(variance(centred(x, axes), axes).reshape(-1))


def _unbiased(x: Array, axis: int) -> Array:
    axes = others(x, axis)
    return np.asarray(variance(centred(x, axes), axes, 1).reshape(-1))


@op(size=_old_and_new, over_time=True, cancels=True, says="the running mean")
def running_mean(old: Array, x: Array, momentum: N, axis: int = 1) -> Array:
    """(1 - momentum) old + momentum mean(x) for each channel: torch's, whose default is 0.1."""
    return np.asarray((1 - momentum) * old + momentum * _mean(x, axis))


@op(size=_old_and_new, over_time=True, cancels=True, says="the running mean")
def running_mean_keras(old: Array, x: Array, momentum: N, axis: int = -1) -> Array:
    """momentum old + (1 - momentum) mean(x) for each channel: Keras', whose default is 0.99."""
    return np.asarray(momentum * old + (1 - momentum) * _mean(x, axis))


@op(size=_spread_of_old, over_time=True, says="the running variance")
def running_variance(old: Array, x: Array, momentum: N, axis: int = 1) -> Array:
    """(1 - momentum) old + momentum variance(x), divided by n - 1: torch's."""
    return np.asarray((1 - momentum) * old + momentum * _unbiased(x, axis))


@op(size=_spread_of_old, over_time=True, says="the running variance")
def running_variance_keras(old: Array, x: Array, momentum: N, axis: int = -1) -> Array:
    """momentum old + (1 - momentum) variance(x), divided by n: Keras'."""
    return np.asarray(momentum * old + (1 - momentum) * _biased(x, axis))


def _put_running() -> None:
    """What programs make of running statistics."""
    statistics: dict[str, tuple[tuple[str, Callable[[Array, int], Array]], ...]] = {
        "running_mean": (("", _mean),),
        "running_variance": (
            ("", _unbiased),
            ("divides the variance of the batch by n, not n - 1 (as Keras does)", _biased),
        ),
        "running_mean_keras": (("", _mean),),
        "running_variance_keras": (
            ("", _biased),
            ("divides the variance of the batch by n - 1, not n (as torch does)", _unbiased),
        ),
    }
    rules: dict[str, Callable[[Array, Array, N], Array]] = {
        "swaps the shares of the old and the new value": lambda o, n, new: new * o + (1 - new) * n,
        "does not update it": lambda o, n, new: o,
        "keeps the new value alone": lambda o, n, new: n,
        "adds the new value to the old one, which it does not scale down": (
            lambda o, n, new: o + new * n
        ),
    }
    for name, members in statistics.items():
        keras = name.endswith("keras")
        for words, of in members:

            def other(
                old: Array,
                x: Array,
                momentum: N,
                axis: int = -1 if keras else 1,
                of: Any = of,
                keras: bool = keras,
                rule: Any = None,
            ) -> Array:
                share = 1 - momentum if keras else momentum
                if rule:
                    return np.asarray(rule(old, of(x, axis), share))
                return np.asarray((1 - share) * old + share * of(x, axis))

            if words:
                kin(name, words)(other)
                continue
            for does, rule in rules.items():
                kin(name, does)(lambda *x, f=other, rule=rule, **args: f(*x, rule=rule, **args))


_put_running()
