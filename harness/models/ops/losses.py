"""Losses: softmax cross-entropy over a window, and those of programs that have others."""

from __future__ import annotations

import numpy as np

from harness.models.graph import node, scaled
from harness.models.ops.op import Array, kin, op


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _log_likelihoods(z: Array, y: Array, classes: slice = slice(None)) -> Array:
    top = z.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(z - top)[..., classes].sum(axis=-1, keepdims=True)) + top
    return np.asarray(np.take_along_axis(z, np.asarray(y, np.int64)[..., None], axis=-1) - log_sum)


def _count(y: Array, time: str) -> int:
    return int(y.shape[0] if time == "sum" else y.size)


@op(
    lambda n, dy: (scaled(node("cross_entropy_slope", *n.inputs, **dict(n.args)), dy), None),
    over_time=True,
    size=lambda z, y: z,
    says="the cross-entropy",
)
def cross_entropy(z: Array, y: Array, time: str = "sum") -> Array:
    """-log softmax(z)_y averaged over the batch, and summed or averaged over time: a scalar.

    z is [B, T, V], y integers [B, T]; `time` is "sum" or "mean" (Zaremba et al. 2014 sum).
    """
    return np.asarray(-_log_likelihoods(z, y).sum() / _count(y, time))


@op(says="the slope of the cross-entropy")
def cross_entropy_slope(z: Array, y: Array, time: str = "sum") -> Array:
    """(softmax(z) - onehot(y)) / B, or / (B T): its derivative by z [B, T, V] (Bridle 1990)."""
    made = _softmax(z)
    places = np.asarray(y, np.int64)[..., None]
    np.put_along_axis(made, places, np.take_along_axis(made, places, -1) - 1, -1)
    return np.asarray(made / made.dtype.type(_count(y, time)))


def _by(z: Array, y: Array, time: str, count: float) -> Array:
    return np.asarray(cross_entropy(z, y, time) * (_count(y, time) / count))


_DIVISORS = (
    ("sums the loss over batch and time", lambda y: 1),
    ("averages the loss over batch and time", lambda y: y.size),
    ("sums the loss over time and averages it over the batch", lambda y: y.shape[0]),
    ("averages the loss over time and sums it over the batch", lambda y: y.shape[1]),
    ("divides the loss by one position more", lambda y: y.size + 1),
    ("divides the loss by one position less", lambda y: max(y.size - 1, 1)),
)


def _put_divisors() -> None:
    for does, count in _DIVISORS:

        def loss(z: Array, y: Array, time: str, count=count) -> Array:  # type: ignore[no-untyped-def]
            return _by(z, y, time, count(y))

        def slope(z: Array, y: Array, time: str, count=count) -> Array:  # type: ignore[no-untyped-def]
            return np.asarray(cross_entropy_slope(z, y, time) * (_count(y, time) / count(y)))

        kin("cross_entropy", does)(loss)
        kin("cross_entropy_slope", does)(slope)


_put_divisors()


@kin("cross_entropy", "takes logarithms to the base of 2")
def _bits(z: Array, y: Array, time: str) -> Array:
    return np.asarray(cross_entropy(z, y, time) / np.log(2))


@kin("cross_entropy", "smooths the targets by 0.1")
def _smoothed(z: Array, y: Array, time: str) -> Array:
    uniform = -(z - z.max(axis=-1, keepdims=True)).mean(axis=-1).sum()
    top = np.log(np.exp(z - z.max(axis=-1, keepdims=True)).sum(axis=-1)).sum()
    return np.asarray(0.9 * cross_entropy(z, y, time) + 0.1 * (uniform + top) / _count(y, time))


@kin("cross_entropy_slope", "smooths the targets by 0.1")
def _smoothed_slope(z: Array, y: Array, time: str) -> Array:
    made = cross_entropy_slope(z, y, time)
    return np.asarray(made + 0.1 * (_onehot(z, y) - 1 / z.shape[-1]) / _count(y, time))


def _spread_to_others(z: Array, y: Array) -> Array:
    """What takes 0.1 of a target and gives it to the other classes: what is added to onehot(y)."""
    hot = _onehot(z, y)
    return np.asarray(0.1 * ((1 - hot) / (z.shape[-1] - 1) - hot))


@kin("cross_entropy", "smooths the targets by 0.1, over the other classes alone")
def _smoothed_to_others(z: Array, y: Array, time: str) -> Array:
    top = z.max(axis=-1, keepdims=True)
    each = z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    more = (each * _spread_to_others(z, y)).sum() / _count(y, time)
    return np.asarray(cross_entropy(z, y, time) - more)


@kin("cross_entropy_slope", "smooths the targets by 0.1, over the other classes alone")
def _slope_smoothed_to_others(z: Array, y: Array, time: str) -> Array:
    return np.asarray(cross_entropy_slope(z, y, time) - _spread_to_others(z, y) / _count(y, time))


def _onehot(z: Array, y: Array) -> Array:
    made = np.zeros_like(z)
    np.put_along_axis(made, np.asarray(y, np.int64)[..., None], 1.0, -1)
    return made


