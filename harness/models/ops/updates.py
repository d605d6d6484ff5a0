"""What an update is made of: averages, the rules of optimizers, and weight decay.

p are weights, g gradients of the same shape; every other operand is a scalar, or a slot of p's
shape. Rules give the new weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.models.graph import node
from harness.models.ops.op import OPS, Array, kin, op, related

N = Any  # a number: a Python float, or an array of no axes


@op(
    lambda n, dy: (node("multiply", dy, node("add", *n.inputs, *n.inputs)),),
    size=lambda x: None if x is None else x * x,
    says="the square",
)
def square(x: Array) -> Array:
    """x^2."""
    return np.asarray(x * x)


@op(size=lambda x: x)
def absolute(x: Array) -> Array:
    """|x|."""
    return np.asarray(np.abs(x))


@op(size=lambda x: x)
def identity(x: Array) -> Array:
    """x."""
    return np.asarray(x)


related(
    {
        "absolute": "takes the absolute gradient for its square",
        "identity": "takes the gradient itself for its square",
    },
    base="square",
)


def _larger(*sizes: float | None) -> float | None:
    return max((s for s in sizes if s is not None), default=None)


def _of_two(old: float | None, new: float | None, *rest: float | None) -> float | None:
    return _larger(old, new)


@op(size=_of_two, says="the average")
def average(old: Array, new: Array, beta: N) -> Array:
    """beta old + (1 - beta) new: a running average."""
    return np.asarray(beta * old + (1 - beta) * new)


@op(size=_of_two)
def undamped(old: Array, new: Array, beta: N) -> Array:
    """beta old + new."""
    return np.asarray(beta * old + new)


@op(size=_of_two)
def average_swapped(old: Array, new: Array, beta: N) -> Array:
    """(1 - beta) old + beta new."""
    return np.asarray((1 - beta) * old + beta * new)


@op(size=_of_two)
def added_up(old: Array, new: Array, beta: N) -> Array:
    """old + new."""
    return np.asarray(old + new)


@op(size=_of_two)
def kept(old: Array, new: Array, beta: N) -> Array:
    """old: nothing is taken in."""
    return np.asarray(old)


@op(size=_of_two)
def replaced(old: Array, new: Array, beta: N) -> Array:
    """new: nothing is kept."""
    return np.asarray(new)


@op(size=_of_two)
def forgotten(old: Array, new: Array, beta: N) -> Array:
    """(1 - beta) new: what was kept is not used."""
    return np.asarray((1 - beta) * new)


related(
    {
        "average": "averages",
        "undamped": "adds the new value whole, not the share 1 - beta of it",
        "average_swapped": "swaps the shares of the old and the new value",
        "added_up": "adds up for ever",
        "kept": "does not update it",
        "replaced": "keeps the new value alone",
        "forgotten": "starts from zero at every step",
    }
)


def _velocity_size(old: float | None, g: float | None, *rest: float | None) -> float | None:
    return _larger(old, g)


@op(size=_velocity_size, says="the velocity")
def velocity(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """momentum old + g, the learning rate outside (torch.optim.SGD)."""
    return np.asarray(momentum * old + g)


@op(size=_velocity_size, says="the velocity")
def velocity_keras(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """momentum old - lr g (keras.optimizers.SGD)."""
    return np.asarray(momentum * old - lr * g)


@op(size=_velocity_size)
def velocity_inside(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """momentum old + lr g (Sutskever et al. 2013)."""
    return np.asarray(momentum * old + lr * g)


@op(size=_velocity_size)
def velocity_dampened(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """momentum old + (1 - momentum) g."""
    return np.asarray(momentum * old + (1 - momentum) * g)


@op(size=_velocity_size)
def velocity_kept(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """old."""
    return np.asarray(old)


@op(size=_velocity_size)
def velocity_forgotten(old: Array, g: Array, momentum: N, lr: N) -> Array:
    """g: what was kept is not used."""
    return np.asarray(g)


related(
    {
        "velocity": "keeps the learning rate outside the velocity (as torch does)",
        "velocity_keras": "keeps -lr g inside the velocity (as Keras does)",
        "velocity_inside": "keeps lr g inside the velocity",
        "velocity_dampened": "dampens: (1 - momentum) g goes into the velocity",
        "velocity_kept": "does not update the velocity",
        "velocity_forgotten": "starts the velocity from zero at every step",
    }
)


def _moved(p: float | None, *rest: float | None) -> float | None:
    return p


@op(size=_moved, says="the step along the velocity")
def along_velocity(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p - lr v (torch.optim.SGD)."""
    return np.asarray(p - lr * v)


