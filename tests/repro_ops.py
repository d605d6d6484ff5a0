"""The code of one framework for every example of every op, run in a process of its own.

Called as a program: it is given the name of a dialect, and prints JSON: by op, what went wrong, and
whether the code has a formula of ours in it.
"""

import contextlib
import io
import json
import os
import sys
import tempfile

import numpy as np
from op_examples import EXAMPLES

from harness.models.evaluate import Values
from harness.models.graph import const, node, ref
from harness.models.ops import parameters
from harness.repro.jax import Jax
from harness.repro.keras import Keras
from harness.repro.numpy import Numpy
from harness.repro.pytorch import Torch
from harness.repro.script import Own, program

DIALECTS = {"torch": Torch, "keras": Keras, "jax": Jax, "numpy": Numpy}
CLOSE = 1e-6  # epsilons of l2_normalize and the like are float32 in TensorFlow


def expression(name, example):
    """An op over the operands of an example, and the arrays that it reads."""
    arrays, operands = {}, []
    for k, x in enumerate(example.operands):
        if isinstance(x, np.ndarray):
            operands.append(ref(f"forward/x{k}"))
            arrays[operands[-1]] = x
        else:
            operands.append(const(x))
    return node(name, *operands, **{**parameters(name).defaults, **example.args}), arrays


def written(dialect, name, example):
    """The program of one op, and what it must give."""
    x, arrays = expression(name, example)
    by_name = {leaf.arg("name"): array for leaf, array in arrays.items()}
    values = Values(lambda back, wanted: by_name.get(wanted), 3)
    expected = np.asarray(values.value(x))
    made = program(
        Own(x),
        arrays,
        lambda part: np.shape(values.value(part)),
        dialect=dialect(),
        title=name,
        label="mine",
        dtype="float64",
        step=3,
        index=(0,) * expected.ndim,
        traced=expected,
    )
    return made, expected


def run(made):
    """What a program computes."""
    np.savez("inputs.npz", **made.inputs)
    space = {"__file__": "repro.py"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(made.text, "repro", "exec"), space)
    return space["value"]


def main(which):
    found = {}
    for name, examples in EXAMPLES.items():
        wrong, ours = [], False
        for example in examples:
            made, expected = written(DIALECTS[which], name, example)
            ours = ours or "in NumPy: " in made.text
            try:
                value = run(made)
                if value.shape != expected.shape:
                    wrong.append(f"{value.shape} for {expected.shape}")
                elif expected.size and not np.abs(value - expected).max() < CLOSE:
                    wrong.append(f"{np.abs(value - expected).max()} off")
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}\n{made.text}")
        found[name] = [wrong, ours]
    print(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(sys.argv[1])
