"""Faults that the tests of causes plant, each with the cause that must be found for it."""

from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from causes_fixtures import sigmoid


class Plant(NamedTuple):
    """A fault: the cause to find, its name, the settings of both sides, and the points it changes.

    `also` are causes that may be certain beside it, because they say the same of these numbers;
    `words` must be in the sentence; `dtypes` where it is visible; `at` the tensor it shows in.
    """

    cause: str
    name: str
    faults: dict[str, Any]
    settings: Any = MappingProxyType({})
    also: tuple = ()
    words: str = ""
    dtypes: tuple = ("float32", "float64")
    at: str = ""


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


FACTORS = [
    Plant("factor", "softmax gradient summed", {"grads/softmax_w": lambda v, s: 5 * v}, words="T"),
    Plant(
        "factor",
        "batch mean",
        {"grads/layer0/w_i": lambda v, s: v / 3},
        words="averages the loss over the batch",
    ),
    Plant("factor", "no name", {"grads/layer1/w_h": lambda v, s: 1.23457 * v}, words="none of"),
    Plant(
        "factor",
        "keep probability",
        {"grads/layer1/w_i": lambda v, s: v * 0.65},
        DROP,
        words="keep probability",
    ),
    Plant(
        "factor",
        "a step that is 1.7 times too long",
        {"params/softmax_w": lambda v, s: s.p + 1.7 * (v - s.p)},
        words="lr_decay",
    ),
    Plant(
        "factor",
        "a scalar norm over the batch size",
        {"update/global_norm": lambda v, s: v / 3},
        words="the batch size B",
    ),
    Plant("sign", "negated", {"backward/embedding": lambda v, s: -v}),
    Plant("sign", "negated bias gradient", {"grads/softmax_b": lambda v, s: -v}),
    Plant("constant", "offset", {"backward/embedding": lambda v, s: v + 0.125}),
    Plant("constant", "offset of gate o", {"grads/layer0/w_i": on_block(3, 0.25)}, words="gate o"),
    Plant(
        "learning-rate",
        "decay an epoch early",
        {"update/learning_rate": from_step(2, lambda v, s: v / 1.7)},
        words="an epoch earlier",
    ),
    Plant(
        "learning-rate",
        "decay compounds",
        {"update/learning_rate": from_step(3, lambda v, s: v / 1.7**3)},
        words="compounds",
    ),
]

CLIPPING = [
    Plant(
        "clip-elementwise",
        "clamped",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        words="one side clips by global norm, the other element by element",
    ),
    Plant(
        "clip-elementwise",
        "clamped, nothing over the limit",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        dict(clip_limit=1.7),
        words="one side clips by global norm, the other element by element",
    ),
    Plant("clip-one-side", "not clipped", {CLIPPED: lambda v, s: s.g}, words="does not scale"),
    Plant(
        "clip-one-side",
        "torch's 1e-6",
        {CLIPPED: lambda v, s: s.g * (s.s.clip_limit / (s.norm + 1e-6))},
        words="as torch does",
        dtypes=("float64",),
    ),
    Plant(
        "clip-one-side",
        "twice the limit",
        {CLIPPED: lambda v, s: s.g * (2 * s.s.clip_limit / s.norm)},
        words="a limit of 0.5",
    ),
    Plant(
        "clip-one-side",
        "clipped twice",
        {CLIPPED: lambda v, s: s.g * (s.s.clip_limit / s.norm) ** 2},
        words="clips twice",
    ),
    Plant(
        "clip-per-tensor",
        "own norm",
        {
            CLIPPED: lambda v, s: (
                s.g * (s.s.clip_limit / max(np.sqrt((s.g**2).sum()), s.s.clip_limit))
            )
        },
        words="each tensor by its own norm",
    ),
    Plant(
        "norm-duplicates",
        "norm of the rows as they come",
        {
            "update/global_norm": lambda v, s: np.sqrt(
                v**2 - s.squares["embedding"] + (s.dx**2).sum()
            )
        },
        words="norm that does not add up duplicate embedding rows",
    ),
    Plant(
        "norm-duplicates",
        "clipped by the norm of the rows as they come",
        {
            CLIPPED: lambda v, s: (
                s.g
                * s.s.clip_limit
                / np.sqrt(
                    s.norm**2
                    - (s.get("grads/embedding") ** 2).sum()
                    + (s.get("backward/embedding") ** 2).sum()
                )
            )
        },
        words="norm that does not add up duplicate embedding rows",
    ),
    Plant(
        "norm-parts",
        "without the embedding",
        {"update/global_norm": lambda v, s: np.sqrt(v**2 - s.squares["embedding"])},
        words="leaves out embedding",
    ),
    Plant(
        "norm-parts",
        "without biases",
        {
            "update/global_norm": lambda v, s: np.sqrt(
                v**2 - sum(q for n, q in s.squares.items() if "b_" in n or n.endswith("_b"))
            )
        },
        words="leaves out the biases",
    ),
    Plant(
        "norm-parts",
        "squared",
        {"update/global_norm": lambda v, s: v**2},
        words="square of the norm",
    ),
    Plant(
        "norm-parts",
        "largest element",
        {"update/global_norm": lambda v, s: max(np.abs(g).max() for g in s.grads.values())},
        words="largest element",
    ),
]

