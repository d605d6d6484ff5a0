"""Faults of cells, dropout, losses and precision, each with its cause."""

import numpy as np
from causes_fixtures import sigmoid
from causes_plant import (
    C0,
    DROP,
    GATES0,
    H0,
    Plant,
    bf16,
    cell,
    exact,
    gates_from,
    keras_hard,
    last_wins,
    mask_of,
    on_block,
    row_set,
    smoothed,
    tf32,
    torch_hard,
)

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
    Plant(
        "loss-formula",
        "mean over time",
        {"forward/loss": lambda v, s: v / 5},
        words="averaged over time and batch",
    ),
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
        "loss-formula",
        "smoothed",
        {"forward/loss": smoothed},
        words="smooths its labels by 0.1",
        dtypes=("float64",),  # in float32 one number says too little
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
        dtypes=("float64",),
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

MODEL = [*CELLS, *DROPOUT, *LOSSES, *PRECISION]
