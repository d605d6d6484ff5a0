"""What an update is made of: norms, clipping, averages, and the rules of optimizers.

p are weights, g gradients of the same shape; every other operand is a scalar, or a slot of p's
shape. Rules give the new weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.models.ops.op import OPS, Array, Kin, op

N = Any  # a number: a Python float, or an array of no axes


def related(does: dict[str, str], base: str = "") -> None:
    """Make ops of one signature each other's kin: by name, what a program does that has it.

    With `base`, they are the kin of that op alone.
    """
    for name in [base] if base else list(does):
        others = tuple(Kin(words, OPS[o].formula) for o, words in does.items() if o != name)
        OPS[name] = OPS[name]._replace(kin=OPS[name].kin + others)


@op(over_time=True, says="the global norm")
def global_norm(*gradients: Array) -> Array:
    """The L2 norm of all gradients taken as one vector (Pascanu et al. 2013, algorithm 1)."""
    return np.asarray(np.sqrt(np.sum([np.sum(g * g) for g in gradients], axis=0)))


@op(over_time=True)
def global_norm_squared(*gradients: Array) -> Array:
    """The square of the global norm."""
    return np.asarray(np.sum([np.sum(g * g) for g in gradients], axis=0))


@op(over_time=True)
def absolute_norm(*gradients: Array) -> Array:
    """The sum of all absolute elements (L1)."""
    return np.asarray(np.sum([np.sum(np.abs(g)) for g in gradients], axis=0))


@op(over_time=True)
def largest_norm(*gradients: Array) -> Array:
    """The largest absolute element (L-infinity)."""
    return np.asarray(np.max([np.max(np.abs(g)) for g in gradients], axis=0))


@op(over_time=True)
def sum_of_norms(*gradients: Array) -> Array:
    """The sum of the tensors' own L2 norms."""
    return np.asarray(np.sum([np.sqrt(np.sum(g * g)) for g in gradients], axis=0))


@op(over_time=True)
def largest_of_norms(*gradients: Array) -> Array:
    """The largest of the tensors' own L2 norms."""
    return np.asarray(np.max([np.sqrt(np.sum(g * g)) for g in gradients], axis=0))


@op(over_time=True)
def root_mean_square(*gradients: Array) -> Array:
    """The root of the mean, not of the sum, of all squares."""
    count = sum(g.size for g in gradients)
    return np.asarray(global_norm(*gradients) / math.sqrt(count))


related(
    {
        "global_norm": "takes the L2 norm of all gradients",
        "global_norm_squared": "leaves out the root of the norm",
        "absolute_norm": "takes the L1 norm, the sum of absolute elements",
        "largest_norm": "takes the largest absolute element for the norm",
        "sum_of_norms": "adds up the norms of the tensors",
        "largest_of_norms": "takes the largest of the tensors' norms",
        "root_mean_square": "takes the root of the mean square, not of the sum",
    }
)


@op(over_time=True, says="the squares")
def squares(g: Array) -> Array:
    """The sum of the squares of all elements."""
    return np.asarray(np.sum(g * g))


@op(over_time=True)
def absolutes(g: Array) -> Array:
    """The sum of all absolute elements."""
    return np.asarray(np.sum(np.abs(g)))


@op(over_time=True)
def mean_of_squares(g: Array) -> Array:
    """The mean of the squares of all elements."""
    return np.asarray(np.mean(g * g))


@op(over_time=True)
def norm_of_one(g: Array) -> Array:
    """The root of the sum of the squares."""
    return np.asarray(np.sqrt(np.sum(g * g)))


related(
    {
        "absolutes": "adds up absolute elements, not squares",
        "mean_of_squares": "takes the mean of the squares, not their sum",
        "norm_of_one": "adds up norms, not squares",
    },
    base="squares",
)


@op(over_time=True, says="the root")
def root(x: Array) -> Array:
    """The square root of a number."""
    return np.asarray(np.sqrt(x))


@op(over_time=True)
def no_root(x: Array) -> Array:
    """A number itself."""
    return np.asarray(x)


related({"no_root": "leaves out the root"}, base="root")


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_by_norm(g: Array, norm: N, limit: N) -> Array:
    """g limit / max(norm, limit): all gradients scaled so that their norm is at most `limit`."""
    return np.asarray(g * np.asarray(limit / np.maximum(norm, limit), g.dtype))


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_elements(g: Array, norm: N, limit: N) -> Array:
    """Each element clamped to +-limit; `norm` is not read."""
    return np.asarray(np.clip(g, -limit, limit))


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_tensor(g: Array, norm: N, limit: N) -> Array:
    """The tensor scaled so that its own norm is at most `limit`; `norm` is not read."""
    return clip_by_norm(g, np.sqrt(np.sum(g * g)), limit)


