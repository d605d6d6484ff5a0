"""Every op has code in every framework, which computes what the op's formula does."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from some import some

from harness.models.ops import OPS

HERE = Path(__file__).parent
# Ops that no recorder declares, and that a framework has no call for: formulas of ours stand there.
NO_CALL = {
    "torch": {"average_pool"},  # padded as TensorFlow does, where padding does not count
    "keras": {"average_pool", "max_pool", "embed_padded", "conv"},  # padded as torch does
    "jax": {"embed_padded"},
    "numpy": set(),
}
UPDATES = [
    *("descend", "average", "square", "velocity", "along_velocity", "nesterov", "velocity_keras"),
    *("along_velocity_keras", "nesterov_keras", "adam", "adam_keras", "over_root"),
    *("over_root_inside", "decay_gradient", "decay_weights"),
]
MORE = ("clip_by_norm", "clip_torch", "clip_elements", "global_norm", "running_mean")


@cache
def results(which):
    package = {"keras": "tensorflow"}.get(which, which)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "repro_ops.py"), which],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("which", some(["torch", "numpy", "jax", "keras"], fast=["torch", "numpy"]))
def test_the_code_of_every_op_gives_what_its_formula_does(which):
    wrong = {name: found for name, (found, _) in results(which).items() if found}
    assert not wrong, "\n".join(f"{name}: {found[0]}" for name, found in wrong.items())


@pytest.mark.parametrize("which", some(["torch", "jax", "keras"], fast=["torch"]))
def test_ops_with_a_derivative_and_updates_have_code_of_the_framework(which):
    found = results(which)
    wanted = {name for name, op in OPS.items() if op.derivative and name in found}
    ours = {name for name in {*wanted, *UPDATES, *MORE} if found[name][1]}
    assert ours <= NO_CALL[which]
    assert {*UPDATES, *MORE} <= found.keys()