STRUCTURE = [
    Plant(
        "transposed",
        "batch-major read as time-major",
        {"forward/embedding": lambda v, s: v.reshape(5, 3, 7).swapaxes(0, 1)},
        words="time-major",
    ),
    Plant(
        "transposed",
        "gradient read in the other layout",
        {"grads/softmax_w": lambda v, s: v.T.reshape(v.shape)},
    ),
    Plant(
        "transposed",
        "softmax weights in the other layout",
        {"forward/logits": lambda v, s: s.x @ s.w.T.reshape(s.w.shape) + s.b},
        words="weights",
    ),
    Plant(
        "transposed",
        "recurrent weights in the other layout",
        {GATES0: lambda v, s: s.x @ s.w_i + s.b_i + s.h @ s.w_h.T.reshape(s.w_h.shape) + s.b_h},
        words="recurrent weights",
    ),
    Plant("gate-order", "TF1's order", {GATES0: blocks((0, 2, 1, 3))}, words="i,g,f,o"),
    Plant(
        "gate-order", "split as i,f,o,g", {C0: lambda v, s: split(s, (0, 1, 3, 2))}, words="i,f,o,g"
    ),
    Plant("gate-order", "g for o", {H0: lambda v, s: sigmoid(s.g) * np.tanh(s.c)}, words="block g"),
    Plant("gate-order", "gradient's blocks", {"grads/layer1/w_i": blocks((3, 1, 2, 0))}),
    Plant("gate-order", "bias gradient's blocks", {"grads/layer1/b_i": blocks((1, 0, 2, 3))}),
    Plant("shift", "next batch row", {"backward/embedding": lambda v, s: np.roll(v, 1, 0)}),
    Plant(
        "shift",
        "timestep",
        {"backward/logits": lambda v, s: np.concatenate([v[:, 1:], v[:, :1]], 1)},
        words="timestep",
    ),
    Plant("shift", "targets are inputs", {"inputs/y": lambda v, s: s.get("inputs/x")}),
    Plant(
        "shift",
        "embedding row off by one",
        {"forward/embedding": lambda v, s: s.table[s.x + 1]},
        words="row x+1",
    ),
    Plant(
        "permuted-rows",
        "batch rows",
        {"backward/embedding": lambda v, s: v[[1, 0, 2]]},
        words="batch row",
    ),
    Plant(
        "permuted-rows",
        "tokens",
        {"grads/softmax_w": lambda v, s: v[:, np.random.default_rng(3).permutation(29)]},
        words="token",
    ),
    Plant(
        "stale",
        "parameter not updated",
        {"params/layer1/w_i": exact(lambda v, s: s.p)},
    ),
    Plant(
        "stale",
        "gradient of the step before",
        {"grads/layer0/w_i": from_step(2, lambda v, s: s.get("grads/layer0/w_i", 1))},
    ),
    Plant(
        "stale",
        "weights of the step before",
        {
            "forward/logits": from_step(
                2,
                lambda v, s: (
                    s.x
                    @ (
                        s.get("params/softmax_w", 2)
                        if s.run.step > 2
                        else s.get("inputs/params/softmax_w", 1)
                    )
                    + (
                        s.get("params/softmax_b", 2)
                        if s.run.step > 2
                        else s.get("inputs/params/softmax_b", 1)
                    )
                ),
            )
        },
        words="weights of the step before",
    ),
    Plant(
        "accumulated",
        "not zeroed",
        {"grads/softmax_w": from_step(2, lambda v, s: v + s.get("grads/softmax_w", 1))},
        words="not zeroed",
    ),
    Plant(
        "state-not-carried",
        "zeros at every step",
        {"state/in/layer0/h": lambda v, s: 0 * v, "state/in/layer0/c": lambda v, s: 0 * v},
    ),
    Plant(
        "state-swapped",
        "h for c",
        {"state/in/layer0/h": from_step(2, lambda v, s: s.get("state/out/layer0/c", 1))},
    ),
    Plant(
        "state-swapped",
        "layers swapped",
        {"state/in/layer0/h": from_step(2, lambda v, s: s.get("state/out/layer1/h", 1))},
    ),
]


