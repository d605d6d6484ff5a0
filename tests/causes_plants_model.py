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
    Plant(
        "constant",
        "one on f",
        {GATES0: on_block(1, 1.0)},
        words="SIDE is larger by 1, at gate f alone",
    ),
    Plant(
        "constant",
        "in the cell",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g))},
        words="SIDE adds 1 to gate f of forward/layer0/gates",
    ),
    Plant(
        "constant",
        "another constant",
        {"forward/layer1/gates": on_block(1, 0.37)},
        words=r"SIDE is larger by 0\.37, at gate f alone",
    ),
    Plant(
        "operand-missing",
        "b_h",
        {GATES0: lambda v, s: v - s.b_h},
        words="SIDE leaves out params/layer0/b_h",
    ),
    Plant(
        "operand-missing",
        "both",
        {GATES0: lambda v, s: v - s.b_h - s.b_i},
        words="SIDE takes zeros for params/layer0/b_h, and leaves out params/layer0/b_i",
    ),
    Plant(
        "operand-missing",
        "softmax_b",
        {"forward/logits": lambda v, s: v - s.b},
        words="SIDE leaves out params/softmax_b",
    ),
    Plant(
        "operand-twice",
        "b_i",
        {"forward/layer1/gates": lambda v, s: v + s.b_i},
        words="SIDE counts params/layer1/b_i twice",
    ),
    Plant(
        "operand-twice",
        "softmax_b",
        {"forward/logits": lambda v, s: v + s.b},
        words="SIDE counts params/softmax_b twice",
    ),
    Plant(
        "formula",
        "Keras' hard sigmoid",
        {C0: cell(lambda i, f, g, o, c: keras_hard(f) * c + keras_hard(i) * np.tanh(g))},
        words=(
            r"SIDE has the hard sigmoid clip\(0\.2 x \+ 0\.5, 0, 1\) for the sigmoid "
            r"\(as Keras 2 does\)"
        ),
    ),
    Plant(
        "formula",
        "torch's hard sigmoid",
        {C0: cell(lambda i, f, g, o, c: torch_hard(f) * c + torch_hard(i) * np.tanh(g))},
        words=(
            r"SIDE has the hard sigmoid clip\(x / 6 \+ 0\.5, 0, 1\) for the sigmoid "
            r"\(as torch does\)"
        ),
    ),
    Plant(
        "formula",
        "no tanh of g",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f) * c + sigmoid(i) * g)},
        words="SIDE leaves out the tanh of gate g of forward/layer0/gates",
    ),
    Plant(
        "formula",
        "coupled",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g))},
        words=(
            "SIDE takes 1 - the sigmoid of gate f of forward/layer0/gates for the "
            "sigmoid of gate i of forward/layer0/gates"
        ),
    ),
    Plant(
        "formula",
        "no tanh of c",
        {H0: lambda v, s: sigmoid(s.o) * s.c},
        words="SIDE leaves out the tanh of forward/layer0/c",
    ),
    Plant(
        "formula",
        "hard output",
        {"forward/layer1/h": lambda v, s: torch_hard(s.o) * np.tanh(s.c)},
        words=(
            r"SIDE has the hard sigmoid clip\(x / 6 \+ 0\.5, 0, 1\) for the sigmoid "
            r"\(as torch does\), in the sigmoid of gate o of forward/layer1/gates"
        ),
    ),
    Plant(
        "zero",
        "none at all",
        {"grads/layer0/w_i": lambda v, s: 0 * v},
        words="SIDE has nothing but zeros",
    ),
    Plant(
        "zero",
        "a row of tokens",
        {"grads/embedding": row_set(12, 0.0)},
        words="SIDE has nothing but zeros, at token 12 alone",
    ),
    Plant(
        "operand-missing",
        "h detached",
        {"backward/layer1/h": lambda v, s: s.above + 0 * v},
        words=(
            "SIDE leaves out the product of backward/layer1/gates and the transposed "
            "weights of params/layer1/w_h"
        ),
    ),
    Plant(
        "operand-missing",
        "c detached",
        {"backward/layer1/c": lambda v, s: s.direct},
        words=(
            "SIDE leaves out the product of backward/layer1/c and the sigmoid of gate "
            "f of forward/layer1/gates"
        ),
    ),
    Plant(
        "operand-missing",
        "no gradient for gate f",
        {
            "backward/layer0/gates": lambda v, s: np.concatenate(
                [s.parts[0], 0 * s.parts[1], *s.parts[2:]], -1
            )
        },
        words="SIDE leaves out gate f, the product with backward/layer0/c",
    ),
    Plant(
        "operand-added",
        "activation regularised",
        {"backward/logits": lambda v, s: v + 0.01 * s.get("forward/logits")},
        words=r"SIDE adds 0\.01 times forward/logits",
    ),
    Plant(
        "operand-added",
        "L1",
        {"grads/softmax_w": lambda v, s: v + 0.01 * np.sign(s.p)},
        words=r"SIDE adds 0\.01 times the sign of params/softmax_w before the step",
    ),
    Plant(
        "formula",
        "last one wins",
        {"grads/embedding": last_wins},
        words="SIDE keeps the last of a token's gradients, not their sum",
    ),
]

