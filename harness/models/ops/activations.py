"""Functions of single elements beside sigmoid and tanh, and softmax along an axis.

Each y = f(x) has the gradient dy f'(x), where f' is the op named `<f>_slope`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.basic import one, sigmoid
from harness.models.ops.op import Array, kin, op

N = Any  # a number: a Python float, or an array of no axes
Formula = Callable[..., Array]
ROOT = math.sqrt(2 / math.pi)


def own(x: float | None, *rest: float | None) -> float | None:
    """The size of the first operand."""
    return x


def sloped(name: str) -> Callable[[Node, Node], tuple[Node | None, ...]]:
    """The derivative of an op of single elements: dy times its slope; numbers get none."""

    def rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
        slope = node(name, *n.inputs, **dict(n.args))
        return (node("multiply", dy, slope), *(None for _ in n.inputs[1:]))

    return rule


@op(sloped("relu_slope"), size=own, says="the ReLU")
def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


@op(says="the slope of the ReLU")
def relu_slope(x: Array) -> Array:
    """1 where x > 0, else 0 (at 0 too, as torch and TensorFlow have it)."""
    return np.asarray(x > 0, x.dtype)


@op(sloped("leaky_relu_slope"), size=own, says="the leaky ReLU")
def leaky_relu(x: Array, slope: N) -> Array:
    """x where x > 0, else slope x (torch's slope is 0.01, Keras' 0.3 or 0.2)."""
    return np.asarray(np.where(x > 0, x, slope * x))


@op(says="the slope of the leaky ReLU")
def leaky_relu_slope(x: Array, slope: N) -> Array:
    """1 where x > 0, else `slope`."""
    return np.asarray(np.where(x > 0, 1, slope), x.dtype)


@op(sloped("elu_slope"), size=own, says="the ELU")
def elu(x: Array, alpha: N) -> Array:
    """x where x > 0, else alpha (exp(x) - 1) (Clevert et al. 2016)."""
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


@op(says="the slope of the ELU")
def elu_slope(x: Array, alpha: N) -> Array:
    """1 where x > 0, else alpha exp(x)."""
    return np.asarray(np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))), x.dtype)


@op(sloped("silu_slope"), size=own, says="the SiLU")
def silu(x: Array) -> Array:
    """x sigmoid(x), also named swish."""
    return np.asarray(x * sigmoid(x))


@op(size=one, cancels=True, says="the slope of the SiLU")
def silu_slope(x: Array) -> Array:
    """s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = sigmoid(x)
    return np.asarray(s * (1 + x * (1 - s)))


def erf(x: Array) -> Array:
    """The error function, to float64's last digits (NumPy has none)."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


@op(sloped("gelu_slope"), size=own, cancels=True, says="the GELU")
def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016); torch's default."""
    return np.asarray(x * (0.5 * (1 + erf(x * math.sqrt(0.5)))))


@op(size=one, cancels=True, says="the slope of the GELU")
def gelu_slope(x: Array) -> Array:
    """Phi(x) + x phi(x)."""
    density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return np.asarray(0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density)


@op(sloped("gelu_tanh_slope"), size=own, cancels=True, says="the GELU")
def gelu_tanh(x: Array) -> Array:
    """The GELU by tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (GPT-2's)."""
    return np.asarray(0.5 * x * (1 + np.tanh(ROOT * (x + 0.044715 * x * x * x))))


@op(size=one, cancels=True, says="the slope of the GELU")
def gelu_tanh_slope(x: Array) -> Array:
    """The derivative of the GELU by tanh."""
    t = np.tanh(ROOT * (x + 0.044715 * x * x * x))
    inner = ROOT * (1 + 3 * 0.044715 * x * x)
    return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)


def _gelu_by_sigmoid(x: Array) -> Array:
    return np.asarray(x * sigmoid(1.702 * x))


def _identity(x: Array) -> Array:
    return np.asarray(x)


def _put_others() -> None:
    """Each function of single elements may stand in another's place."""
    functions: dict[str, tuple[str, Formula]] = {
        "relu": ("a ReLU", relu),
        "leaky": ("a leaky ReLU of slope 0.01", lambda x: leaky_relu(x, 0.01)),
        "elu": ("an ELU", lambda x: elu(x, 1.0)),
        "silu": ("a SiLU", silu),
        "gelu": ("the exact GELU", gelu),
        "gelu_tanh": ("the GELU by tanh", gelu_tanh),
        "sigmoid gelu": ("the GELU by sigmoid, x sigmoid(1.702 x),", _gelu_by_sigmoid),
        "tanh": ("a tanh", lambda x: np.asarray(np.tanh(x))),
        "sigmoid": ("a sigmoid", sigmoid),
        "nothing": ("nothing", _identity),
    }
    names = {"relu": "ReLU", "silu": "SiLU", "gelu": "exact GELU", "gelu_tanh": "GELU by tanh"}
    for name, said in names.items():
        for other, (words, formula) in functions.items():
            if other != name:
                kin(name, f"has {words} for the {said}")(formula)
    for name, said in (("leaky_relu", "leaky ReLU"), ("elu", "ELU")):
        for other in ("relu", "gelu", "silu", "nothing"):
            words, formula = functions[other]
            kin(name, f"has {words} for the {said}")(lambda x, number, f=formula: f(x))
    slopes: dict[str, tuple[str, Formula]] = {
        "relu_slope": ("the slope of the ReLU", relu_slope),
        "silu_slope": ("the slope of the SiLU", silu_slope),
        "gelu_slope": ("the slope of the exact GELU", gelu_slope),
        "gelu_tanh_slope": ("the slope of the GELU by tanh", gelu_tanh_slope),
        "ones": ("1", np.ones_like),
    }
    for name in list(slopes)[:-1]:
        for other, (words, formula) in slopes.items():
            if other != name:
                kin(name, f"takes {words} for {slopes[name][0]}")(formula)