def split(s, order):
    i, f, g, _ = ([s.i, s.f, s.g, s.o][k] for k in order)
    return sigmoid(f) * s.c_before + sigmoid(i) * np.tanh(g)


CELLS = [
    Plant("forget-bias", "one on f", {GATES0: on_block(1, 1.0)}, words="adds 1 "),
    Plant(
        "forget-bias",
        "in the cell",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g))},
        words="adds 1 ",
    ),
    Plant(
        "forget-bias", "another constant", {"forward/layer1/gates": on_block(1, 0.37)}, words="0.37"
    ),
    Plant("bias-missing", "b_h", {GATES0: lambda v, s: v - s.b_h}, words="layer0/b_h"),
    Plant("bias-missing", "both", {GATES0: lambda v, s: v - s.b_h - s.b_i}),
    Plant("bias-missing", "softmax_b", {"forward/logits": lambda v, s: v - s.b}),
    Plant(
        "bias-twice", "b_i", {"forward/layer1/gates": lambda v, s: v + s.b_i}, words="layer1/b_i"
    ),
    Plant("bias-twice", "softmax_b", {"forward/logits": lambda v, s: v + s.b}),
    Plant(
        "cell-formula",
        "Keras' hard sigmoid",
        {C0: cell(lambda i, f, g, o, c: keras_hard(f) * c + keras_hard(i) * np.tanh(g))},
        words="0.2 x",
    ),
    Plant(
        "cell-formula",
        "torch's hard sigmoid",
        {C0: cell(lambda i, f, g, o, c: torch_hard(f) * c + torch_hard(i) * np.tanh(g))},
        words="relu6",
    ),
    Plant(
        "cell-formula",
        "no tanh of g",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f) * c + sigmoid(i) * g)},
        words="tanh of g",
    ),
    Plant(
        "cell-formula",
        "coupled",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g))},
        words="i = 1 - f",
    ),
    Plant("cell-formula", "no tanh of c", {H0: lambda v, s: sigmoid(s.o) * s.c}, words="tanh of c"),
    Plant(
        "cell-formula",
        "hard output",
        {"forward/layer1/h": lambda v, s: torch_hard(s.o) * np.tanh(s.c)},
        words="relu6",
    ),
    Plant(
        "zero-gradient", "none at all", {"grads/layer0/w_i": lambda v, s: 0 * v}, words="detached"
    ),
    Plant(
        "zero-gradient", "a row of tokens", {"grads/embedding": row_set(12, 0.0)}, words="token 12"
    ),
    Plant(
        "zero-gradient",
        "h detached",
        {"backward/layer1/h": lambda v, s: s.above + 0 * v},
        words="through time",
    ),
    Plant(
        "zero-gradient",
        "c detached",
        {"backward/layer1/c": lambda v, s: s.direct},
        words="c is detached",
    ),
    Plant(
        "zero-gradient",
        "no gradient for gate f",
        {
            "backward/layer0/gates": lambda v, s: np.concatenate(
                [s.parts[0], 0 * s.parts[1], *s.parts[2:]], -1
            )
        },
        words="gate",
    ),
    Plant(
        "missing-term",
        "activation regularised",
        {"backward/logits": lambda v, s: v + 0.01 * s.get("forward/logits")},
    ),
    Plant(
        "missing-term", "L1", {"grads/softmax_w": lambda v, s: v + 0.01 * np.sign(s.p)}, words="L1"
    ),
    Plant("embedding-duplicates", "last one wins", {"grads/embedding": last_wins}, words="last"),
]