@op(size=_moved, says="the step along the velocity")
def along_velocity_keras(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p + v, lr being inside v (keras.optimizers.SGD)."""
    return np.asarray(p + v)


@op(size=_moved)
def along_velocity_inside(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p - v, lr being inside v."""
    return np.asarray(p - v)


@op(size=_moved)
def nesterov(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p - lr (g + momentum v) (torch.optim.SGD, nesterov)."""
    return np.asarray(p - lr * (g + momentum * v))


@op(size=_moved)
def nesterov_keras(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p + momentum v - lr g (keras.optimizers.SGD, nesterov)."""
    return np.asarray(p + momentum * v - lr * g)


@op(size=_moved)
def along_gradient(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p - lr g: the velocity is not used."""
    return np.asarray(p - lr * g)


@op(size=_moved)
def unmoved(p: Array, v: Array, g: Array, lr: N, momentum: N) -> Array:
    """p."""
    return np.asarray(p)


related(
    {
        "along_velocity": "moves by lr times the velocity (as torch does)",
        "along_velocity_keras": "adds the velocity, with lr inside it (as Keras does)",
        "along_velocity_inside": "takes off the velocity, with lr inside it",
        "nesterov": "takes Nesterov's step, g + momentum v",
        "nesterov_keras": "takes Nesterov's step with lr inside the velocity (as Keras does)",
        "along_gradient": "moves along the gradient, not the velocity",
        "unmoved": "does not update this parameter",
    }
)


@op(size=_moved, says="the step")
def descend(p: Array, g: Array, lr: N) -> Array:
    """p - lr g."""
    return np.asarray(p - lr * g)


@op(size=_moved)
def ascend(p: Array, g: Array, lr: N) -> Array:
    """p + lr g."""
    return np.asarray(p + lr * g)


@op(size=_moved)
def stay(p: Array, g: Array, lr: N) -> Array:
    """p."""
    return np.asarray(p)


related(
    {
        "descend": "takes lr g off the weights",
        "ascend": "adds lr g to the weights",
        "stay": "does not update this parameter",
    }
)

Root = Callable[[Array, N], Array]


def _beside(v: Array, epsilon: N) -> Array:
    return np.asarray(np.sqrt(v) + epsilon)


def _inside(v: Array, epsilon: N) -> Array:
    return np.asarray(np.sqrt(v + epsilon))


def _largest_with(v: Array, epsilon: N) -> Array:
    return np.asarray(np.maximum(np.sqrt(v), epsilon))


def _no_root(v: Array, epsilon: N) -> Array:
    return np.asarray(v + epsilon)


def _put_adam() -> None:
    """Adam (Kingma and Ba 2015, algorithm 1), and what programs make of it.

    p - lr m' / (sqrt(v') + epsilon) with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t); Keras
    moves the corrections into the learning rate (their section 2, last lines): epsilon-hat.
    """

    def rule(
        m_corrected: bool, v_corrected: bool, root: Root, hat: bool, more: tuple[int, int] = (0, 0)
    ) -> Callable[..., Array]:
        def formula(
            p: Array, m: Array, v: Array, lr: N, beta1: N, beta2: N, epsilon: N, step: N
        ) -> Array:
            of_m = 1 - beta1 ** (step + more[0]) if m_corrected else 1.0
            of_v = 1 - beta2 ** (step + more[1]) if v_corrected else 1.0
            if hat:
                return np.asarray(p - lr * (math.sqrt(of_v) / of_m) * m / root(v, epsilon))
            return np.asarray(p - lr * (m / of_m) / root(v / of_v, epsilon))

        return formula

    rules: dict[str, tuple[Callable[..., Array], str]] = {
        "adam": (rule(True, True, _beside, False), "adds epsilon beside the corrected root"),
        "adam_keras": (
            rule(True, True, _beside, True),
            "adds epsilon beside the root that is not bias-corrected (as Keras does)",
        ),
        "adam_inside": (rule(True, True, _inside, False), "adds epsilon inside the root"),
        "adam_keras_inside": (
            rule(True, True, _inside, True),
            "adds epsilon inside the root that is not bias-corrected",
        ),
        "adam_largest": (
            rule(True, True, _largest_with, False),
            "takes the larger of the root and epsilon",
        ),
        "adam_uncorrected": (rule(False, False, _beside, False), "corrects no bias"),
        "adam_v_corrected": (rule(False, True, _beside, False), "corrects the bias of v alone"),
        "adam_m_corrected": (rule(True, False, _beside, False), "corrects the bias of m alone"),
        "adam_m_later": (
            rule(True, True, _beside, False, (1, 0)),
            "counts one step more where it corrects the bias of m",
        ),
        "adam_v_later": (
            rule(True, True, _beside, False, (0, 1)),
            "counts one step more where it corrects the bias of v",
        ),
        "adam_no_root": (rule(True, True, _no_root, False), "leaves out the root of v"),
        "adam_unmoved": (
            lambda p, m, v, lr, beta1, beta2, epsilon, step: np.asarray(p),
            "does not update this parameter",
        ),
    }
    for name, (formula, _) in rules.items():
        op(size=_moved, says="Adam's step", name=name)(formula)
    related({name: does for name, (_, does) in rules.items()})


def _put_over_root() -> None:
    """RMSprop and Adagrad: p - lr g / (sqrt(s) + epsilon), s the average or the sum of g^2."""

    def rule(root: Root) -> Callable[..., Array]:
        def formula(p: Array, g: Array, s: Array, lr: N, epsilon: N) -> Array:
            return np.asarray(p - lr * g / root(s, epsilon))

        return formula

    rules: dict[str, tuple[Callable[..., Array], str]] = {
        "over_root": (rule(_beside), "adds epsilon beside the root (as torch does)"),
        "over_root_inside": (rule(_inside), "adds epsilon inside the root (as Keras does)"),
        "over_root_largest": (rule(_largest_with), "takes the larger of the root and epsilon"),
        "over_no_root": (rule(_no_root), "leaves out the root"),
        "over_nothing": (lambda p, g, s, lr, epsilon: np.asarray(p - lr * g), "divides by nothing"),
        "over_root_unmoved": (
            lambda p, g, s, lr, epsilon: np.asarray(p),
            "does not update this parameter",
        ),
    }
    for name, (formula, _) in rules.items():
        op(size=_moved, says="the step", name=name)(formula)
    related({name: does for name, (_, does) in rules.items()})


_put_adam()
_put_over_root()


@op(size=_of_two, says="weight decay")
def decay_gradient(g: Array, p: Array, weight_decay: N) -> Array:
    """g + weight_decay p (L2 regularisation)."""
    return np.asarray(g + weight_decay * p)


@op(size=_of_two)
def undecayed_gradient(g: Array, p: Array, weight_decay: N) -> Array:
    """g."""
    return np.asarray(g)


@op(size=_of_two)
def decay_gradient_negated(g: Array, p: Array, weight_decay: N) -> Array:
    """g - weight_decay p."""
    return np.asarray(g - weight_decay * p)


related(
    {
        "decay_gradient": "adds the weight decay to the gradient (L2)",
        "undecayed_gradient": "does not decay this parameter",
        "decay_gradient_negated": "takes the weight decay off the gradient",
    }
)


def _decay_size(new: float | None, p: float | None, *rest: float | None) -> float | None:
    return _larger(new, p)


@op(size=_decay_size, says="weight decay")
def decay_weights(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    """new - lr weight_decay p (Loshchilov and Hutter 2019, algorithm 2)."""
    return np.asarray(new - lr * weight_decay * p)


@op(size=_decay_size)
def undecayed_weights(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    """new."""
    return np.asarray(new)


@op(size=_decay_size)
def decay_weights_alone(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    """new - weight_decay p: without the learning rate."""
    return np.asarray(new - weight_decay * p)


@op(size=_decay_size)
def decay_weights_after(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    """new - lr weight_decay new: of the weights after the step."""
    return np.asarray(new - lr * weight_decay * new)


related(
    {
        "decay_weights": "decays the weights by lr * weight_decay * p (decoupled)",
        "undecayed_weights": "does not decay this parameter",
        "decay_weights_alone": "decays the weights without the learning rate",
        "decay_weights_after": "decays the weights after the step",
    }
)


@kin("average", "keeps the largest value that it has had (as AMSGrad does)")
def _largest_so_far(old: Array, new: Array, beta: N) -> Array:
    return np.maximum(old, average(old, new, beta))


@kin("decay_gradient", "adds the decay by the signs of the weights (L1, not L2)")
def _decay_by_sign(g: Array, p: Array, weight_decay: N) -> Array:
    return np.asarray(g + weight_decay * np.sign(p))


@kin("decay_weights", "decays by the signs of the weights (L1, not L2)")
def _decay_weights_by_sign(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    return np.asarray(new - lr * weight_decay * np.sign(p))


@kin("decay_weights", "adds the weight decay to the weights")
def _decay_weights_negated(new: Array, p: Array, lr: N, weight_decay: N) -> Array:
    return np.asarray(new + lr * weight_decay * p)


def _put_rows() -> None:
    """Rules of optimizers go element by element."""
    for name in (
        *("average", "velocity", "along_velocity", "descend", "adam", "over_root"),
        *("decay_gradient", "decay_weights"),
    ):
        OPS[name] = OPS[name]._replace(rows="each")


_put_rows()