DROPOUT = [
    Plant(
        "formula",
        "not scaled",
        {"dropout/embedding": mask_of(lambda x, m, k: x * m)},
        DROP,
        words=(
            "SIDE does not scale what dropout keeps, in dropout of forward/embedding "
            "and inputs/mask/embedding"
        ),
    ),
    Plant(
        "formula",
        "scaled twice",
        {"dropout/layer0": mask_of(lambda x, m, k: x * m / k**2)},
        DROP,
        words=(
            "SIDE applies the mask of dropout twice, with its scale, in dropout of "
            "forward/layer0/h and inputs/mask/layer0"
        ),
    ),
    Plant(
        "formula",
        "keep for drop",
        {"dropout/layer1": mask_of(lambda x, m, k: x * m / (1 - k))},
        DROP,
        words=(
            r"SIDE scales what dropout keeps by 1 / rate, not 1 / \(1 - rate\), in "
            "dropout of forward/layer1/h and inputs/mask/layer1"
        ),
    ),
    Plant(
        "formula",
        "inverted",
        {"dropout/layer1": mask_of(lambda x, m, k: x * ~m / k)},
        DROP,
        words=(
            "SIDE drops what the mask keeps and keeps what it drops, in dropout of "
            "forward/layer1/h and inputs/mask/layer1"
        ),
    ),
    Plant(
        "formula",
        "not applied",
        {"dropout/embedding": mask_of(lambda x, m, k: x)},
        DROP,
        words="SIDE leaves out dropout of forward/embedding and inputs/mask/embedding",
    ),
    Plant(
        "formula",
        "one mask for all timesteps",
        {"dropout/layer0": mask_of(lambda x, m, k: x * m[:, :1] / k)},
        DROP,
        words=(
            "SIDE applies the mask of a sequence's first timestep to all of them, in "
            "dropout of forward/layer0/h and inputs/mask/layer0"
        ),
    ),
    Plant(
        "operand-other",
        "mask of another site",
        {"dropout/layer0": lambda x, s: x * s.run.masks["layer1"] / s.keep},
        DROP,
        words="SIDE takes inputs/mask/layer1 for inputs/mask/layer0",
    ),
    Plant(
        "formula",
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
        words="SIDE .*dropout.*params/layer1/w_h.*",
        sure="none",
    ),
    Plant(
        "formula",
        "scale missing backwards",
        {"backward/embedding": lambda v, s: v * 0.65},
        DROP,
        words="SIDE does not scale what dropout keeps",
    ),
]