DROPOUT = [
    Plant("dropout", "not scaled", {"dropout/embedding": mask_of(lambda x, m, k: x * m)}, DROP),
    Plant(
        "dropout", "scaled twice", {"dropout/layer0": mask_of(lambda x, m, k: x * m / k**2)}, DROP
    ),
    Plant(
        "dropout",
        "keep for drop",
        {"dropout/layer1": mask_of(lambda x, m, k: x * m / (1 - k))},
        DROP,
        words="drop probability",
    ),
    Plant("dropout", "inverted", {"dropout/layer1": mask_of(lambda x, m, k: x * ~m / k)}, DROP),
    Plant(
        "dropout",
        "not applied",
        {"dropout/embedding": mask_of(lambda x, m, k: x)},
        DROP,
        words="drops nothing",
    ),
    Plant(
        "dropout",
        "one mask for all timesteps",
        {"dropout/layer0": mask_of(lambda x, m, k: x * m[:, :1] / k)},
        DROP,
        words="timestep 0",
    ),
    Plant(
        "dropout",
        "mask of another site",
        {"dropout/layer0": lambda x, s: x * s.run.masks["layer1"] / s.keep},
        DROP,
        words="site layer1",
    ),
    Plant(
        "dropout",
        "recurrent too",
        {
            "forward/layer1/gates": lambda v, s: (
                v
                + (
                    0
                    if s.t == 0
                    else (s.h * (s.run.masks["layer1"][:, s.t - 1] / 0.65 - 1)) @ s.w_h
                )
            )
        },
        DROP,
        words="recurrent",
    ),
    Plant(
        "dropout",
        "scale missing backwards",
        {"backward/embedding": lambda v, s: v * 0.65},
        DROP,
        also=("factor",),
    ),
]

LOSSES = [
    Plant("loss-formula", "mean over time", {"forward/loss": lambda v, s: v / 5}, words="averages"),
    Plant(
        "loss-formula", "sum over the batch", {"forward/loss": lambda v, s: v * 3}, words="batch"
    ),
    Plant(
        "loss-formula",
        "last timestep dropped",
        {"forward/loss": lambda v, s: s.losses[:, :-1].sum() / s.norm},
        words="last timestep",
    ),
    Plant("loss-formula", "base 2", {"forward/loss": lambda v, s: v / np.log(2)}, words="base 2"),
    Plant(
        "loss-formula", "smoothed", {"forward/loss": smoothed}, words="smooths its labels by 0.1"
    ),
    Plant(
        "loss-formula",
        "targets off by one",
        {
            "forward/loss": lambda v, s: (
                -np.log(
                    np.take_along_axis(s.p, np.roll(s.y, 1, 1)[..., None].astype(int), -1)
                ).sum()
                / s.norm
            )
        },
        words="targets",
    ),
    Plant(
        "loss-formula",
        "mean set on both, gradient summed",
        {"backward/logits": lambda v, s: 5 * v},
        dict(loss="mean"),
        also=("factor",),
    ),
    Plant(
        "loss-formula",
        "gradient smoothed",
        {"backward/logits": lambda v, s: (s.p - 0.9 * s.target - 0.1 / 29) / s.norm},
        words="smooths",
    ),
    Plant(
        "loss-formula",
        "gradient without last timestep",
        {"backward/logits": lambda v, s: v * (np.arange(5) < 4)[None, :, None]},
        words="last timestep",
        also=("zero-gradient",),
    ),
]

