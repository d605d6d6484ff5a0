"""Faults that were planted in the twins' sources by somebody who had not read the causes.

Each got no cause, or a wrong one, when it was first tried.
"""

import numpy as np
from causes_fixtures import sigmoid
from causes_plant import ADAGRAD, ADAM, C0, CLIPPED, GATES0, H0, MOMENTUM, Plant, cell

SQUARES = "optimizer/*/v"
UNSEEN = [
    Plant(
        "argument",
        "a cell that is clamped",
        {H0: lambda v, s: sigmoid(s.o) * np.tanh(np.clip(s.c, -0.23, 0.23))},
        words=r"SIDE clamps forward/layer0/c at 0\.23",
    ),
    Plant(
        "argument",
        "gradients that are clamped on their way",
        {"backward/layer1/gates": lambda v, s: np.clip(v, -0.02, 0.02)},
        words=r"SIDE clamps the result at 0\.02",
    ),
    Plant(
        "operand-added",
        "a peephole",
        {C0: cell(lambda i, f, g, o, c: sigmoid(f + 0.5 * c) * c + sigmoid(i) * np.tanh(g))},
        words=(
            r"SIDE adds 0\.5 times forward/layer0/c\[t-1\] to gate f of forward/layer0/gates "
            r"\(a peephole\)"
        ),
    ),
    Plant(
        "formula",
        "LeCun's tanh",
        {H0: lambda v, s: sigmoid(s.o) * 1.7159 * np.tanh(2 * s.c / 3)},
        words=r"SIDE has LeCun's 1\.7159 tanh\(2 x / 3\) for the tanh, in the tanh of .*",
    ),
    Plant(
        "operand-twice",
        "tanh twice",
        {H0: lambda v, s: sigmoid(s.o) * np.tanh(np.tanh(s.c))},
        words="SIDE applies the tanh twice, in the tanh of forward/layer0/c",
    ),
    Plant(
        "subset",
        "a unit that is not read",
        {GATES0: lambda v, s: v - s.h[..., -1:] * s.w_h[-1]},
        words=(
            "SIDE leaves the last place of what is summed out of the product of "
            "forward/layer0/h and params/layer0/w_h"
        ),
    ),
    Plant(
        "formula",
        "a class that is not normalised over",
        {"forward/loss": lambda v, s: v + np.log(1 - s.p[..., -1]).sum() / s.norm},
        words="SIDE leaves the last class out of the normaliser",
        narrow="likely",
    ),
    Plant(
        "factor",
        "a loss with a factor of its own",
        {"forward/loss": lambda v, s: 0.6131 * v},
        words=r"SIDE is 0\.6131 times what it should",
        sure="likely",
    ),
    Plant(
        "constant",
        "a norm that is never zero",
        {CLIPPED: lambda v, s: s.g * min(1.0, s.s.clip_limit / (s.norm + 1e-3))},
        words=r"SIDE adds (0\.001|0\.0009999?\d+) to update/global_norm",
    ),
    Plant(
        "formula",
        "AMSGrad",
        {SQUARES: lambda v, s: np.maximum(s.old, v)},
        ADAM,
        words=r"SIDE keeps the largest value that it has had \(as AMSGrad does\)",
    ),
    Plant(
        "formula",
        "Adamax",
        {SQUARES: lambda v, s: np.maximum(s.s.beta2 * s.old, np.abs(s.g))},
        ADAM,
        words=r"SIDE keeps the larger of the decayed value and \|g\| \(as Adamax does\)",
    ),
    Plant(
        "argument",
        "the other beta for the share",
        {SQUARES: lambda v, s: s.s.beta2 * s.old + (1 - s.s.beta1) * s.g**2},
        ADAM | dict(beta2=0.97),
        words="SIDE takes 1 - beta1 for 1 - beta2, the share of the new value",
    ),
    Plant(
        "argument",
        "an average for a sum",
        {"optimizer/*/accumulator": lambda v, s: 0.7 * s.old + 0.3 * s.g**2},
        ADAGRAD,
        words=r"SIDE averages, with the share 0\.7 of the old value, where it should add up",
    ),
    Plant(
        "formula",
        "L1 for L2",
        {"optimizer/*/velocity": lambda v, s: v + 0.01 * (np.sign(s.p) - s.p)},
        MOMENTUM | dict(weight_decay=0.01),
        words=r"SIDE adds the decay by the signs of the weights \(L1, not L2\), in weight decay .*",
    ),
]
