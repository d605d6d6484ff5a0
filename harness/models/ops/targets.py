"""Losses of programs beside the softmax cross-entropy: each a mean or a sum of terms.

`reduce` says which: "mean" over all elements, "sum", or "batch", the sum over all but the first
axis and the mean over it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.models.graph import Node, node, scaled
from harness.models.ops.basic import sigmoid
from harness.models.ops.op import Array, kin, op

Formula = Callable[..., Array]


def _count(shape: tuple[int, ...], reduce: str) -> int:
    """What a sum of terms of this shape is divided by."""
    if reduce not in ("mean", "sum", "batch"):
        raise ValueError(f"reduce is {reduce!r}, not mean, sum or batch")
    counts = {"mean": int(np.prod(shape)), "sum": 1, "batch": shape[0] if shape else 1}
    return counts[reduce]


def _squares(x: Array, y: Array) -> Array:
    return np.asarray((x - y) * (x - y))


def _square_slopes(x: Array, y: Array) -> Array:
    return np.asarray(2 * (x - y))


def _absolutes(x: Array, y: Array) -> Array:
    return np.asarray(np.abs(x - y))


def _absolute_slopes(x: Array, y: Array) -> Array:
    return np.asarray(np.sign(x - y))


def _logistic(z: Array, y: Array) -> Array:
    return np.asarray(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))


def _logistic_slopes(z: Array, y: Array) -> Array:
    return np.asarray(sigmoid(z) - y)


def _unlikely(p: Array, y: Array) -> Array:
    return -np.take_along_axis(p, np.asarray(y, np.int64)[..., None], axis=-1)[..., 0]


def _unlikely_slopes(p: Array, y: Array) -> Array:
    made = np.zeros_like(p)
    np.put_along_axis(made, np.asarray(y, np.int64)[..., None], -1, axis=-1)
    return made


def _rule(name: str) -> Callable[[Node, Node], tuple[Node | None, ...]]:
    return lambda n, dy: (scaled(node(f"{name}_slope", *n.inputs, **dict(n.args)), dy), None)


def _put(name: str, terms: Formula, slopes: Formula, doc: str, says: str) -> None:
    """A loss and its slope, and what programs make of them: other means, and single terms."""

    def loss(x: Array, y: Array, reduce: str = "mean") -> Array:
        each = terms(x, y)
        return np.asarray(each.sum() / each.dtype.type(_count(each.shape, reduce)))

    def slope(x: Array, y: Array, reduce: str = "mean") -> Array:
        return np.asarray(slopes(x, y) / x.dtype.type(_count(y.shape, reduce)))

    loss.__doc__, slope.__doc__ = doc, f"The derivative of `{name}` by its first operand."
    size = (lambda x, y: x) if name == "nll_loss" else None
    op(_rule(name), size=size, over_time=True, says=says, name=name)(loss)
    op(says=f"the slope of {says}", cancels=name != "nll_loss", name=f"{name}_slope")(slope)
    words = {
        "sum": "sums the loss over all elements",
        "mean": "averages the loss over all elements",
        "batch": "averages the loss over the batch and sums it over all else",
    }
    for formula, of in ((loss, name), (slope, f"{name}_slope")):
        for other, does in words.items():

            def reduced(
                x: Array, y: Array, reduce: str = "mean", f: Formula = formula, other: str = other
            ) -> Array:
                if other == reduce:
                    raise ValueError("reduced that way already")
                return f(x, y, other)

            kin(of, does)(reduced)
        for factor, does in ((0.5, "halves the loss"), (2.0, "doubles the loss")):
            kin(of, does)(
                lambda x, y, reduce="mean", f=formula, by=factor: np.asarray(f(x, y, reduce) * by)
            )
        if name != "nll_loss":
            continue
        kin(of, "does not turn the sign of the loss")(
            lambda x, y, reduce="mean", f=formula: np.asarray(-f(x, y, reduce))
        )


_put(
    "squared_error",
    _squares,
    _square_slopes,
    "The mean of (x - y)^2; y, the targets, are of the shape of x.",
    "the squared error",
)
_put(
    "absolute_error",
    _absolutes,
    _absolute_slopes,
    "The mean of |x - y|.",
    "the absolute error",
)
_put(
    "logistic_loss",
    _logistic,
    _logistic_slopes,
    "The binary cross-entropy of logits z: the mean of max(z, 0) - z y + log(1 + exp(-|z|)).",
    "the binary cross-entropy",
)
_put(
    "nll_loss",
    _unlikely,
    _unlikely_slopes,
    "The mean of -p_y, of log-probabilities p [.., V] and integers y [..] (torch's nll_loss).",
    "the negative log-likelihood",
)


@kin("squared_error", "takes the root of the mean square")
def _rooted(x: Array, y: Array, reduce: str = "mean") -> Array:
    return np.asarray(np.sqrt(_squares(x, y).sum() / _count(x.shape, reduce)))


@kin("squared_error", "takes the absolute error, not its square")
def _absolute_for_square(x: Array, y: Array, reduce: str = "mean") -> Array:
    return np.asarray(_absolutes(x, y).sum() / _count(x.shape, reduce))


@kin("absolute_error", "takes the square of the error")
def _square_for_absolute(x: Array, y: Array, reduce: str = "mean") -> Array:
    return np.asarray(_squares(x, y).sum() / _count(x.shape, reduce))


@kin("logistic_loss", "takes logits for probabilities already")
def _no_sigmoid(z: Array, y: Array, reduce: str = "mean") -> Array:
    p = np.clip(z, 1e-7, 1 - 1e-7)
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    return np.asarray(each.sum() / _count(y.shape, reduce))


@kin("logistic_loss", "takes the sigmoid twice")
def _two_sigmoids(z: Array, y: Array, reduce: str = "mean") -> Array:
    return np.asarray(_logistic(sigmoid(z), y).sum() / _count(y.shape, reduce))


@kin("logistic_loss_slope", "leaves the sigmoid out of the gradient: z - y")
def _slope_without_sigmoid(z: Array, y: Array, reduce: str = "mean") -> Array:
    return np.asarray((z - y) / _count(y.shape, reduce))
