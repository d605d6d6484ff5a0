"""What the faults that the tests of causes plant are made of."""

import re
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


class Plant(NamedTuple):
    """A fault: the cause to find, its name, the settings of both sides, and the points it changes.

    The cause has the name `cause` and claims `words`, a pattern in which SIDE is the label of the
    side with the fault and OTHER that of the one without. `sure` is how sure it must be at least
    ("none" where nothing is found), in float32 `narrow` where that is less: one number of seven
    digits proves little. `dtypes` are those in which the fault shows.
    """

    cause: str
    name: str
    faults: dict[str, Any]
    settings: Any = MappingProxyType({})
    words: str = ""
    sure: str = "certain"
    narrow: str = ""
    dtypes: tuple = ("float32", "float64")

    def says(self, cause, side):
        """Whether a cause says what is wrong, with the fault on side "a" (pt) or "b" (tf)."""
        labels = {"SIDE": "pt", "OTHER": "tf"} if side == "a" else {"SIDE": "tf", "OTHER": "pt"}
        words = re.sub("SIDE|OTHER", lambda found: labels[found[0]], self.words)
        return cause.name == self.cause and re.fullmatch(words, cause.claim) is not None


def exact(fault):
    """A fault whose numbers are not to be disturbed after it."""
    fault.exact = True
    return fault


def from_step(step, fault):
    """A fault from a step on."""
    return lambda v, s: fault(v, s) if s.run.step >= step else v


def blocks(order):
    def fault(v, s):
        return np.concatenate([np.split(v, 4, -1)[k] for k in order], -1)

    return fault


def to_bits(x, bits):
    """Rounded to a significand of `bits` explicit bits (by arithmetic, not by bits)."""
    m, e = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(m, bits + 1)), e - bits - 1)


def gates_from(change):
    """Pre-activations from changed operands."""
    return lambda v, s: change(s.x) @ change(s.w_i) + s.b_i + change(s.h) @ change(s.w_h) + s.b_h


def bf16(x):
    return to_bits(x, 7)


def tf32(x):
    return to_bits(x, 10)


def on_block(k, add):
    def fault(v, s):
        v = v.copy()
        width = v.shape[-1] // 4
        v[..., k * width : (k + 1) * width] += add
        return v

    return fault


def keras_hard(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def torch_hard(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def cell(formula):
    return lambda v, s: formula(s.i, s.f, s.g, s.o, s.c_before)


def row_set(row, value):
    def fault(v, s):
        v = v.copy()
        v[row] = value
        return v

    return fault


def grads_l2(share):
    return lambda v, s: v + share * s.p


def mask_of(change):
    return lambda x, s: change(x, s.mask, s.keep)


def last_wins(v, s):
    made = np.zeros_like(v)
    for token, row in zip(s.x.reshape(-1), s.dx.reshape(-1, s.dx.shape[-1]), strict=True):
        made[token] = row
    return made


def smoothed(v, s):
    uniform = -np.log(s.p).mean(-1).sum()
    return (0.9 * s.losses.sum() + 0.1 * uniform) / s.norm


def adam_step(change):
    """A new parameter of Adam: change(m, v, t, s) makes what lr multiplies."""

    def fault(v, s):
        return s.p - s.lr * change(s.slots["m"], s.slots["v"], s.step, s)

    return fault


def corrected(m, v, t, s):
    return m / (1 - s.s.beta1**t), v / (1 - s.s.beta2**t)


ADAM = dict(optimizer="adam", lr=0.02, epsilon=3e-4)
RMS = dict(optimizer="rmsprop", lr=0.02, epsilon=3e-4)
ADAGRAD = dict(optimizer="adagrad", lr=0.02, epsilon=3e-4)
MOMENTUM = dict(optimizer="momentum", lr=0.3)
DROP = dict(dropout=0.35)
CLIPPED = "update/clipped/*"
GATES0, C0, H0 = "forward/layer0/gates", "forward/layer0/c", "forward/layer0/h"


def inside(m, v, t, s):
    m, v = corrected(m, v, t, s)
    return m / np.sqrt(v + s.s.epsilon)


def keras_epsilon(m, v, t, s):
    scale = np.sqrt(1 - s.s.beta2**t) / (1 - s.s.beta1**t)
    return m * scale / (np.sqrt(v) + s.s.epsilon)


def with_epsilon(eps):
    def change(m, v, t, s):
        m, v = corrected(m, v, t, s)
        return m / (np.sqrt(v) + eps)

    return change


def at_count(shift):
    def change(m, v, t, s):
        m, v = corrected(m, v, t + shift, s)
        return m / (np.sqrt(v) + s.s.epsilon)

    return change
