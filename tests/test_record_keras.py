"""Scripts in Keras and TensorFlow, recorded: the same bits, and every stage as it is declared.

Each script of tests/recorded runs its cases twice, unrecorded and recorded, in one process.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import harness
from harness.models.evaluate import Values
from harness.models.graph import Graph

pytestmark = pytest.mark.slow  # a minute; test_record_keras_fit.py has one script by default
SCRIPTS = Path(__file__).parent / "recorded"
ROOT = SCRIPTS.parent.parent
EPS = {"float64": 2**-52, "float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}
ALLOWED = 64  # units of epsilon
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


@cache
def read_all(path):
    """The tensors of every step."""
    trace = harness.open_trace(path)
    parts = {s: trace.step(s) for s in trace.steps}
    return trace, {s: {e.name: step.read(e) for e in step.entries} for s, step in parts.items()}


def stages(path):
    """Of some steps: number, the stages that their entries declare and imply, and tensors."""
    trace, steps = read_all(path)
    for step in dict.fromkeys((*trace.steps[:2], *trace.steps[-1:])):
        tensors = steps[step]
        graph = trace.graph or Graph({})

        def read(back, name, step=step):
            return steps.get(step - back, {}).get(name)

        yield step, graph, tensors, Values(read, step, graph)


@cache
def disagreements(path):
    """The stages that, computed again in float64, are not what was traced; and how many agree."""
    wrong, right = [], set()
    for step, graph, tensors, values in stages(path):
        for name, traced in tensors.items():
            if name not in graph.stages or np.isnan(np.float64(traced)).any():
                continue
            made = np.asarray(values.value(graph.stages[name].value))
            traced, eps = np.float64(traced), EPS[str(traced.dtype)]
            gap = np.abs(made - traced).max() if made.shape == traced.shape else np.inf
            most = UPDATES if name.startswith("params/") else ALLOWED
            if gap > max(most * eps * np.abs(traced).max(), NOISE * (np.abs(traced).max() < NOISE)):
                wrong.append((step, name, float(gap)))
            else:
                right.add(name)
    return wrong, right


def without(path, *kinds):
    """The tensors of the last step of which no stage is known."""
    *_, (_, graph, tensors, _) = stages(path)
    return {n for n in tensors if n not in graph.stages and n.startswith(kinds)}


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
    assert {"forward/loss", "backward/conv1", "buffers/bn1/moving_variance"} <= right
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
    step = next(iter(stages(path)))[2]
    weights = {n.removeprefix("inputs/") for n in step if n.startswith("inputs/params/")}
    assert weights == {n for n in step if n.startswith("params/")}


def test_inputs_of_fit_are_those_of_the_step(ran):
    *_, (_, _, tensors, _) = stages(ran["keras_odd"].folder / "custom_fit.trace")
    assert tensors["inputs/x"].shape == (2, 5)  # the last batch of ten rows by four
    assert tensors["inputs/y"].shape == (2, 3)


def test_what_xla_compiles_is_seen_from_outside(ran):
    *_, (step, _, tensors, _) = stages(ran["keras_cnn"].folder / "by_compiled_fit.trace")
    kinds = {name.partition("/")[0] for name in tensors}
    assert step == 5
    assert {"params", "optimizer", "buffers"} <= kinds
    assert not kinds & {"forward", "backward", "grads"}


@pytest.mark.parametrize("case", ["adversaries", "branches", "reversed_gradient", "penalties"])
def test_no_gradient_is_derived_where_one_may_be_hidden(ran, case):
    path = ran["keras_odd"].folder / f"{case}.trace"
    grads = {n for n in next(iter(stages(path)))[2] if n.startswith("grads/")}
    assert grads
    assert without(path, "grads") >= grads


def test_a_follower_goes_on_with_the_other_sides_tensors(ran):
    folder = ran["keras_cnn"].folder
    pairs = zip(stages(folder / "first.trace"), stages(folder / "other.trace"), strict=True)
    for (_, _, first, _), (_, _, other, _) in pairs:
        assert first.keys() == other.keys()
        parted = {
            n for n, x in first.items() if not np.allclose(x, np.float64(other[n]), 1e-4, 1e-6)
        }
        assert "forward/wide" in parted
        assert not parted & {"forward/conv1", "forward/head", "forward/loss", "backward/conv1"}