@op(size=lambda g, norm, limit: g, says="no clipping")
def unclipped(g: Array, norm: N, limit: N) -> Array:
    """g itself; neither `norm` nor `limit` is read."""
    return np.asarray(g)


@op(size=lambda g, norm, limit: g)
def clip_torch(g: Array, norm: N, limit: N) -> Array:
    """g min(1, limit / (norm + 1e-6)): torch.nn.utils.clip_grad_norm_'s coefficient."""
    return np.asarray(g * np.minimum(1, limit / (norm + 1e-6)))


@op(size=lambda g, norm, limit: g)
def scale_to_norm(g: Array, norm: N, limit: N) -> Array:
    """g limit / norm, also where the norm is under the limit."""
    return np.asarray(g * (limit / norm))


@op(size=lambda g, norm, limit: g)
def clip_from_above(g: Array, norm: N, limit: N) -> Array:
    """min(g, limit): nothing holds from below."""
    return np.asarray(np.minimum(g, limit))


@op(size=lambda g, norm, limit: g)
def clip_twice(g: Array, norm: N, limit: N) -> Array:
    """g (limit / max(norm, limit))^2."""
    return np.asarray(g * (limit / np.maximum(norm, limit)) ** 2)


@op(size=lambda g, norm, limit: g)
def clip_by_root(g: Array, norm: N, limit: N) -> Array:
    """g limit / max(norm^2, limit): the norm's root left out."""
    return np.asarray(g * (limit / np.maximum(norm * norm, limit)))


related(
    {
        "clip_by_norm": "scales all gradients by their global norm",
        "clip_elements": "clamps each element of the gradients",
        "clip_tensor": "clips each tensor by its own norm",
        "unclipped": "does not clip",
        "clip_torch": "adds 1e-6 to the norm before it divides by it (as torch does)",
        "scale_to_norm": "scales gradients to the limit also where their norm is under it",
        "clip_from_above": "clamps elements from above alone",
        "clip_twice": "clips twice, by the same norm",
        "clip_by_root": "leaves out the root of the norm",
    }
)


@op(size=lambda x: None if x is None else x * x, says="the square")
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
def velocity(old: Array, g: Array, mu: N, lr: N) -> Array:
    """mu old + g, the learning rate outside (torch.optim.SGD)."""
    return np.asarray(mu * old + g)


@op(size=_velocity_size, says="the velocity")
def velocity_keras(old: Array, g: Array, mu: N, lr: N) -> Array:
    """mu old - lr g (keras.optimizers.SGD)."""
    return np.asarray(mu * old - lr * g)


@op(size=_velocity_size)
def velocity_inside(old: Array, g: Array, mu: N, lr: N) -> Array:
    """mu old + lr g (Sutskever et al. 2013)."""
    return np.asarray(mu * old + lr * g)


@op(size=_velocity_size)
def velocity_dampened(old: Array, g: Array, mu: N, lr: N) -> Array:
    """mu old + (1 - mu) g."""
    return np.asarray(mu * old + (1 - mu) * g)


@op(size=_velocity_size)
def velocity_kept(old: Array, g: Array, mu: N, lr: N) -> Array:
    """old."""
    return np.asarray(old)


