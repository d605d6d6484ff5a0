"""Faults that the tests of causes plant, each with the cause that must be found for it."""

import numpy as np
from causes_fixtures import sigmoid
from causes_plant import C0, DROP, GATES0, H0, Plant, blocks, exact, from_step, on_block
from causes_plants_model import MODEL
from causes_plants_unseen import UNSEEN
from causes_plants_update import UPDATE

FACTORS = [
    Plant(
        "factor",
        "softmax gradient summed",
        {"grads/softmax_w": lambda v, s: 5 * v},
        words=r"SIDE is 5 \(bptt\) times what it should",
    ),
    Plant(
        "factor",
        "batch mean",
        {"grads/layer0/w_i": lambda v, s: v / 3},
        words=r"SIDE is 0\.333333 \(1 / batch_size\) times what it should",
    ),
    Plant(
        "factor",
        "no name",
        {"grads/layer1/w_h": lambda v, s: 1.23457 * v},
        words=r"SIDE is 1\.23457 times what it should",
    ),
    Plant(
        "formula",
        "keep probability",
        {"grads/layer1/w_i": lambda v, s: v * 0.65},
        DROP,
        words=(
            "SIDE does not scale what dropout keeps, in dropout of forward/layer0/h "
            "and inputs/mask/layer0"
        ),
    ),
    Plant(
        "factor",
        "a step that is 1.7 times too long",
        {"params/softmax_w": lambda v, s: s.p + 1.7 * (v - s.p)},
        words=r"SIDE moves 1\.7 \(lr_decay\) times what it should",
    ),
    Plant(
        "factor",
        "a scalar norm over the batch size",
        {"update/global_norm": lambda v, s: v / 3},
        words=r"SIDE is 0\.333333 \(1 / batch_size\) times what it should",
        narrow="likely",
    ),
    Plant(
        "sign", "negated", {"backward/embedding": lambda v, s: -v}, words="SIDE has the sign turned"
    ),
    Plant(
        "sign",
        "negated bias gradient",
        {"grads/softmax_b": lambda v, s: -v},
        words="SIDE has the sign turned",
    ),
    Plant(
        "formula",
        "empty state",
        {"state/out/layer0/h": lambda v, s: 0 * v},
        words="SIDE keeps zeros",
    ),
    Plant(
        "constant",
        "offset",
        {"backward/embedding": lambda v, s: v + 0.125},
        words=r"SIDE is larger by 0\.125 in every element",
    ),
    Plant(
        "constant",
        "offset of gate o",
        {"grads/layer0/w_i": on_block(3, 0.25)},
        words=r"SIDE is larger by 0\.25, at gate o alone",
    ),
    Plant(
        "factor",
        "decay an epoch early",
        {"update/learning_rate": from_step(2, lambda v, s: v / 1.7)},
        words=(
            r"(SIDE is 0\.588235 \(1 / lr_decay\)|OTHER is 1\.7 \(lr_decay\)) times "
            "what it should"
        ),
        sure="likely",
    ),
    Plant(
        "factor",
        "decay compounds",
        {"update/learning_rate": from_step(3, lambda v, s: v / 1.7**3)},
        words=r"OTHER is 4\.913 \(lr_decay to the power 3\) times what it should",
        sure="likely",
    ),
]

