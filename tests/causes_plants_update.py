"""Faults of clipping and optimizers, each with its cause."""

import numpy as np
from causes_plant import (
    ADAGRAD,
    ADAM,
    CLIPPED,
    MOMENTUM,
    RMS,
    Plant,
    adam_step,
    at_count,
    corrected,
    exact,
    from_step,
    grads_l2,
    inside,
    keras_epsilon,
    with_epsilon,
)

CLIPPING = [
    Plant(
        "formula",
        "clamped",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        words="SIDE clamps each element of the gradients",
    ),
    Plant(
        "formula",
        "clamped, nothing over the limit",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        dict(clip_limit=1.7),
        words="SIDE does not clip",
        sure="likely",
    ),
    Plant(
        "formula",
        "not clipped",
        {CLIPPED: lambda v, s: s.g},
        words="SIDE does not clip",
        sure="likely",
    ),
    Plant(
        "formula",
        "torch's 1e-6",
        {CLIPPED: lambda v, s: s.g * (s.s.clip_limit / (s.norm + 1e-6))},
        dtypes=("float64",),
        words=r"SIDE adds 1e-6 to the norm before it divides by it \(as torch does\)",
    ),
    Plant(
        "argument",
        "twice the limit",
        {CLIPPED: lambda v, s: s.g * (2 * s.s.clip_limit / s.norm)},
        dtypes=("float64",),
        words=r"SIDE takes 0\.5 for clip_limit 0\.25",
        sure="likely",
    ),
    Plant(
        "formula",
        "clipped twice",
        {CLIPPED: lambda v, s: s.g * (s.s.clip_limit / s.norm) ** 2},
        words="SIDE clips twice, by the same norm",
    ),
    Plant(
        "formula",
        "own norm",
        {
            CLIPPED: lambda v, s: (
                s.g * (s.s.clip_limit / max(np.sqrt((s.g**2).sum()), s.s.clip_limit))
            )
        },
        words="SIDE clips each tensor by its own norm",
    ),
    Plant(
        "operand-other",
        "norm of the rows as they come",
        {
            "update/global_norm": lambda v, s: np.sqrt(
                v**2 - s.squares["embedding"] + (s.dx**2).sum()
            )
        },
        dtypes=("float64",),
        # in float32 one number this near says too little
        words=("SIDE counts the rows of grads/embedding before those of one token are added up"),
    ),
    Plant(
        "operand-other",
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
        dtypes=("float64",),
        # in float32 one number this near says too little
        words=(
            "SIDE counts the rows of grads/embedding before those of one token are "
            "added up, in update/global_norm as it is used here"
        ),
    ),
    Plant(
        "operand-missing",
        "without the embedding",
        {"update/global_norm": lambda v, s: np.sqrt(v**2 - s.squares["embedding"])},
        dtypes=("float64",),
        words="SIDE leaves out the squares of grads/embedding",
    ),
    Plant(
        "operand-missing",
        "without biases",
        {
            "update/global_norm": lambda v, s: np.sqrt(
                v**2 - sum(q for n, q in s.squares.items() if "b_" in n or n.endswith("_b"))
            )
        },
        words=r"SIDE leaves all vectors \(biases\) out",
        narrow="likely",
    ),
    Plant(
        "formula",
        "squared",
        {"update/global_norm": lambda v, s: v**2},
        words="SIDE leaves out the root",
        narrow="likely",
    ),
    Plant(
        "formula",
        "largest element",
        {"update/global_norm": lambda v, s: max(np.abs(g).max() for g in s.grads.values())},
        words="SIDE takes the largest absolute element for the norm",
        narrow="likely",
    ),
]