@op(size=_velocity_size)
def velocity_forgotten(old: Array, g: Array, mu: N, lr: N) -> Array:
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
def along_velocity(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p - lr v (torch.optim.SGD)."""
    return np.asarray(p - lr * v)


@op(size=_moved, says="the step along the velocity")
def along_velocity_keras(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p + v, lr being inside v (keras.optimizers.SGD)."""
    return np.asarray(p + v)


@op(size=_moved)
def along_velocity_inside(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p - v, lr being inside v."""
    return np.asarray(p - v)


@op(size=_moved)
def nesterov(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p - lr (g + mu v) (torch.optim.SGD, nesterov)."""
    return np.asarray(p - lr * (g + mu * v))


@op(size=_moved)
def nesterov_keras(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p + mu v - lr g (keras.optimizers.SGD, nesterov)."""
    return np.asarray(p + mu * v - lr * g)


@op(size=_moved)
def along_gradient(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
    """p - lr g: the velocity is not used."""
    return np.asarray(p - lr * g)


@op(size=_moved)
def unmoved(p: Array, v: Array, g: Array, lr: N, mu: N) -> Array:
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


def _beside(v: Array, eps: N) -> Array:
    return np.asarray(np.sqrt(v) + eps)


def _inside(v: Array, eps: N) -> Array:
    return np.asarray(np.sqrt(v + eps))


def _largest_with(v: Array, eps: N) -> Array:
    return np.asarray(np.maximum(np.sqrt(v), eps))


def _no_root(v: Array, eps: N) -> Array:
    return np.asarray(v + eps)


def _put_adam() -> None:
    """Adam (Kingma and Ba 2015, algorithm 1), and what programs make of it.

    p - lr m' / (sqrt(v') + eps) with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t); Keras moves
    the corrections into the learning rate (their section 2, last lines): epsilon-hat.
    """

    def rule(m_corrected: bool, v_corrected: bool, root: Root, hat: bool) -> Callable[..., Array]:
        def formula(
            p: Array, m: Array, v: Array, lr: N, beta1: N, beta2: N, eps: N, step: N
        ) -> Array:
            of_m = 1 - beta1**step if m_corrected else 1.0
            of_v = 1 - beta2**step if v_corrected else 1.0
            if hat:
                return np.asarray(p - lr * (math.sqrt(of_v) / of_m) * m / root(v, eps))
            return np.asarray(p - lr * (m / of_m) / root(v / of_v, eps))

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
        "adam_no_root": (rule(True, True, _no_root, False), "leaves out the root of v"),
        "adam_unmoved": (
            lambda p, m, v, lr, beta1, beta2, eps, step: np.asarray(p),
            "does not update this parameter",
        ),
    }
    for name, (formula, _) in rules.items():
        op(size=_moved, says="Adam's step", name=name)(formula)
    related({name: does for name, (_, does) in rules.items()})


def _put_over_root() -> None:
    """RMSprop and Adagrad: p - lr g / (sqrt(s) + eps), s the average or the sum of g^2."""

    def rule(root: Root) -> Callable[..., Array]:
        def formula(p: Array, g: Array, s: Array, lr: N, eps: N) -> Array:
            return np.asarray(p - lr * g / root(s, eps))

        return formula

    rules: dict[str, tuple[Callable[..., Array], str]] = {
        "over_root": (rule(_beside), "adds epsilon beside the root (as torch does)"),
        "over_root_inside": (rule(_inside), "adds epsilon inside the root (as Keras does)"),
        "over_root_largest": (rule(_largest_with), "takes the larger of the root and epsilon"),
        "over_no_root": (rule(_no_root), "leaves out the root"),
        "over_nothing": (lambda p, g, s, lr, eps: np.asarray(p - lr * g), "divides by nothing"),
        "over_root_unmoved": (
            lambda p, g, s, lr, eps: np.asarray(p),
            "does not update this parameter",
        ),
    }
    for name, (formula, _) in rules.items():
        op(size=_moved, says="the step", name=name)(formula)
    related({name: does for name, (_, does) in rules.items()})


_put_adam()
_put_over_root()


@op(size=_of_two, says="weight decay")
def decay_gradient(g: Array, p: Array, rate: N) -> Array:
    """g + rate p (L2 regularisation)."""
    return np.asarray(g + rate * p)


@op(size=_of_two)
def undecayed_gradient(g: Array, p: Array, rate: N) -> Array:
    """g."""
    return np.asarray(g)


@op(size=_of_two)
def decay_gradient_negated(g: Array, p: Array, rate: N) -> Array:
    """g - rate p."""
    return np.asarray(g - rate * p)


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
def decay_weights(new: Array, p: Array, lr: N, rate: N) -> Array:
    """new - lr rate p (Loshchilov and Hutter 2019, algorithm 2)."""
    return np.asarray(new - lr * rate * p)


@op(size=_decay_size)
def undecayed_weights(new: Array, p: Array, lr: N, rate: N) -> Array:
    """new."""
    return np.asarray(new)


@op(size=_decay_size)
def decay_weights_alone(new: Array, p: Array, lr: N, rate: N) -> Array:
    """new - rate p: without the learning rate."""
    return np.asarray(new - rate * p)


@op(size=_decay_size)
def decay_weights_after(new: Array, p: Array, lr: N, rate: N) -> Array:
    """new - lr rate new: of the weights after the step."""
    return np.asarray(new - lr * rate * new)


related(
    {
        "decay_weights": "decays the weights by lr * weight_decay * p (decoupled)",
        "undecayed_weights": "does not decay this parameter",
        "decay_weights_alone": "decays the weights without the learning rate",
        "decay_weights_after": "decays the weights after the step",
    }
)


def _put_rows() -> None:
    """Rules of optimizers go element by element, but for those that take a norm of their own."""
    for name in (
        *("average", "velocity", "along_velocity", "descend", "adam", "over_root"),
        *("decay_gradient", "decay_weights", "clip_by_norm", "clip_elements", "unclipped"),
    ):
        OPS[name] = OPS[name]._replace(rows="each")


_put_rows()