_put_others()


@kin("relu_slope", "lets the gradient through where the ReLU is 0, and stops it elsewhere")
def _other_half(x: Array) -> Array:
    return np.asarray(x <= 0, x.dtype)


@kin("leaky_relu", "uses the slope where x > 0")
def _slope_above(x: Array, slope: N) -> Array:
    return np.asarray(np.where(x > 0, slope * x, x))


@kin("leaky_relu_slope", "lets no gradient through where x < 0")
def _no_leak(x: Array, slope: N) -> Array:
    return relu_slope(x)


@kin("elu_slope", "takes alpha (exp(x) - 1), the ELU itself, for its slope")
def _elu_for_slope(x: Array, alpha: N) -> Array:
    return np.asarray(np.where(x > 0, 1, elu(x, alpha)), x.dtype)


@kin("silu_slope", "takes the sigmoid for the slope of the SiLU")
def _only_sigmoid(x: Array) -> Array:
    return sigmoid(x)


@kin("gelu_slope", "takes Phi(x) for the slope of the GELU")
def _only_distribution(x: Array) -> Array:
    return np.asarray(0.5 * (1 + erf(x * math.sqrt(0.5))))


@op(
    lambda n, dy: (node("softmax_backward", *n.inputs, dy, **dict(n.args)),),
    says="the softmax",
)
def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / sum(exp(x)) along an axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


@op(size=lambda x, dy: dy, cancels=True, says="the gradient of the softmax")
def softmax_backward(x: Array, dy: Array, axis: int = -1) -> Array:
    """y (dy - sum(dy y)) with y = softmax(x)."""
    y = softmax(x, axis)
    return np.asarray(y * (dy - (dy * y).sum(axis=axis, keepdims=True)))


@op(
    lambda n, dy: (node("log_softmax_backward", *n.inputs, dy, **dict(n.args)),),
    size=own,
    cancels=True,
    says="the log-softmax",
)
def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log(sum(exp(x))) along an axis."""
    moved = x - x.max(axis=axis, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=axis, keepdims=True)))


@op(
    size=lambda x, dy: dy,
    cancels=True,
    says="the gradient of the log-softmax",
)
def log_softmax_backward(x: Array, dy: Array, axis: int = -1) -> Array:
    """dy - softmax(x) sum(dy)."""
    return np.asarray(dy - softmax(x, axis) * dy.sum(axis=axis, keepdims=True))


def _put_axes() -> None:
    """A softmax over the wrong axis, there and in its gradient."""
    formulas: dict[str, Formula] = {
        "softmax": softmax,
        "softmax_backward": softmax_backward,
        "log_softmax": log_softmax,
        "log_softmax_backward": log_softmax_backward,
    }
    for name, formula in formulas.items():
        for axis in (0, 1, -1):

            def elsewhere(
                *x: Array, axis: int = -1, wrong: int = axis, f: Formula = formula
            ) -> Array:
                if wrong % x[0].ndim == axis % x[0].ndim:
                    raise ValueError("the axis itself")
                return f(*x, axis=wrong)

            words = {0: "the first axis", 1: "the second axis", -1: "the last axis"}[axis]
            kin(name, f"takes the softmax over {words}")(elsewhere)


_put_axes()


@kin("softmax_backward", "leaves the sum out of the gradient of the softmax: y dy")
def _softmax_without_sum(x: Array, dy: Array, axis: int = -1) -> Array:
    return np.asarray(softmax(x, axis) * dy)


@kin("softmax_backward", "takes the slope of the sigmoid, y (1 - y) dy, for that of the softmax")
def _softmax_as_sigmoid(x: Array, dy: Array, axis: int = -1) -> Array:
    y = softmax(x, axis)
    return np.asarray(y * (1 - y) * dy)


@kin("log_softmax", "takes the softmax, without a logarithm")
def _no_log(x: Array, axis: int = -1) -> Array:
    return softmax(x, axis)


@kin("log_softmax_backward", "leaves the softmax out of the gradient: dy itself")
def _log_without_sum(x: Array, dy: Array, axis: int = -1) -> Array:
    return np.asarray(dy)