PRECISION = [
    Plant(
        "reduced-precision",
        "held in bfloat16",
        {"forward/embedding": exact(lambda v, s: bf16(v))},
        words="bfloat16",
    ),
    Plant(
        "reduced-precision",
        "held in tf32",
        {"backward/logits": exact(lambda v, s: tf32(v))},
        words="tf32",
    ),
    Plant(
        "reduced-precision",
        "held in float16",
        {"forward/embedding": exact(lambda v, s: v.astype(np.float16).astype(np.float64))},
    ),
    Plant(
        "reduced-precision",
        "held in float32",
        {"forward/logits": exact(lambda v, s: v.astype(np.float32).astype(np.float64))},
        words="float32",
        dtypes=("float64",),
    ),
    Plant("reduced-precision", "product in bfloat16", {GATES0: gates_from(bf16)}, words="bfloat16"),
    Plant("reduced-precision", "product in tf32", {GATES0: gates_from(tf32)}, words="tf32"),
    Plant(
        "reduced-precision",
        "logits in bfloat16",
        {"forward/logits": lambda v, s: bf16(s.x) @ bf16(s.w) + s.b},
        words="bfloat16",
    ),
    Plant(
        "reduced-precision",
        "logits in tf32, after dropout",
        {"forward/logits": lambda v, s: tf32(s.x) @ tf32(s.w) + s.b},
        DROP,
        words="tf32",
    ),
    Plant(
        "reduced-precision",
        "results in bfloat16 too",
        {"forward/logits": exact(lambda v, s: bf16(bf16(s.x) @ bf16(s.w)) + s.b)},
        words="bfloat16",
    ),
    Plant(
        "reduced-precision",
        "backward in bfloat16",
        {
            "backward/layer1/h": lambda v, s: (
                v if s.t < 0 else bf16(s.dz_next) @ bf16(s.w_h).T + s.above
            )
        },
        words="bfloat16",
    ),
]

PRECISION += [
    Plant(
        "reduced-precision",
        "h held in float16",
        {H0: exact(lambda v, s: v.astype(np.float16).astype(np.float64))},
        words="layer0/h",
    ),
    Plant("reduced-precision", "c held in bfloat16", {C0: exact(lambda v, s: bf16(v))}),
]