LOSSES = [
    Plant(
        "formula",
        "mean over time",
        {"forward/loss": lambda v, s: v / 5},
        words="SIDE averages the loss over batch and time",
        narrow="likely",
    ),
    Plant(
        "formula",
        "sum over the batch",
        {"forward/loss": lambda v, s: v * 3},
        words="SIDE sums the loss over batch and time",
        narrow="likely",
    ),
    Plant(
        "formula",
        "last timestep dropped",
        {"forward/loss": lambda v, s: s.losses[:, :-1].sum() / s.norm},
        words="SIDE leaves the last timestep out of the loss",
        narrow="likely",
    ),
    Plant(
        "formula",
        "base 2",
        {"forward/loss": lambda v, s: v / np.log(2)},
        words="SIDE takes logarithms to the base of 2",
        narrow="likely",
    ),
    Plant(
        "formula",
        "smoothed",
        {"forward/loss": smoothed},
        dtypes=("float64",),
        words=r"SIDE smooths the targets by 0\.1",  # in float32 one number says too little
    ),
    Plant(
        "shift",
        "targets off by one",
        {
            "forward/loss": lambda v, s: (
                -np.log(
                    np.take_along_axis(s.p, np.roll(s.y, 1, 1)[..., None].astype(int), -1)
                ).sum()
                / s.norm
            )
        },
        dtypes=("float64",),
        words="SIDE takes the timestep before of inputs/y, and its last for the first",
    ),
    Plant(
        "formula",
        "mean set on both, gradient summed",
        {"backward/logits": lambda v, s: 5 * v},
        dict(loss="mean"),
        words="SIDE sums the loss over time and averages it over the batch",
    ),
    Plant(
        "formula",
        "gradient smoothed",
        {"backward/logits": lambda v, s: (s.p - 0.9 * s.target - 0.1 / 29) / s.norm},
        words=r"SIDE smooths the targets by 0\.1",
    ),
    Plant(
        "formula",
        "gradient without last timestep",
        {"backward/logits": lambda v, s: v * (np.arange(5) < 4)[None, :, None]},
        words="SIDE passes no gradient from the last timestep",
    ),
]

PRECISION = [
    Plant(
        "reduced-precision",
        "held in bfloat16",
        {"forward/embedding": exact(lambda v, s: bf16(v))},
        words="SIDE is rounded to bfloat16",
    ),
    Plant(
        "reduced-precision",
        "held in tf32",
        {"backward/logits": exact(lambda v, s: tf32(v))},
        words="SIDE is rounded to float16",
    ),
    Plant(
        "reduced-precision",
        "held in float16",
        {"forward/embedding": exact(lambda v, s: v.astype(np.float16).astype(np.float64))},
        words="SIDE is rounded to float16",
    ),
    Plant(
        "reduced-precision",
        "held in float32",
        {"forward/logits": exact(lambda v, s: v.astype(np.float32).astype(np.float64))},
        dtypes=("float64",),
        words=r"SIDE is rounded to float32 \(computed in float32\)",
    ),
    Plant(
        "reduced-precision",
        "product in bfloat16",
        {GATES0: gates_from(bf16)},
        words="SIDE rounds the operands of all its products to bfloat16",
    ),
    Plant(
        "reduced-precision",
        "product in tf32",
        {GATES0: gates_from(tf32)},
        words="SIDE rounds the operands of all its products to tf32",
    ),
    Plant(
        "reduced-precision",
        "logits in bfloat16",
        {"forward/logits": lambda v, s: bf16(s.x) @ bf16(s.w) + s.b},
        words=(
            "SIDE rounds the operands of the product of forward/layer1/h and "
            "params/softmax_w to bfloat16"
        ),
    ),
    Plant(
        "reduced-precision",
        "logits in tf32, after dropout",
        {"forward/logits": lambda v, s: tf32(s.x) @ tf32(s.w) + s.b},
        DROP,
        words=(
            "SIDE rounds the operands of the product of dropout of forward/layer1/h "
            "and inputs/mask/layer1 and params/softmax_w to tf32"
        ),
    ),
    Plant(
        "reduced-precision",
        "results in bfloat16 too",
        {"forward/logits": exact(lambda v, s: bf16(bf16(s.x) @ bf16(s.w)) + s.b)},
        words=(
            "SIDE rounds operands and result of the product of forward/layer1/h and "
            "params/softmax_w to bfloat16"
        ),
    ),
    Plant(
        "reduced-precision",
        "backward in bfloat16",
        {
            "backward/layer1/h": lambda v, s: (
                v if s.t < 0 else bf16(s.dz_next) @ bf16(s.w_h).T + s.above
            )
        },
        words=(
            "SIDE rounds the operands of the product of backward/layer1/gates and the "
            "transposed weights of params/layer1/w_h to bfloat16"
        ),
    ),
]

PRECISION += [
    Plant(
        "reduced-precision",
        "h held in float16",
        {H0: exact(lambda v, s: v.astype(np.float16).astype(np.float64))},
        words="SIDE is rounded to float16",
    ),
    Plant(
        "reduced-precision",
        "c held in bfloat16",
        {C0: exact(lambda v, s: bf16(v))},
        words="SIDE is rounded to bfloat16",
    ),
]

MODEL = [*CELLS, *DROPOUT, *LOSSES, *PRECISION]
