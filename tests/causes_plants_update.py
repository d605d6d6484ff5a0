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
        "clip-elementwise",
        "clamped",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        words="one side clips by global norm, the other element by element",
    ),
    Plant(
        "clip-one-side",
        "clamped, nothing over the limit",
        {CLIPPED: lambda v, s: np.clip(s.g, -s.s.clip_limit, s.s.clip_limit)},
        dict(clip_limit=1.7),
        words="it does not clip, or in a way that leaves these alone (each element at 1.7",
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
        dtypes=("float64",),
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
        dtypes=("float64",),  # in float32 one number this near says too little
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
        dtypes=("float64",),  # in float32 one number this near says too little
    ),
    Plant(
        "norm-parts",
        "without the embedding",
        {"update/global_norm": lambda v, s: np.sqrt(v**2 - s.squares["embedding"])},
        words="leaves out embedding",
        dtypes=("float64",),
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
        words="counts one step more",
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
        words="averages gradients with beta2",
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

UPDATE = [*CLIPPING, *OPTIMIZER]