SLOT = "optimizer/layer0/w_i/"
OPTIMIZER = [
    Plant(
        "epsilon", "inside the root", {"params/*": adam_step(inside)}, ADAM, words="inside the root"
    ),
    Plant("epsilon", "as Keras", {"params/*": adam_step(keras_epsilon)}, ADAM, words="Keras"),
    Plant(
        "epsilon", "another size", {"params/*": adam_step(with_epsilon(1e-5))}, ADAM, words="1e-05"
    ),
    Plant(
        "epsilon",
        "RMSprop, inside",
        {"params/*": lambda v, s: s.p - s.lr * s.g / np.sqrt(s.slots["square"] + s.s.epsilon)},
        RMS,
        words="inside",
    ),
    Plant(
        "epsilon",
        "Adagrad, inside",
        {"params/*": lambda v, s: s.p - s.lr * s.g / np.sqrt(s.slots["accumulator"] + s.s.epsilon)},
        ADAGRAD,
        words="inside",
    ),
    Plant(
        "bias-correction",
        "none",
        {"params/*": adam_step(lambda m, v, t, s: m / (np.sqrt(v) + s.s.epsilon))},
        ADAM,
        words="corrects no bias",
    ),
    Plant(
        "bias-correction",
        "m alone",
        {
            "params/*": adam_step(
                lambda m, v, t, s: corrected(m, v, t, s)[0] / (np.sqrt(v) + s.s.epsilon)
            )
        },
        ADAM,
        words="of m alone",
    ),
    Plant(
        "bias-correction",
        "a step ahead",
        {"params/*": adam_step(at_count(1))},
        ADAM,
        words="counts step",
    ),
    Plant(
        "momentum-convention",
        "lr inside",
        {"optimizer/*/velocity": lambda v, s: 0.9 * s.old - s.lr * s.fed},
        MOMENTUM,
        words="Keras",
    ),
    Plant(
        "momentum-convention",
        "dampened",
        {"optimizer/*/velocity": lambda v, s: 0.9 * s.old + 0.1 * s.fed},
        MOMENTUM,
        words="dampens",
    ),
    Plant(
        "momentum-convention",
        "Nesterov",
        {"params/*": lambda v, s: s.p - s.lr * (s.g + 0.9 * s.slots["velocity"])},
        MOMENTUM,
        words="Nesterov",
    ),
    Plant(
        "initial-accumulator",
        "from 0.1",
        {"optimizer/*": lambda v, s: s.old + s.g**2 + (0.1 if s.run.step == 1 else 0)},
        ADAGRAD,
        words="0.1",
    ),
    Plant(
        "weight-decay",
        "L2 left out",
        {SLOT + "m": lambda v, s: 0.9 * s.old + 0.1 * s.g},
        ADAM | dict(weight_decay=0.05),
        words="does not decay",
    ),
    Plant(
        "weight-decay",
        "decoupled left out",
        {"params/layer0/w_i": lambda v, s: v + s.lr * 0.05 * s.p},
        ADAM | dict(weight_decay=0.05, decoupled=True),
        words="does not decay",
    ),
    Plant(
        "weight-decay",
        "without lr",
        {"params/layer0/w_i": lambda v, s: v + s.lr * 0.05 * s.p - 0.05 * s.p},
        ADAM | dict(weight_decay=0.05, decoupled=True),
        words="without the learning rate",
    ),
    Plant("weight-decay", "L2 in the loss", {"grads/softmax_w": grads_l2(0.01)}, words="0.01"),
    Plant(
        "optimizer-formula", "SGD", {"params/*": lambda v, s: s.p - s.lr * s.g}, ADAM, words="sgd"
    ),
    Plant(
        "optimizer-formula",
        "unclipped",
        {"params/*": lambda v, s: s.p - s.lr * s.raw},
        words="before clipping",
        also=("factor", "missing-term"),
    ),
    Plant(
        "optimizer-formula",
        "betas swapped",
        {SLOT + "m": lambda v, s: 0.999 * s.old + 0.001 * s.fed},
        ADAM,
        words="swaps",
        also=("factor",),
    ),
    Plant(
        "optimizer-formula",
        "square not averaged",
        {SLOT + "v": lambda v, s: 0.999 * s.old + s.fed**2},
        ADAM,
        words="not averaged",
        also=("factor",),
    ),
    Plant(
        "optimizer-formula",
        "twice",
        {"params/*": lambda v, s: s.p - 2 * s.lr * s.g},
        words="twice",
        also=("factor", "missing-term"),
    ),
    Plant(
        "optimizer-formula",
        "frozen row",
        {"params/embedding": exact(lambda v, s: np.where(np.arange(29)[:, None] == 3, s.p, v))},
        words="row 3",
    ),
    Plant(
        "optimizer-formula",
        "another momentum",
        {SLOT + "velocity": from_step(2, lambda v, s: 0.99 * s.old + s.fed)},
        MOMENTUM,
        words="momentum 0.99",
        also=("missing-term",),
    ),
    Plant(
        "optimizer-formula",
        "lazy rows",
        {
            "params/embedding": lambda v, s: np.where(
                np.isin(np.arange(29), s.get("inputs/x"))[:, None], v, s.p
            )
        },
        ADAM,
        words="not in the batch",
    ),
]

PLANTS = [*FACTORS, *CLIPPING, *STRUCTURE, *CELLS, *DROPOUT, *LOSSES, *PRECISION, *OPTIMIZER]