SLOT = "optimizer/layer0/w_i/"
OPTIMIZER = [
    Plant(
        "formula",
        "inside the root",
        {"params/*": adam_step(inside)},
        ADAM,
        words="SIDE adds epsilon inside the root",
    ),
    Plant(
        "formula",
        "as Keras",
        {"params/*": adam_step(keras_epsilon)},
        ADAM,
        words=r"SIDE adds epsilon beside the root that is not bias-corrected \(as Keras does\)",
    ),
    Plant(
        "argument",
        "another size",
        {"params/*": adam_step(with_epsilon(1e-5))},
        ADAM,
        words=r"SIDE takes 1e-05 for epsilon 0\.0003",
    ),
    Plant(
        "formula",
        "RMSprop, inside",
        {"params/*": lambda v, s: s.p - s.lr * s.g / np.sqrt(s.slots["square"] + s.s.epsilon)},
        RMS,
        words=r"SIDE adds epsilon inside the root \(as Keras does\)",
    ),
    Plant(
        "formula",
        "Adagrad, inside",
        {"params/*": lambda v, s: s.p - s.lr * s.g / np.sqrt(s.slots["accumulator"] + s.s.epsilon)},
        ADAGRAD,
        words=r"SIDE adds epsilon inside the root \(as Keras does\)",
    ),
    Plant(
        "formula",
        "none",
        {"params/*": adam_step(lambda m, v, t, s: m / (np.sqrt(v) + s.s.epsilon))},
        ADAM,
        words="SIDE corrects no bias",
    ),
    Plant(
        "formula",
        "m alone",
        {
            "params/*": adam_step(
                lambda m, v, t, s: corrected(m, v, t, s)[0] / (np.sqrt(v) + s.s.epsilon)
            )
        },
        ADAM,
        words="SIDE corrects the bias of m alone",
    ),
    Plant(
        "argument",
        "a step ahead",
        {"params/*": adam_step(at_count(1))},
        ADAM,
        words="SIDE counts one step more",
    ),
    Plant(
        "formula",
        "lr inside",
        {"optimizer/*/velocity": lambda v, s: 0.9 * s.old - s.lr * s.fed},
        MOMENTUM,
        words=r"SIDE keeps -lr g inside the velocity \(as Keras does\)",
    ),
    Plant(
        "formula",
        "dampened",
        {"optimizer/*/velocity": lambda v, s: 0.9 * s.old + 0.1 * s.fed},
        MOMENTUM,
        words=r"SIDE dampens: \(1 - momentum\) g goes into the velocity",
    ),
    Plant(
        "formula",
        "Nesterov",
        {"params/*": lambda v, s: s.p - s.lr * (s.g + 0.9 * s.slots["velocity"])},
        MOMENTUM,
        words=r"SIDE takes Nesterov's step, g \+ momentum v",
    ),
    Plant(
        "constant",
        "from 0.1",
        {"optimizer/*": lambda v, s: s.old + s.g**2 + (0.1 if s.run.step == 1 else 0)},
        ADAGRAD,
        words=r"SIDE starts optimizer/embedding/accumulator from 0\.1",
    ),
    Plant(
        "formula",
        "L2 left out",
        {SLOT + "m": lambda v, s: 0.9 * s.old + 0.1 * s.g},
        ADAM | dict(weight_decay=0.05),
        words="SIDE leaves out weight decay of update/clipped/layer0/w_i and params/layer0/w_i",
    ),
    Plant(
        "formula",
        "decoupled left out",
        {"params/layer0/w_i": lambda v, s: v + s.lr * 0.05 * s.p},
        ADAM | dict(weight_decay=0.05, decoupled=True),
        words="SIDE does not decay this parameter",
        narrow="likely",
    ),
    Plant(
        "formula",
        "without lr",
        {"params/layer0/w_i": lambda v, s: v + s.lr * 0.05 * s.p - 0.05 * s.p},
        ADAM | dict(weight_decay=0.05, decoupled=True),
        words="SIDE decays the weights without the learning rate",
    ),
    Plant(
        "operand-added",
        "L2 in the loss",
        {"grads/softmax_w": grads_l2(0.01)},
        words=r"SIDE adds 0\.01 times params/softmax_w before the step",
    ),
    Plant(
        "formula",
        "SGD",
        {"params/*": lambda v, s: s.p - s.lr * s.g},
        ADAM,
        words="SIDE takes a plain step along the gradient",
    ),
    Plant(
        "operand-other",
        "unclipped",
        {"params/*": lambda v, s: s.p - s.lr * s.raw},
        words="SIDE takes grads/embedding for update/clipped/embedding",
    ),
    Plant(
        "argument",
        "betas swapped",
        {SLOT + "m": lambda v, s: 0.999 * s.old + 0.001 * s.fed},
        ADAM,
        words=r"SIDE takes 0\.999 for beta1 0\.9",
    ),
    Plant(
        "formula",
        "square not averaged",
        {SLOT + "v": lambda v, s: 0.999 * s.old + s.fed**2},
        ADAM,
        words="SIDE adds the new value whole, not the share 1 - beta of it",
    ),
    Plant(
        "factor",
        "twice",
        {"params/*": lambda v, s: s.p - 2 * s.lr * s.g},
        words="SIDE moves 2 times what it should",
    ),
    Plant(
        "formula",
        "frozen row",
        {"params/embedding": exact(lambda v, s: np.where(np.arange(29)[:, None] == 3, s.p, v))},
        words="SIDE does not update this parameter, at token 3 alone",
    ),
    Plant(
        "argument",
        "another momentum",
        {SLOT + "velocity": from_step(2, lambda v, s: 0.99 * s.old + s.fed)},
        MOMENTUM,
        words=r"SIDE takes 0\.99 for momentum 0\.9",
    ),
    Plant(
        "subset",
        "lazy rows",
        {
            "params/embedding": lambda v, s: np.where(
                np.isin(np.arange(29), s.get("inputs/x"))[:, None], v, s.p
            )
        },
        ADAM,
        words="SIDE leaves rows of tokens that are not in the batch as they were",
    ),
]

UPDATE = [*CLIPPING, *OPTIMIZER]