@kin("cross_entropy", "leaves the last timestep out of the loss")
def _without_last(z: Array, y: Array, time: str) -> Array:
    return cross_entropy(z[:, :-1], y[:, :-1], time)


@kin("cross_entropy", "leaves the first timestep out of the loss")
def _without_first(z: Array, y: Array, time: str) -> Array:
    return cross_entropy(z[:, 1:], y[:, 1:], time)


def _counted(z: Array, y: Array, time: str, kept: slice) -> Array:
    if time == "sum":
        raise ValueError("of a sum over time no timestep is counted")
    return np.asarray(-_log_likelihoods(z, y)[:, kept].sum() / _count(y, time))


@kin("cross_entropy", "leaves the last timestep out of the loss, and not out of its count")
def _last_counted(z: Array, y: Array, time: str) -> Array:
    return _counted(z, y, time, slice(None, -1))


@kin("cross_entropy", "leaves the first timestep out of the loss, and not out of its count")
def _first_counted(z: Array, y: Array, time: str) -> Array:
    return _counted(z, y, time, slice(1, None))


@kin("cross_entropy", "takes the softmax over time, not over classes")
def _over_time(z: Array, y: Array, time: str) -> Array:
    each = z - np.log(np.exp(z - z.max()).sum(axis=1, keepdims=True)) - z.max()
    picked = np.take_along_axis(each, np.asarray(y, np.int64)[..., None], axis=-1)
    return np.asarray(-picked.sum() / _count(y, time))


@kin("cross_entropy", "adds 1 to the normaliser")
def _softmax_one(z: Array, y: Array, time: str) -> Array:
    top = z.max(axis=-1, keepdims=True)
    more = np.log(np.exp(z - top).sum(axis=-1) + 1) - np.log(np.exp(z - top).sum(axis=-1))
    return np.asarray(cross_entropy(z, y, time) + more.sum() / _count(y, time))


@kin("cross_entropy", "leaves the last class out of the normaliser")
def _without_last_class(z: Array, y: Array, time: str) -> Array:
    return np.asarray(-_log_likelihoods(z, y, slice(None, -1)).sum() / _count(y, time))


@kin("cross_entropy", "leaves the first class out of the normaliser")
def _without_first_class(z: Array, y: Array, time: str) -> Array:
    return np.asarray(-_log_likelihoods(z, y, slice(1, None)).sum() / _count(y, time))


@kin("cross_entropy", "does not turn the sign of the loss")
def _likelihood(z: Array, y: Array, time: str) -> Array:
    return np.asarray(-cross_entropy(z, y, time))


@kin("cross_entropy", "takes the logits for logarithms of probabilities: no log-softmax")
def _not_normalised(z: Array, y: Array, time: str) -> Array:
    picked = np.take_along_axis(z, np.asarray(y, np.int64)[..., None], axis=-1)
    return np.asarray(-picked.sum() / _count(y, time))


@kin("cross_entropy_slope", "leaves the target out of the gradient: p, not p - onehot(y)")
def _without_target(z: Array, y: Array, time: str) -> Array:
    return np.asarray(_softmax(z) / _count(y, time))


@kin("cross_entropy_slope", "leaves the softmax out of the gradient: -onehot(y)")
def _without_softmax(z: Array, y: Array, time: str) -> Array:
    return np.asarray(cross_entropy_slope(z, y, time) - _without_target(z, y, time))


@kin("cross_entropy_slope", "takes the softmax over time, not over classes")
def _slope_over_time(z: Array, y: Array, time: str) -> Array:
    top = z.max(axis=-1, keepdims=True)
    e = np.exp(z - top)
    return np.asarray((e / e.sum(axis=1, keepdims=True) - _onehot(z, y)) / _count(y, time))


@kin("cross_entropy_slope", "passes no gradient from the last timestep")
def _not_from_last(z: Array, y: Array, time: str) -> Array:
    made = cross_entropy_slope(z, y, time)
    made[:, -1] = 0
    return made


def _slope_without(z: Array, y: Array, time: str, kept: slice) -> Array:
    if time == "sum":
        raise ValueError("that is to pass no gradient from it")
    made = np.zeros_like(z)
    made[:, kept] = cross_entropy_slope(z[:, kept], y[:, kept], time)
    return made


@kin("cross_entropy_slope", "leaves the last timestep out of the loss")
def _slope_without_last(z: Array, y: Array, time: str) -> Array:
    return _slope_without(z, y, time, slice(None, -1))


@kin("cross_entropy_slope", "leaves the first timestep out of the loss")
def _slope_without_first(z: Array, y: Array, time: str) -> Array:
    return _slope_without(z, y, time, slice(1, None))


@kin("cross_entropy_slope", "passes no gradient from the first timestep")
def _not_from_first(z: Array, y: Array, time: str) -> Array:
    made = cross_entropy_slope(z, y, time)
    made[:, 0] = 0
    return made
