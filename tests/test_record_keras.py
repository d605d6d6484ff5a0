"""Scripts in Keras and TensorFlow, recorded: the same bits, and every stage as it is declared.

Each script of tests/recorded runs its cases twice, unrecorded and recorded, in one process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from recorded.stages import disagreeing, evaluated, without_stage

pytestmark = pytest.mark.slow  # a minute; test_record_keras_fit.py has one script by default
SCRIPTS = Path(__file__).parent / "recorded"
ROOT = SCRIPTS.parent.parent
# Keras rounds 1 - beta2 to float32, which a weight near zero shows.
UPDATES = 512
NOISE = 1e-6  # of gradients that are zero but for rounding


class Ran(NamedTuple):
    """What a script left: traces in a folder, and what it printed."""

    folder: Path
    said: list


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The scripts by name, run in one process: TensorFlow takes long to import."""
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "keras_all.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        said = json.loads(line) if line.startswith(("{", "[")) else {}
        if "script" in said:
            found[said["script"]] = one = Ran(folder / said["script"], [])
        elif said:
            one.said.append(said)
    return found


def disagreements(path):
    """The stages that, computed again in float64, are not what was traced; and those that are."""
    return disagreeing(path, updates=UPDATES, noise=NOISE, nan=True)


def without(path, *kinds):
    """The tensors of the last step of which no stage is known."""
    return set(without_stage(path, kinds))


SAME = ("keras_cnn", "keras_transformer", "keras_odd")


@pytest.mark.parametrize("script", SAME)
def test_recording_changes_no_bit(ran, script):
    same = ran[script].said[0]["same"]
    assert len(same) >= 5
    assert [case for case, is_same in same.items() if not is_same] == []


@pytest.mark.parametrize("script", SAME)
def test_every_stage_is_right(ran, script):
    found = {p.stem: disagreements(p) for p in ran[script].folder.glob("*.trace")}
    found.pop("other", None)  # it goes on with what it did not make
    assert {case: wrong for case, (wrong, _) in found.items() if wrong} == {}


def test_no_hook_is_left(ran):
    assert all(one.said[0]["left"] == [] for one in ran.values())
    assert ran["keras_odd"].said[1] == [[], []]  # after exceptions


@pytest.mark.parametrize("case", ["by_tape", "by_function", "by_fit"])
def test_every_tensor_of_a_cnn_has_a_stage(ran, case):
    path = ran["keras_cnn"].folder / f"{case}.trace"
    assert without(path, "forward", "backward", "grads", "buffers", "params", "optimizer") == set()
    _, right = disagreements(path)
    assert {"forward/loss", "backward/conv1", "buffers/bn1/moving_variance"} <= set(right)
    assert "update/clipped/conv1/kernel" in right


@pytest.mark.parametrize("case", ["momentum", "nesterov", "adam", "rmsprop", "adagrad"])
def test_every_tensor_of_a_transformer_has_a_stage(ran, case):
    path = ran["keras_transformer"].folder / f"{case}.trace"
    # Keras squares and clips the rows of an embedding's gradient before it adds them up.
    rows = {"update/clipped/tokens/embeddings"}
    rows |= {f"optimizer/tokens/embeddings/{slot}" for slot in ("v", "square", "accumulator")}
    assert without(path, "forward", "backward", "grads", "params", "optimizer") <= rows
    assert "forward/block1/attention/attention_output" in disagreements(path)[1]


def test_a_model_that_is_built_by_its_first_call_has_its_first_weights(ran):
    path = ran["keras_transformer"].folder / "momentum.trace"
    step = next(iter(evaluated(path)))[2]
    weights = {n.removeprefix("inputs/") for n in step if n.startswith("inputs/params/")}
    assert weights == {n for n in step if n.startswith("params/")}


def test_inputs_of_fit_are_those_of_the_step(ran):
    *_, (_, _, tensors, _) = evaluated(ran["keras_odd"].folder / "custom_fit.trace")
    assert tensors["inputs/x"].shape == (2, 5)  # the last batch of ten rows by four
    assert tensors["inputs/y"].shape == (2, 3)


def test_what_xla_compiles_is_seen_from_outside(ran):
    *_, (step, _, tensors, _) = evaluated(ran["keras_cnn"].folder / "by_compiled_fit.trace")
    kinds = {name.partition("/")[0] for name in tensors}
    assert step == 5
    assert {"params", "optimizer", "buffers"} <= kinds
    assert not kinds & {"forward", "backward", "grads"}


@pytest.mark.parametrize("case", ["adversaries", "branches", "reversed_gradient", "penalties"])
def test_no_gradient_is_derived_where_one_may_be_hidden(ran, case):
    path = ran["keras_odd"].folder / f"{case}.trace"
    grads = {n for n in next(iter(evaluated(path)))[2] if n.startswith("grads/")}
    assert grads
    assert without(path, "grads") >= grads


@pytest.mark.parametrize("case", ["points", "eager_points"])
def test_at_depth_ops_operations_are_points_with_gradients(ran, case):
    path = ran["keras_odd"].folder / f"{case}.trace"
    found = set(next(iter(evaluated(path)))[2])
    own = {"gelu", "silu", "concat", "softmax", "matmul", "exp", "log", "square"}
    assert {f"{way}/model/{op}" for op in own for way in ("forward", "backward")} <= found
    assert without(path, "forward") == set()
    plain = set(next(iter(evaluated(ran["keras_odd"].folder / "operations.trace")))[2])
    assert not {"forward/model/gelu", "forward/model/exp"} & plain


def test_a_follower_goes_on_with_the_other_sides_tensors(ran):
    folder = ran["keras_cnn"].folder
    pairs = zip(evaluated(folder / "first.trace"), evaluated(folder / "other.trace"), strict=True)
    for (_, _, first, _), (_, _, other, _) in pairs:
        assert first.keys() == other.keys()
        parted = {
            n for n, x in first.items() if not np.allclose(x, np.float64(other[n]), 1e-4, 1e-6)
        }
        assert "forward/wide" in parted
        assert not parted & {"forward/conv1", "forward/head", "forward/loss", "backward/conv1"}
