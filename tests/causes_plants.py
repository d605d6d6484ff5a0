"""Faults that the tests of causes plant, each with the cause that must be found for it."""

import numpy as np
from causes_fixtures import sigmoid
from causes_plant import C0, DROP, GATES0, H0, Plant, blocks, exact, from_step, on_block
from causes_plants_model import MODEL
from causes_plants_update import UPDATE

FACTORS = [
    Plant("factor", "softmax gradient summed", {"grads/softmax_w": lambda v, s: 5 * v}, words="T"),
    Plant(
        "factor",
        "batch mean",
        {"grads/layer0/w_i": lambda v, s: v / 3},
        words="the batch size B is 3 in this run",
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
        words="1.7 times",
    ),
    Plant(
        "factor",
        "a scalar norm over the batch size",
        {"update/global_norm": lambda v, s: v / 3},
        words="the batch size B",
    ),
    Plant("sign", "negated", {"backward/embedding": lambda v, s: -v}),
    Plant("sign", "negated bias gradient", {"grads/softmax_b": lambda v, s: -v}),
    Plant("zero", "empty state", {"state/out/layer0/h": lambda v, s: 0 * v}),
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


PLANTS = [*FACTORS, *STRUCTURE, *MODEL, *UPDATE]