STRUCTURE = [
    Plant(
        "transposed",
        "batch-major read as time-major",
        {"forward/embedding": lambda v, s: v.reshape(5, 3, 7).swapaxes(0, 1)},
        words=(
            r"SIDE is read with its axes in the order \(1, 0, 2\) and permuted back: "
            r"batch-major numbers taken for time-major\?"
        ),
    ),
    Plant(
        "transposed",
        "gradient read in the other layout",
        {"grads/softmax_w": lambda v, s: v.T.reshape(v.shape)},
        words=r"SIDE is permuted to axes \(1, 0\) and then read in the old shape",
    ),
    Plant(
        "transposed",
        "softmax weights in the other layout",
        {"forward/logits": lambda v, s: s.x @ s.w.T.reshape(s.w.shape) + s.b},
        words="SIDE reads params/softmax_w as its transpose",
    ),
    Plant(
        "transposed",
        "recurrent weights in the other layout",
        {GATES0: lambda v, s: s.x @ s.w_i + s.b_i + s.h @ s.w_h.T.reshape(s.w_h.shape) + s.b_h},
        words="SIDE reads params/layer0/w_h as its transpose",
    ),
    Plant(
        "block-order",
        "TF1's order",
        {GATES0: blocks((0, 2, 1, 3))},
        words="SIDE has the gates of the result in the order igfo",
    ),
    Plant(
        "block-order",
        "split as i,f,o,g",
        {C0: lambda v, s: split(s, (0, 1, 3, 2))},
        words="SIDE reads the gates of forward/layer0/gates in the order ifog",
    ),
    Plant(
        "block-order",
        "g for o",
        {H0: lambda v, s: sigmoid(s.g) * np.tanh(s.c)},
        words="SIDE reads the gates of forward/layer0/gates in the order ifog",
    ),
    Plant(
        "block-order",
        "gradient's blocks",
        {"grads/layer1/w_i": blocks((3, 1, 2, 0))},
        words="SIDE has the gates of the result in the order ofgi",
    ),
    Plant(
        "block-order",
        "bias gradient's blocks",
        {"grads/layer1/b_i": blocks((1, 0, 2, 3))},
        words="SIDE has the gates of the result in the order figo",
    ),
    Plant(
        "shift",
        "next batch row",
        {"backward/embedding": lambda v, s: np.roll(v, 1, 0)},
        words="SIDE takes the batch row before of backward/layer0/gates",
    ),
    Plant(
        "permuted-rows",
        "timestep",
        {"backward/logits": lambda v, s: np.concatenate([v[:, 1:], v[:, :1]], 1)},
        words="SIDE has the timesteps in the order 1, 2, 3, 4, 0",
    ),
    Plant(
        "operand-other",
        "targets are inputs",
        {"inputs/y": lambda v, s: s.get("inputs/x")},
        words="SIDE has what inputs/x should be",
    ),
    Plant(
        "formula",
        "embedding row off by one",
        {"forward/embedding": lambda v, s: s.table[s.x + 1]},
        words="SIDE reads the row of the next token",
    ),
    Plant(
        "permuted-rows",
        "batch rows",
        {"backward/embedding": lambda v, s: v[[1, 0, 2]]},
        words="SIDE has the batch rows in the order 1, 0, 2",
    ),
    Plant(
        "permuted-rows",
        "tokens",
        {"grads/softmax_w": lambda v, s: v[:, np.random.default_rng(3).permutation(29)]},
        words="SIDE has the tokens in the order 25, 27, 28, 3, .*",
    ),
    Plant(
        "formula",
        "parameter not updated",
        {"params/layer1/w_i": exact(lambda v, s: s.p)},
        words="SIDE does not update this parameter",
    ),
    Plant(
        "stale",
        "gradient of the step before",
        {"grads/layer0/w_i": from_step(2, lambda v, s: s.get("grads/layer0/w_i", 1))},
        words="SIDE does not change: it is as it was at the step before",
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
        words="SIDE computes with weights as they were before the last step",
    ),
    Plant(
        "accumulated",
        "not zeroed",
        {"grads/softmax_w": from_step(2, lambda v, s: v + s.get("grads/softmax_w", 1))},
        words=r"SIDE adds the value of the step before to it: not zeroed\?",
    ),
    Plant(
        "formula",
        "zeros at every step",
        {"state/in/layer0/h": lambda v, s: 0 * v, "state/in/layer0/c": lambda v, s: 0 * v},
        words="SIDE starts from zeros",
    ),
    Plant(
        "operand-other",
        "h for c",
        {"state/in/layer0/h": from_step(2, lambda v, s: s.get("state/out/layer0/c", 1))},
        words="SIDE takes state/out/layer0/c for state/out/layer0/h",
    ),
    Plant(
        "operand-other",
        "layers swapped",
        {"state/in/layer0/h": from_step(2, lambda v, s: s.get("state/out/layer1/h", 1))},
        words="SIDE takes state/out/layer1/h for state/out/layer0/h",
    ),
]


def split(s, order):
    i, f, g, _ = ([s.i, s.f, s.g, s.o][k] for k in order)
    return sigmoid(f) * s.c_before + sigmoid(i) * np.tanh(g)


PLANTS = [*FACTORS, *STRUCTURE, *MODEL, *UPDATE, *UNSEEN]
