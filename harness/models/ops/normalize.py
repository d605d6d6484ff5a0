"""Normalisation: over a layer, over a batch, with running statistics, and to unit length.

gain and offset are the weights that programs name weight and bias, or gamma and beta.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.basic import largest
from harness.models.ops.op import Array, kin, op, rows

N = Any  # a number: a Python float, or an array of no axes
# Of the centred x, the axes that statistics go over, and epsilon: what x is divided by.
Spread = Callable[[Array, Any, N], Array]


def _affine_size(x: float | None, gain: float | None, offset: float | None, *_: Any) -> Any:
    """What is normalised is about 1: what comes of it is as large as gain and offset."""
    return largest(gain, offset)


def variance(d: Array, axes: Any, freedom: int = 0) -> Array:
    """The mean square of centred numbers, `freedom` taken off their count."""
    size = np.asarray(d.shape)[np.asarray(axes)].prod()
    return np.asarray((d * d).sum(axis=axes, keepdims=True) / float(size - freedom))


def _spread(d: Array, axes: Any, epsilon: N) -> Array:
    return np.asarray(np.sqrt(variance(d, axes) + epsilon))


def _spread_beside(d: Array, axes: Any, epsilon: N) -> Array:
    return np.asarray(np.sqrt(variance(d, axes)) + epsilon)


def _spread_unbiased(d: Array, axes: Any, epsilon: N) -> Array:
    return np.asarray(np.sqrt(variance(d, axes, 1) + epsilon))


def _spread_unrooted(d: Array, axes: Any, epsilon: N) -> Array:
    return np.asarray(variance(d, axes) + epsilon)


def _spread_absolute(d: Array, axes: Any, epsilon: N) -> Array:
    return np.asarray(np.abs(d).mean(axis=axes, keepdims=True) + epsilon)


SPREADS: dict[str, Spread] = {
    "adds epsilon beside the root of the variance, not inside it": _spread_beside,
    "divides by n - 1 in the variance, not by n": _spread_unbiased,
    "divides by the variance, not by its root": _spread_unrooted,
    "divides by the mean absolute deviation": _spread_absolute,
    "divides by nothing": lambda d, axes, epsilon: np.ones_like(d),
}


def centred(x: Array, axes: Any) -> Array:
    """x less its mean over these axes."""
    return np.asarray(x - x.mean(axis=axes, keepdims=True))


def _normal(x: Array, axes: Any, epsilon: N, spread: Spread = _spread) -> Array:
    d = centred(x, axes)
    return np.asarray(d / spread(d, axes, epsilon))


def _back(g: Array, x: Array, axes: Any, epsilon: N, spread: Spread = _spread) -> Array:
    """The gradient by x of what `_normal` makes, given that of its result: g.

    (g - mean(g) - n mean(g n)) / spread (Ioffe and Szegedy 2015, section 3, summed up).
    """
    d = centred(x, axes)
    s = spread(d, axes, epsilon)
    n = d / s
    inner = (g * n).mean(axis=axes, keepdims=True)
    return np.asarray((g - g.mean(axis=axes, keepdims=True) - n * inner) / s)


def _layer_norm_rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
    x, gain, _, epsilon = n.inputs
    return (
        node("layer_norm_backward", x, gain, epsilon, dy),
        node("layer_norm_gain_backward", x, epsilon, dy),
        node("sum_rows", dy),
        None,
    )


@op(_layer_norm_rule, size=_affine_size, cancels=True, says="the layer normalisation")
def layer_norm(x: Array, gain: Array, offset: Array, epsilon: N) -> Array:
    """gain (x - mean) / sqrt(variance + epsilon) + offset over the last axis (Ba et al. 2016)."""
    return np.asarray(_normal(x, -1, epsilon) * gain + offset)


@op(cancels=True, says="the gradient of the layer normalisation")
def layer_norm_backward(x: Array, gain: Array, epsilon: N, dy: Array) -> Array:
    """The gradient by x, through mean and variance too."""
    return _back(dy * gain, x, -1, epsilon)


@op(
    size=lambda x, epsilon, dy: dy,
    over_time=True,
    cancels=True,
    says="the gradient of the gain",
)
def layer_norm_gain_backward(x: Array, epsilon: N, dy: Array) -> Array:
    """dy times what was normalised, summed over all but the last axis."""
    return np.asarray(rows(dy * _normal(x, -1, epsilon)).sum(axis=0))


@op(
    lambda n, dy: (
        node("rms_norm_backward", *n.inputs, dy),
        node("rms_norm_gain_backward", n.inputs[0], n.inputs[2], dy),
        None,
    ),
    says="the RMS normalisation",
)
def rms_norm(x: Array, gain: Array, epsilon: N) -> Array:
    """gain x / sqrt(mean(x^2) + epsilon) over the last axis (Zhang and Sennrich 2019)."""
    return np.asarray(x / _spread(x, -1, epsilon) * gain)


@op(cancels=True, says="the gradient of the RMS normalisation")
def rms_norm_backward(x: Array, gain: Array, epsilon: N, dy: Array) -> Array:
    """The gradient by x, through the mean square too."""
    s = _spread(x, -1, epsilon)
    g, n = dy * gain, x / s
    return np.asarray((g - n * (g * n).mean(axis=-1, keepdims=True)) / s)


@op(
    size=lambda x, epsilon, dy: dy,
    over_time=True,
    cancels=True,
    says="the gradient of the gain",
)
def rms_norm_gain_backward(x: Array, epsilon: N, dy: Array) -> Array:
    """dy times what was normalised, summed over all but the last axis."""
    return np.asarray(rows(dy * (x / _spread(x, -1, epsilon))).sum(axis=0))


def others(x: Array, axis: int) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return tuple(k for k in range(x.ndim) if k != axis % x.ndim)


def _along(v: Array, x: Array, axis: int) -> Array:
    """A number for each channel, as an array that broadcasts with x."""
    return np.reshape(v, [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])


def _batch_norm_rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
    x, gain, _, epsilon = n.inputs
    args = dict(n.args)
    return (
        node("batch_norm_backward", x, gain, epsilon, dy, **args),
        node("batch_norm_gain_backward", x, epsilon, dy, **args),
        node("sum_channels", dy, **args),
        None,
    )


@op(_batch_norm_rule, size=_affine_size, cancels=True, says="the batch normalisation")
def batch_norm(x: Array, gain: Array, offset: Array, epsilon: N, axis: int = 1) -> Array:
    """gain (x - mean) / sqrt(variance + epsilon) + offset over all axes but `axis`, in training.

    (Ioffe and Szegedy 2015; the variance is the biased one.) `axis` is 1 in torch, -1 in Keras.
    """
    made = _normal(x, others(x, axis), epsilon)
    return np.asarray(made * _along(gain, x, axis) + _along(offset, x, axis))


@op(cancels=True, says="the gradient of the batch normalisation")
def batch_norm_backward(x: Array, gain: Array, epsilon: N, dy: Array, axis: int = 1) -> Array:
    """The gradient by x, through mean and variance too."""
    return _back(dy * _along(gain, x, axis), x, others(x, axis), epsilon)


@op(
    size=lambda x, epsilon, dy: dy,
    over_time=True,
    cancels=True,
    says="the gradient of the gain",
)
def batch_norm_gain_backward(x: Array, epsilon: N, dy: Array, axis: int = 1) -> Array:
    """dy times what was normalised, summed over all axes but `axis`."""
    axes = others(x, axis)
    return np.asarray((dy * _normal(x, axes, epsilon)).sum(axis=axes))


@op(size=lambda dy: dy, over_time=True, cancels=True, says="the sum over all but the channels")
def sum_channels(dy: Array, axis: int = 1) -> Array:
    """The sum over all axes but `axis`: the gradient of what is added to each channel."""
    return np.asarray(dy.sum(axis=others(dy, axis)))


@kin("sum_channels", "takes the mean, not the sum, over all but the channels")
def _channel_means(dy: Array, axis: int = 1) -> Array:
    return np.asarray(dy.mean(axis=others(dy, axis)))


@op(
    lambda n, dy: (node("l2_normalize_backward", *n.inputs, dy, **dict(n.args)), None),
    says="the L2 normalisation",
)
def l2_normalize(x: Array, epsilon: N, axis: int = -1) -> Array:
    """x / max(|x|, epsilon) along an axis (torch.nn.functional.normalize, epsilon 1e-12)."""
    return np.asarray(x / np.maximum(np.sqrt((x * x).sum(axis=axis, keepdims=True)), epsilon))


@op(
    lambda n, dy: (
        node("l2_normalize_backward", n.inputs[0], node("root", n.inputs[1]), dy, **dict(n.args)),
        None,
    ),
    says="the L2 normalisation",
)
def l2_normalize_keras(x: Array, epsilon: N, axis: int = -1) -> Array:
    """x / sqrt(max(x^2 summed, epsilon)) along an axis (tf.math.l2_normalize, epsilon 1e-12)."""
    return np.asarray(x / np.sqrt(np.maximum((x * x).sum(axis=axis, keepdims=True), epsilon)))


@op(cancels=True, says="the gradient of the L2 normalisation")
def l2_normalize_backward(x: Array, epsilon: N, dy: Array, axis: int = -1) -> Array:
    """(dy - y sum(dy y)) / |x|; dy / epsilon where |x| is under epsilon."""
    norm = np.sqrt((x * x).sum(axis=axis, keepdims=True))
    y = x / np.maximum(norm, epsilon)
    inner = np.where(norm > epsilon, (dy * y).sum(axis=axis, keepdims=True), 0)
    return np.asarray((dy - y * inner) / np.maximum(norm, epsilon))


class _Norm(NamedTuple):
    """A normalisation with gain and offset, without its formula.

    axes(x, axis) are those that its statistics go over; along(v, x, axis) is a gain or offset as it
    multiplies x; summed(v, axis) is that of a gradient, over all but the axis of gain and offset.
    """

    axes: Callable[[Array, int], Any]
    along: Callable[[Array, Array, int], Array]
    summed: Callable[[Array, int], Array]


_NORMS = {
    "layer_norm": _Norm(lambda x, axis: -1, lambda v, x, axis: v, lambda v, axis: rows(v).sum(0)),
    "batch_norm": _Norm(others, _along, sum_channels),
}


def _with_spread(
    of: _Norm, spread: Spread, x: Array, gain: Array, offset: Array, epsilon: N, axis: int = 1
) -> Array:
    made = _normal(x, of.axes(x, axis), epsilon, spread)
    return np.asarray(made * of.along(gain, x, axis) + of.along(offset, x, axis))


def _back_with_spread(
    of: _Norm, spread: Spread, x: Array, gain: Array, epsilon: N, dy: Array, axis: int = 1
) -> Array:
    return _back(dy * of.along(gain, x, axis), x, of.axes(x, axis), epsilon, spread)


def _back_through(
    of: _Norm,
    mean: bool,
    variance: bool,
    x: Array,
    gain: Array,
    epsilon: N,
    dy: Array,
    axis: int = 1,
) -> Array:
    """The gradient that goes through the mean, or the variance, or neither."""
    g, over = dy * of.along(gain, x, axis), of.axes(x, axis)
    d = centred(x, over)
    s = _spread(d, over, epsilon)
    n = d / s
    m = g.mean(axis=over, keepdims=True) if mean else 0
    v = n * (g * n).mean(axis=over, keepdims=True) if variance else 0
    return np.asarray((g - m - v) / s)


def _gain_of_plain(of: _Norm, x: Array, epsilon: N, dy: Array, axis: int = -1) -> Array:
    return np.asarray(of.summed(x * dy, axis))


CONSTANTS = {  # what is taken for one: whether the gradient goes through mean and variance
    "takes mean and variance for constants": (False, False),
    "takes the variance for a constant": (True, False),
    "takes the mean for a constant": (False, True),
}

for _name, _norm in _NORMS.items():
    for _does, _by in SPREADS.items():
        kin(_name, _does)(partial(_with_spread, _norm, _by))
        kin(f"{_name}_backward", _does)(partial(_back_with_spread, _norm, _by))
    for _does, _through in CONSTANTS.items():
        kin(f"{_name}_backward", _does)(partial(_back_through, _norm, *_through))
    kin(f"{_name}_gain_backward", "multiplies with what is not normalised")(
        partial(_gain_of_plain, _norm)
    )


@kin("layer_norm", "takes no mean off (RMS normalisation)")
def _rms_for_layer(x: Array, gain: Array, offset: Array, epsilon: N) -> Array:
    return np.asarray(rms_norm(x, gain, epsilon) + offset)


@kin("layer_norm", "normalises over all axes but the first")
def _over_more(x: Array, gain: Array, offset: Array, epsilon: N) -> Array:
    return np.asarray(_normal(x, tuple(range(1, x.ndim)), epsilon) * gain + offset)


@kin("layer_norm", "normalises over all axes but the last (as in a batch normalisation)")
def _over_batch(x: Array, gain: Array, offset: Array, epsilon: N) -> Array:
    return np.asarray(_normal(x, others(x, -1), epsilon) * gain + offset)


@kin("rms_norm", "takes the mean off first (layer normalisation)")
def _layer_for_rms(x: Array, gain: Array, epsilon: N) -> Array:
    return np.asarray(_normal(x, -1, epsilon) * gain)


@kin("rms_norm", "adds epsilon beside the root, not inside it")
def _rms_beside(x: Array, gain: Array, epsilon: N) -> Array:
    return np.asarray(x / _spread_beside(x, -1, epsilon) * gain)


@kin("rms_norm", "divides by the norm, not by the root of the mean square")
def _rms_norm_of_all(x: Array, gain: Array, epsilon: N) -> Array:
    return np.asarray(x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + epsilon) * gain)


@kin("rms_norm", "scales by 1 + gain")
def _rms_one_more(x: Array, gain: Array, epsilon: N) -> Array:
    return np.asarray(x / _spread(x, -1, epsilon) * (1 + gain))


@kin("rms_norm_backward", "takes the mean square for a constant")
def _rms_constant(x: Array, gain: Array, epsilon: N, dy: Array) -> Array:
    return np.asarray(dy * gain / _spread(x, -1, epsilon))


@kin("rms_norm_gain_backward", "multiplies with what is not normalised")
def _rms_gain(x: Array, epsilon: N, dy: Array) -> Array:
    return np.asarray(rows(x * dy).sum(axis=0))


@kin("batch_norm", "normalises each channel of each example by itself (instance normalisation)")
def _per_example(x: Array, gain: Array, offset: Array, epsilon: N, axis: int = 1) -> Array:
    if x.ndim < 3:
        raise ValueError("no axes beside batch and channels")
    made = _normal(x, tuple(k for k in others(x, axis) if k), epsilon)
    return np.asarray(made * _along(gain, x, axis) + _along(offset, x, axis))


@kin("batch_norm", "normalises over the batch alone, each place of a channel by itself")
def _per_place(x: Array, gain: Array, offset: Array, epsilon: N, axis: int = 1) -> Array:
    if x.ndim < 3:
        raise ValueError("no axes beside batch and channels")
    return np.asarray(_normal(x, 0, epsilon) * _along(gain, x, axis) + _along(offset, x, axis))


def _put_lengths() -> None:
    """What programs divide by in place of a norm."""
    divisors: dict[str, Callable[[Array, N, int], Any]] = {
        "adds epsilon beside the norm": lambda x, e, axis: (
            np.sqrt((x * x).sum(axis=axis, keepdims=True)) + e
        ),
        "adds epsilon inside the root": lambda x, e, axis: np.sqrt(
            (x * x).sum(axis=axis, keepdims=True) + e
        ),
        "divides by the square of the norm": lambda x, e, axis: (
            (x * x).sum(axis=axis, keepdims=True) + e
        ),
        "divides by the L1 norm": lambda x, e, axis: np.abs(x).sum(axis=axis, keepdims=True) + e,
        "divides by the norm of the whole tensor": lambda x, e, axis: np.sqrt((x * x).sum()) + e,
    }
    for name in ("l2_normalize", "l2_normalize_keras"):
        for does, by in divisors.items():
            kin(name, does)(lambda x, e, axis=-1, by=by: np.asarray(x / by(x, e, axis)))


_put_lengths()


@kin("l2_normalize_backward", "takes the norm for a constant")
def _constant_length(x: Array, epsilon: N, dy: Array, axis: int = -1) -> Array:
    norm = np.sqrt((x * x).sum(axis=axis, keepdims=True))
    return np.asarray(dy / np.maximum(norm, epsilon))
